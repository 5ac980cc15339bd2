"""Sparse activations in token-major order, and the three products a dictionary step needs.

Shape suffixes: N tokens, F latents (d_dict), D d_model, P active (token, latent) pairs.

A dense backward of the decoder costs N F D; with P = N k pairs the same numbers cost P D (METHODS.md, "Where a dictionary
step spends its time"): `decode` sums decoder rows per token, `gather_dot` is the gradient of the pair values, and
`transposed_product` the gradient of the decoder, as a product with the transposed (latent-major) matrix. Where installed, kernels of
Fairlead's own do the three: with numba on a CPU (`numba_kernels`), with triton on CUDA (`triton_kernels`; tested in Triton's interpreter,
not yet timed on a GPU). Everywhere else torch's `embedding_bag` does.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

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


def kernels(rows: Tensor) -> Any:
    """The module whose kernels do these products on the rows' device and type; None where torch does them."""
    if rows.is_cuda:
        return _installed("triton")
    return loops(rows) if rows.dtype == torch.float32 else None


def loops(value: Tensor) -> Any:
    """The kernels of numba, which can also sort and search; None off the CPU and where numba is not installed."""
    return _installed("numba") if value.device.type == "cpu" else None


@cache
def _installed(compiler: str) -> Any:
    return import_module(f"{__package__}.{compiler}_kernels") if find_spec(compiler) is not None else None


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
    if kernels(decoder_FD) is not None:
        return _Decode.apply(pairs.value, pairs.token, pairs.latent, decoder_FD, pairs.num_tokens)  # type: ignore[return-value]
    return functional.embedding_bag(
        pairs.latent,
        decoder_FD,
        starts(pairs.token, pairs.num_tokens),
        mode="sum",
        per_sample_weights=pairs.value.to(decoder_FD.dtype),
        include_last_offset=True,
    )


class _Decode(torch.autograd.Function):
    """`decode` by kernels, with gradients in the pairs' values and the decoder."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, token: Tensor, latent: Tensor, rows: Tensor, num: int) -> Tensor:
        """`[num, D]`."""
        ctx.save_for_backward(value, token, latent, rows)
        return kernels(rows).segment_sum(latent, value.to(rows.dtype), starts(token, num), rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `value` and `rows`."""
        value, token, latent, rows = ctx.saved_tensors
        pairs = Pairs(token, latent, value, grads[0].shape[0])
        by_value = by_rows = None
        if ctx.needs_input_grad[0]:
            by_value = gather_dot(pairs, grads[0], rows).to(value.dtype)
        if ctx.needs_input_grad[3]:
            by_rows = transposed_product(transpose(pairs, rows.shape[0]), value, grads[0]).to(rows.dtype)
        return by_value, None, None, by_rows, None


def gather_dot(pairs: Pairs, left_ND: Tensor, rows_FD: Tensor) -> Tensor:
    """Inner product of `left[token]` and `rows[latent]` for every pair, `[P]`, without gathering either (no autograd).

    It is the gradient of `decode` in the pairs' values, and calls what torch calls for that where no kernel does it.
    """
    if (compiled := kernels(rows_FD)) is not None:
        return compiled.gather_dot(pairs.token, pairs.latent, left_ND.to(rows_FD.dtype), rows_FD)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left_ND.contiguous(),
        rows_FD.contiguous(),
        pairs.latent,
        starts(pairs.token, pairs.num_tokens)[:-1],
        pairs.token,
        0,  # sum
    )


def starts(sorted_index: Tensor, num: int) -> Tensor:
    """Where each of `num` runs of a sorted index begins, and where the last ends, `[num + 1]`."""
    return torch.searchsorted(sorted_index, torch.arange(num + 1, device=sorted_index.device))


class Transposed(NamedTuple):
    """Latent-major order of `Pairs`, shared by all products with the same pattern.

    Attributes:
        order: `[P]` places of the pairs, latent after latent.
        start: `[F + 1]` where each latent begins in it, and P.
        token: `[P]` tokens in that order.
    """

    order: Tensor
    start: Tensor
    token: Tensor


def transpose(pairs: Pairs, d_dict: int) -> Transposed:
    """Sort the pairs by latent."""
    if (compiled := loops(pairs.value)) is not None:
        return Transposed(*compiled.by_latent(pairs.token, pairs.latent, d_dict))
    narrow = pairs.latent.to(torch.int16 if d_dict <= 2**15 else torch.int32)  # sorted in a fifth of the time
    order = torch.argsort(narrow, stable=True)
    return Transposed(order, starts(pairs.latent[order], d_dict), pairs.token[order])


def transposed_product(layout: Transposed, value: Tensor, right_ND: Tensor) -> Tensor:
    """Sum over each latent's pairs of value times `right[token]`, `[F, D]`: the dense `acts.T @ right`."""
    if value.is_cuda:
        in_order = value[layout.order]
    else:
        in_order = torch.from_numpy(value.detach().numpy()[layout.order.numpy()])  # a third of torch's time
    in_order = in_order.to(right_ND.dtype)
    if (compiled := kernels(right_ND)) is not None:
        return compiled.segment_sum(layout.token, in_order, layout.start, right_ND)
    return functional.embedding_bag(
        layout.token,
        right_ND,
        layout.start,
        mode="sum",
        per_sample_weights=in_order,
        include_last_offset=True,
    )
