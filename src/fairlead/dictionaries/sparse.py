"""Sparse activations in token-major order, and the three products a dictionary step needs.

Shape suffixes: N tokens, F latents (d_dict), D d_model, P active (token, latent) pairs.

A dense backward of the decoder costs N F D; with P = N k pairs the same numbers cost P D (METHODS.md, "Where a dictionary
step spends its time"): `decode` sums decoder rows per token, `gather_dot` is the gradient of the pair values, and
`transposed_product` the gradient of the decoder, as a product with the transposed (latent-major) matrix. On CUDA, where triton is
installed, kernels of Fairlead's own do the three (`triton_kernels`; tested in Triton's interpreter, not yet timed on a GPU).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Pairs(NamedTuple):
    """The non-zero entries of activations `[N, F]`, sorted by token.

    Attributes:
        token: `[P]` long.
        latent: `[P]` long.
        value: `[P]` activations.
        num_tokens: N.
    """

    token: Tensor
    latent: Tensor
    value: Tensor
    num_tokens: int


def smallest(value: Tensor) -> Tensor:
    """The smallest of some values, on their device; 0 where there are none."""
    return value.detach().min() if value.numel() else value.new_zeros(())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def takes_kernels(rows: Tensor) -> bool:
    """Whether the Triton kernels do these products: on CUDA, where triton is installed."""
    return rows.is_cuda and _has_triton()


def dense_to_pairs(acts_NF: Tensor) -> Pairs:
    """The non-zero entries of dense activations."""
    token, latent = acts_NF.nonzero(as_tuple=True)
    return Pairs(token, latent, acts_NF[token, latent], acts_NF.shape[0])


def batch_topk(pre_NF: Tensor, num_pairs: int, *, floor: float = 0.0) -> Pairs:
    """The `num_pairs` largest positive pre-activations of the whole batch (BatchTopK, arXiv 2412.06410).

    The dense oracle of `selection.batch_pairs`. Exact: `floor` (a guess below the smallest kept value, such as half the running
    threshold) only narrows the search; when fewer than `num_pairs` entries pass it, the search is repeated from zero. Ties at the
    smallest value may keep a few more.
    """
    flat = pre_NF.reshape(-1)
    found = (flat > max(floor, 0.0)).nonzero().squeeze(-1)
    if found.numel() < num_pairs and floor > 0.0:
        found = (flat > 0.0).nonzero().squeeze(-1)
    value = flat[found]
    if value.numel() > num_pairs:
        least = torch.kthvalue(value, value.numel() - num_pairs + 1).values
        keep = value >= least
        found, value = found[keep], value[keep]
    width = pre_NF.shape[1]
    return Pairs(torch.div(found, width, rounding_mode="floor"), found % width, value, pre_NF.shape[0])


def decode(pairs: Pairs, decoder_FD: Tensor) -> Tensor:
    """Sum over each token's pairs of value times decoder row, `[N, D]`; equals the dense `acts @ decoder`."""
    if takes_kernels(decoder_FD):
        from fairlead.dictionaries.triton_kernels import Decode

        return Decode.apply(pairs.value, pairs.token, pairs.latent, decoder_FD, pairs.num_tokens)  # type: ignore[return-value]
    return functional.embedding_bag(
        pairs.latent,
        decoder_FD,
        _starts(pairs.token, pairs.num_tokens),
        mode="sum",
        per_sample_weights=pairs.value.to(decoder_FD.dtype),
    )


def gather_dot(pairs: Pairs, left_ND: Tensor, rows_FD: Tensor) -> Tensor:
    """Inner product of `left[token]` and `rows[latent]` for every pair, `[P]`, without gathering either (no autograd).

    It is the gradient of `decode` in the pairs' values, and calls what torch calls for that.
    """
    if takes_kernels(rows_FD):
        from fairlead.dictionaries import triton_kernels

        return triton_kernels.gather_dot(pairs.token, pairs.latent, left_ND, rows_FD)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left_ND.contiguous(),
        rows_FD.contiguous(),
        pairs.latent,
        _starts(pairs.token, pairs.num_tokens),
        pairs.token,
        0,  # sum
    )


def _starts(sorted_index: Tensor, num: int) -> Tensor:
    """Where each of `num` runs of a sorted index begins."""
    counts = torch.bincount(sorted_index, minlength=num)
    return counts.cumsum(0) - counts


class Transposed(NamedTuple):
    """Latent-major order of `Pairs`, shared by all products with the same pattern."""

    order: Tensor
    offsets: Tensor
    token: Tensor


def transpose(pairs: Pairs, d_dict: int) -> Transposed:
    """Sort the pairs by latent (in the narrowest type: sorting takes a fifth of the time)."""
    narrow = pairs.latent.to(torch.int16 if d_dict <= 2**15 else torch.int32)
    order = torch.argsort(narrow, stable=True)
    counts = torch.bincount(pairs.latent, minlength=d_dict)
    return Transposed(order, counts.cumsum(0) - counts, pairs.token[order])


def transposed_product(layout: Transposed, value: Tensor, right_ND: Tensor) -> Tensor:
    """Sum over each latent's pairs of value times `right[token]`, `[F, D]`: the dense `acts.T @ right`."""
    if takes_kernels(right_ND):
        from fairlead.dictionaries.triton_kernels import segment_sum

        ends = torch.cat([layout.offsets[1:], layout.offsets.new_tensor([layout.token.numel()])])
        return segment_sum(layout.token, value[layout.order], ends - layout.offsets, right_ND)
    return functional.embedding_bag(
        layout.token,
        right_ND,
        layout.offsets,
        mode="sum",
        per_sample_weights=value[layout.order].to(right_ND.dtype),
    )
