"""Which latents are active, found without keeping the dense pre-activations `[N, F]`.

Shape suffixes: N tokens, F latents, D d_model, C candidate pairs.

The pre-activations are made a block of tokens at a time, in a buffer that stays in the cache; of each block only the entries above a
floor are kept (candidates), and the exact selection is made among those. Where a matmul in bfloat16 is much faster (AMX, tensor cores) it
only *screens*: every candidate's pre-activation is computed again in float32, entry by entry, and the selection is made on these. That it
missed nothing is checked by the candidates themselves: the largest difference between their two values has to be smaller than the
gap between what is kept and what was screened out, else the search is made again in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.processes import gather
from fairlead.dictionaries.sparse import Pairs, gather_dot

_BLOCK_ENTRIES = 1 << 21  # pre-activations in memory at once on a CPU
_BLOCK_ENTRIES_CUDA = 1 << 27
_SAMPLE_TOKENS = (16, 64)  # at least and at most, from which a floor is guessed
_GAIN = 0.6  # bfloat16 is used below this share of the time in float32


class Candidates(NamedTuple):
    """Entries of the pre-activations that may be active, sorted by token.

    Attributes:
        token: `[C]` long.
        latent: `[C]` long.
        value: `[C]` float32, as accurate as the screening.
    """

    token: Tensor
    latent: Tensor
    value: Tensor


class Encoder(NamedTuple):
    """What makes pre-activations `centred @ weight.T + bias`.

    Attributes:
        centred_ND: Activations minus `b_dec`, float32.
        weight_FD: Encoder, one row a latent, contiguous.
        bias_F: Its bias.
        screen: Type in which candidates are looked for.
    """

    centred_ND: Tensor
    weight_FD: Tensor
    bias_F: Tensor
    screen: torch.dtype = torch.float32

    def exact(self) -> Encoder:
        """The same, screening in float32."""
        return self._replace(screen=torch.float32)

    def values(self, found: Candidates) -> Tensor:
        """Pre-activations of the candidates in float32, `[C]`."""
        pairs = Pairs(found.token, found.latent, found.value, self.centred_ND.shape[0])
        return gather_dot(pairs, self.centred_ND, self.weight_FD) + self.bias_F[found.latent]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First token and pre-activations `[n, F]` of each block; the buffer is used again for the next."""
        num, width = self.centred_ND.shape[0], self.weight_FD.shape[0]
        entries = _BLOCK_ENTRIES_CUDA if self.centred_ND.is_cuda else _BLOCK_ENTRIES
        size = max(1, min(num, max(16, entries // width)))
        x, weight, bias = (part.to(self.screen) for part in (self.centred_ND, self.weight_FD.T, self.bias_F))
        buffer = torch.empty(size, width, dtype=self.screen, device=x.device)
        for start in range(0, num, size):
            part = x[start : start + size]
            yield start, torch.addmm(bias, part, weight, out=buffer[: part.shape[0]])


@cache
def _low_precision_pays(kind: str) -> bool:
    """Whether a bfloat16 matmul of a block's size takes clearly less time here than one in float32 (measured once)."""
    device = torch.device(kind)
    left, right = torch.randn(256, 128, device=device), torch.randn(128, 1024, device=device)
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, other = left.to(dtype), right.to(dtype)
        runs = []
        for _ in range(6):
            start = time.perf_counter()
            torch.mm(one, other)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs[1:])
    return seconds[torch.bfloat16] < _GAIN * seconds[torch.float32]


def screening_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Type of the screening matmul for `DictionaryConfig.precision` on a device."""
    if precision == "auto":
        precision = "bfloat16" if _low_precision_pays(device.type) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def batch_pairs(encoder: Encoder, num_pairs: int, *, together: bool = False) -> Pairs:
    """The `num_pairs` largest positive pre-activations of the batch (BatchTopK, arXiv 2412.06410).

    Equals `sparse.batch_topk` on the dense pre-activations up to the rounding of float32; ties at the smallest value may keep a
    few more. The floor is a guess from some tokens, lowered where it was too high.

    Args:
        together: The batch is spread over the processes: of all their entries, the largest of the sum of their `num_pairs` are kept.
    """
    everyone = gather if together else _alone
    num_tokens = encoder.centred_ND.shape[0]
    sample = min(num_tokens, max(_SAMPLE_TOKENS[0], min(num_tokens // 16, _SAMPLE_TOKENS[1])))
    guess = sampled_cut(encoder, num_pairs / max(1, num_tokens), num_tokens=sample)
    guess = sum(everyone(guess * num_tokens)) / max(1, sum(everyone(num_tokens)))
    num_pairs = sum(everyone(num_pairs))
    for floor in (0.9 * guess, 0.7 * guess, 0.0):
        found = above(encoder, floor)
        num_found = sum(everyone(found.value.numel()))
        if num_found >= num_pairs or floor == 0.0:
            break
    if encoder.screen == torch.float32:
        return _kept(found, _cut_of_all(found.value, num_pairs, everyone), encoder)
    close, cut, sure = found, 0.0, False
    if floor > 0.0 or num_found > 2 * num_pairs:  # else rounding decides what is positive
        low = _cut_of_all(found.value, num_pairs, everyone)
        border = low - _slack(low)
        near = where(_at_least(found.value, torch.tensor(max(border, 0.0))))
        close = Candidates(found.token[near], found.latent[near], found.value[near])
        value = encoder.values(close)
        cut = _cut_of_all(value, num_pairs, everyone)
        worst = max(everyone(_worst(value, close.value)))
        sure = cut >= max(border, floor) + worst * _slack(cut)
        close = close._replace(value=value)
    if not sure:
        return _kept_exactly(encoder, num_pairs, everyone)
    return _kept(close, cut, encoder)


def _kept_exactly(encoder: Encoder, num_pairs: int, everyone: Callable[[Any], list[Any]]) -> Pairs:
    """The selection made in float32 from zero on; rare."""
    found = above(encoder.exact(), 0.0)
    return _kept(found, _cut_of_all(found.value, num_pairs, everyone), encoder)


def _alone(value: Any) -> list[Any]:
    return [value]


def _cut_of_all(value: Tensor, num: int, everyone: Callable[[Any], list[Any]]) -> float:
    """The `num`-th largest value of all processes."""
    parts = everyone(value)
    return cut_of(value if len(parts) == 1 else torch.cat([part.to(value.device) for part in parts]), num)


def row_pairs(encoder: Encoder, k: int) -> Pairs:
    """Every token's `k` largest positive pre-activations (TopK, arXiv 2406.04093), in no order within a token.

    Equals `topk` on the dense pre-activations up to the rounding of float32, ties aside.

    The floor of a token is the k-th largest of the maxima of disjoint groups of latents: k entries at least are that large.
    """
    width = encoder.weight_FD.shape[0]
    group = min(16, width // (4 * k))
    num = encoder.centred_ND.shape[0]
    if group < 2 or num == 0 or encoder.centred_ND.is_cuda:
        return _dense_row_pairs(encoder.exact(), k)
    floors, parts = [], [_no_candidates(encoder)]
    for start, pre in encoder.blocks():
        most = pre[:, : width // group * group].view(pre.shape[0], group, -1).amax(1)
        bound = most.float().topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        if encoder.screen != torch.float32:
            bound -= _slack(bound)
        bound = bound.clamp_min(0.0).to(pre.dtype)
        index = where(_at_least(pre, bound))
        parts.append(_split(index, width, start, pre))
        floors.append(bound.float())
    found = Candidates(*(torch.cat(part) for part in zip(*parts, strict=True)))
    value = found.value
    if encoder.screen != torch.float32:
        value = encoder.values(found)
    counts = torch.bincount(found.token, minlength=num)
    starts = counts.cumsum(0) - counts
    padded = value.new_full((num, max(k, int(counts.max()))), -torch.inf)
    place = torch.arange(value.numel(), device=value.device) - starts[found.token]
    padded[found.token, place] = value
    kept, rank = padded.topk(k, dim=-1, sorted=False)
    if encoder.screen != torch.float32:
        cut = kept.amin(-1, keepdim=True)
        if bool((cut < torch.cat(floors) + _worst(value, found.value) * _slack(cut)).any()):
            return row_pairs(encoder.exact(), k)  # also where a token has fewer than k positive ones
    token, column = (kept > 0).nonzero(as_tuple=True)
    return Pairs(token, found.latent[starts[token] + rank[token, column]], kept[token, column], num)


def _dense_row_pairs(encoder: Encoder, k: int) -> Pairs:
    parts = [_no_candidates(encoder)]
    for start, pre in encoder.blocks():
        value, latent = pre.topk(k, dim=-1)
        token, rank = (value > 0).nonzero(as_tuple=True)
        parts.append((token + start, latent[token, rank], value[token, rank]))
    token, latent, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return Pairs(token, latent, value, encoder.centred_ND.shape[0])


def above(encoder: Encoder, floor: float) -> Candidates:
    """All entries from a floor on; from just above zero where the floor is zero."""
    width = encoder.weight_FD.shape[0]
    lowest = torch.tensor(max(floor, torch.finfo(torch.float32).tiny))
    parts = [_no_candidates(encoder)]
    for start, pre in encoder.blocks():
        index = where(_at_least(pre, lowest.to(pre)))
        parts.append(_split(index, width, start, pre))
    return Candidates(*(torch.cat(part) for part in zip(*parts, strict=True)))


def sampled_cut(encoder: Encoder, per_token: float, *, num_tokens: int) -> float:
    """The pre-activation above which `per_token` latents a token are, on the first tokens of the batch; 0 where fewer are positive."""
    few = encoder.exact()._replace(centred_ND=encoder.centred_ND[:num_tokens])
    value = torch.cat([few.bias_F[:0], *(pre.reshape(-1).clone() for _, pre in few.blocks())])
    return max(cut_of(value, max(1, round(per_token * few.centred_ND.shape[0]))), 0.0)


def cut_of(value: Tensor, num: int) -> float:
    """The `num`-th largest value; minus infinity where there are fewer."""
    if num > value.numel() or num < 1:
        return -float("inf")
    place = value.numel() - num
    if value.is_cuda:
        return float(torch.kthvalue(value, place + 1).values)
    return float(np.partition(value.numpy(), place)[place])  # several times faster than torch's


def where(mask: Tensor) -> Tensor:
    """Indices at which a mask is set, flat, ascending."""
    if mask.is_cuda:
        return mask.reshape(-1).nonzero().squeeze(-1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than torch's


def _at_least(pre: Tensor, bound: Tensor) -> Tensor:
    """`pre >= bound` for non-negative bounds; numpy compares about ten times faster than torch on a CPU.

    Numpy has no bfloat16, but those from zero on are ordered as the integers that they look like, and negative ones look negative.
    """
    if pre.is_cuda:
        return pre >= bound
    if pre.dtype == torch.bfloat16:
        pre, bound = pre.view(torch.int16), bound.view(torch.int16)
    return torch.from_numpy(np.greater_equal(pre.numpy(), bound.numpy()))


def _no_candidates(encoder: Encoder) -> tuple[Tensor, Tensor, Tensor]:
    """Where a process holds no token of a batch, nothing else is found."""
    none = torch.zeros(0, dtype=torch.long, device=encoder.bias_F.device)
    return none, none, encoder.bias_F[:0]


def _split(index: Tensor, width: int, start: int, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    token = torch.div(index, width, rounding_mode="floor")
    return token + start, index - token * width, pre.reshape(-1).take(index).float()


def _slack(cut: Any) -> Any:
    """How far below a cut to look when values are rounded: inputs have entries of about 1, encoder rows a norm of about 1."""
    return 0.02 + 0.02 * abs(cut)


def _worst(exact: Tensor, rounded: Tensor) -> float:
    """The largest difference between the two values of a candidate, in units of `_slack`."""
    if exact.numel() == 0:
        return 0.0
    return float(((exact - rounded).abs() / _slack(exact)).max())


def _kept(found: Candidates, cut: float, encoder: Encoder) -> Pairs:
    keep = where(_at_least(found.value, torch.tensor(max(cut, torch.finfo(torch.float32).tiny))))
    return Pairs(found.token[keep], found.latent[keep], found.value[keep], encoder.centred_ND.shape[0])
