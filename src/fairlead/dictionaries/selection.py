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
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.processes import gather
from fairlead.core.threads import in_parts, num_plain_threads
from fairlead.dictionaries.sparse import Pairs, gather_dot, loops, starts

_BLOCK_ENTRIES = 1 << 21  # pre-activations in memory at once on a CPU
_BLOCK_ENTRIES_CUDA = 1 << 27
_SAMPLE_TOKENS = (16, 64)  # at least and at most, from which a floor is guessed
_FEW = 64  # tokens that are not worth a second thread
_SLACK = (0.02, 0.02)  # and of the value
_GAIN = 0.6  # bfloat16 is used below this share of the time in float32


class Candidates(NamedTuple):
    """Entries of the pre-activations that may be active, sorted by token.

    Attributes:
        token: `[C]` long.
        latent: `[C]` long.
        value: `[C]` in float32 accuracy, whatever looked for them.
        worst: The largest difference between a value and what the screening saw, in units of `_slack`.
    """

    token: Tensor
    latent: Tensor
    value: Tensor
    worst: float = 0.0


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

    def at_least(self, pre: Tensor, bound: Tensor, first_token: int) -> Candidates:
        """A block's entries that are at least their token's non-negative bound `[n, 1]` (of the type of `pre`)."""
        if (compiled := loops(pre)) is not None:
            inputs = (self.centred_ND, self.weight_FD, self.bias_F)
            return Candidates(
                *compiled.entries_from(pre, bound[:, 0], *inputs, first_token=first_token, slack=_SLACK)
            )
        index = where(_ordered(pre) >= _ordered(bound))
        token = torch.div(index, pre.shape[1], rounding_mode="floor")
        latent, seen = index - token * pre.shape[1], pre.reshape(-1).take(index).float()
        token += first_token
        if self.screen == torch.float32:
            return Candidates(token, latent, seen)
        near = Pairs(token - first_token, latent, seen, pre.shape[0])
        value = gather_dot(near, self.centred_ND[first_token : first_token + pre.shape[0]], self.weight_FD)
        value += self.bias_F[latent]
        worst = float(((value - seen).abs() / _slack(value)).max()) if value.numel() else 0.0
        return Candidates(token, latent, value, worst)

    def blocks(self, look: Callable[[int, Tensor], Any]) -> list[Any]:
        """What `look` makes of each block, in order: it gets the first token and the pre-activations `[n, F]`.

        The buffer is used again for the next block. Blocks are shared out among threads (`core.threads`).
        """
        num, width = self.centred_ND.shape[0], self.weight_FD.shape[0]
        entries = _BLOCK_ENTRIES_CUDA if self.centred_ND.is_cuda else _BLOCK_ENTRIES // num_plain_threads()
        size = max(1, min(num, max(16, entries // width)))
        x, weight, bias = (part.to(self.screen) for part in (self.centred_ND, self.weight_FD.T, self.bias_F))

        def part_of(first: int, last: int) -> list[Any]:
            buffer = torch.empty(min(size, last - first), width, dtype=self.screen, device=x.device)
            found = []
            with torch.no_grad():  # a setting of each thread
                for start in range(first, last, size):
                    part = x[start : min(start + size, last)]
                    found.append(look(start, torch.addmm(bias, part, weight, out=buffer[: part.shape[0]])))
            return found

        return [found for part in in_parts(part_of, num, at_least=_FEW) for found in part]


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
    cut = _cut_of_all(found.value, num_pairs, everyone)
    worst = max(everyone(found.worst))
    if encoder.screen != torch.float32 and not cut >= floor + worst * _slack(cut):
        found = above(encoder.exact(), 0.0)  # rare
        cut = _cut_of_all(found.value, num_pairs, everyone)
    return Pairs(*_from(found, cut), num_tokens)


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

    def look(start: int, pre: Tensor) -> tuple[Tensor, Candidates]:
        most = pre[:, : width // group * group].view(pre.shape[0], group, -1).amax(1)
        bound = most.float().topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        if encoder.screen != torch.float32:
            bound -= _slack(bound)
        bound = bound.clamp_min(0.0).to(pre.dtype)
        return bound.float(), encoder.at_least(pre, bound, start)

    floors, parts = zip(*encoder.blocks(look), strict=True)
    found = _joined(parts)
    first = starts(found.token, num)
    padded = found.value.new_full((num, max(k, int(first.diff().max()))), -torch.inf)
    place = torch.arange(found.value.numel(), device=padded.device) - first[found.token]
    padded[found.token, place] = found.value
    kept, rank = padded.topk(k, dim=-1, sorted=False)
    if encoder.screen != torch.float32:
        cut = kept.amin(-1, keepdim=True)
        if bool((cut < torch.cat(floors) + found.worst * _slack(cut)).any()):
            return row_pairs(encoder.exact(), k)  # also where a token has fewer than k positive ones
    token, column = (kept > 0).nonzero(as_tuple=True)
    return Pairs(token, found.latent[first[token] + rank[token, column]], kept[token, column], num)


def _dense_row_pairs(encoder: Encoder, k: int) -> Pairs:
    def look(start: int, pre: Tensor) -> Candidates:
        value, latent = pre.topk(k, dim=-1)
        token, rank = (value > 0).nonzero(as_tuple=True)
        return Candidates(token + start, latent[token, rank], value[token, rank])

    found = _joined([_no_candidates(encoder), *encoder.blocks(look)])
    return Pairs(found.token, found.latent, found.value, encoder.centred_ND.shape[0])


def above(encoder: Encoder, floor: float) -> Candidates:
    """All entries from a floor on (as the screening sees them); from just above zero where the floor is zero."""
    lowest = torch.tensor(max(floor, torch.finfo(torch.float32).tiny))

    def look(start: int, pre: Tensor) -> Candidates:
        return encoder.at_least(pre, lowest.to(pre).expand(pre.shape[0], 1), start)

    return _joined([_no_candidates(encoder), *encoder.blocks(look)])


def sampled_cut(encoder: Encoder, per_token: float, *, num_tokens: int) -> float:
    """The pre-activation above which `per_token` latents a token are, on the first tokens of the batch; 0 where fewer are positive."""
    few = encoder.exact()._replace(centred_ND=encoder.centred_ND[:num_tokens])
    value = torch.cat([few.bias_F[:0], *few.blocks(lambda _, pre: pre.reshape(-1).clone())])
    return max(cut_of(value, max(1, round(per_token * few.centred_ND.shape[0]))), 0.0)


def cut_of(value: Tensor, num: int) -> float:
    """The `num`-th largest value; minus infinity where there are fewer."""
    if num > value.numel() or num < 1:
        return -float("inf")
    place = value.numel() - num
    if value.is_cuda:
        return float(torch.kthvalue(value, place + 1).values)
    return float(np.partition(value.numpy(), place)[place])  # several times faster than torch's


def where(mask: Any) -> Tensor:
    """Indices at which a mask (a tensor's, or numpy's) is set, flat, ascending."""
    if isinstance(mask, Tensor) and mask.is_cuda:
        return mask.reshape(-1).nonzero().squeeze(-1)
    return torch.from_numpy(np.flatnonzero(mask))  # several times faster than torch's


def _ordered(value: Tensor) -> Any:
    """What is compared: on a CPU numpy does it about ten times faster than torch.

    Numpy has no bfloat16, but those from zero on are ordered as the integers that they look like, and negative ones look negative.
    """
    if value.is_cuda:
        return value
    return value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def _from(found: Candidates, cut: float) -> tuple[Tensor, Tensor, Tensor]:
    """Token, latent and value of the candidates from a cut on, which are positive."""
    cut = max(cut, torch.finfo(torch.float32).tiny)
    if (compiled := loops(found.value)) is not None:
        return compiled.at_least(found.token, found.latent, found.value, cut)
    keep = where(_ordered(found.value) >= cut)
    return found.token[keep], found.latent[keep], found.value[keep]


def _joined(parts: Sequence[Candidates]) -> Candidates:
    token, latent, value, worst = zip(*parts, strict=True)
    return Candidates(torch.cat(token), torch.cat(latent), torch.cat(value), max(worst))


def _no_candidates(encoder: Encoder) -> Candidates:
    """Where a process holds no token of a batch, nothing else is found."""
    none = torch.zeros(0, dtype=torch.long, device=encoder.bias_F.device)
    return Candidates(none, none, encoder.bias_F[:0])


def _slack(cut: Any) -> Any:
    """How far below a cut to look when values are rounded: inputs have entries of about 1, encoder rows a norm of about 1."""
    return _SLACK[0] + _SLACK[1] * abs(cut)
