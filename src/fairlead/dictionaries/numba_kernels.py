"""The products of `sparse` and the search of `selection` as compiled loops, for CPUs; imported only where numba is installed.

Shape suffixes as in `sparse`. torch spends most of a step's time on lists of pairs: an index here, a comparison there, each a pass of its
own over memory. A loop touches each pair once, while its rows lie in the cache. Sums are in float32 and do not depend on the number of
threads. The loops hold no lock, so that plain threads share the work (`core.threads`); numba's own are not used. They are compiled at
their first use, some seconds in all, and kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fairlead.core.threads import in_parts

_FEW = 64  # rows that are not worth a second thread
# Sums may be made in any order and with fused multiply-add; what is not a number stays so.
_HOW: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(function, cache=True, **_HOW)
    except RuntimeError:  # neither beside the source nor in the user's cache folder may anything be written
        return njit(function, **_HOW)


@_compiled
def _segment_sum(index, value, start, rows, out, first, last):
    for segment in range(first, last):
        total, place, end = out[segment], start[segment], start[segment + 1]
        total[:] = 0
        while place + 4 <= end:  # four rows at a time: the total is read and written a quarter as often
            one, two = rows[index[place]], rows[index[place + 1]]
            three, four = rows[index[place + 2]], rows[index[place + 3]]
            a, b, c, d = value[place], value[place + 1], value[place + 2], value[place + 3]
            for column in range(total.shape[0]):
                total[column] += a * one[column] + b * two[column] + c * three[column] + d * four[column]
            place += 4
        while place < end:
            row, factor = rows[index[place]], value[place]
            for column in range(total.shape[0]):
                total[column] += factor * row[column]
            place += 1


@_compiled
def _gather_dot(token, latent, left, rows, out, first, last):
    for pair in range(first, last):
        one, other = left[token[pair]], rows[latent[pair]]
        total = np.float32(0)
        for column in range(one.shape[0]):
            total += one[column] * other[column]
        out[pair] = total


@_compiled
def _by_latent(token, latent, num):
    start = np.zeros(num + 1, np.int64)
    for pair in range(latent.shape[0]):
        start[latent[pair] + 1] += 1
    for each in range(num):
        start[each + 1] += start[each]
    place = start[:-1].copy()
    order, tokens = np.empty_like(latent), np.empty_like(token)
    for pair in range(latent.shape[0]):
        here = place[latent[pair]]
        place[latent[pair]] = here + 1
        order[here], tokens[here] = pair, token[pair]
    return order, start, tokens


@_compiled
def _count(values, bound, start):
    for row in range(values.shape[0]):
        total = 0
        for column in range(values.shape[1]):
            total += values[row, column] >= bound[row]
        start[row + 1] = start[row] + total


@_compiled
def _columns_from(values, bound, hits):
    num = 0
    for column in range(values.shape[0]):  # without a branch: every column is written, a hit moves on
        hits[num] = column
        num += values[column] >= bound
    return num


@_compiled
def _list(values, bound, start, token, latent, value, first_token):
    hits = np.empty(values.shape[1] + 1, np.int32)
    for row in range(values.shape[0]):
        for hit in range(_columns_from(values[row], bound[row], hits)):
            place, column = start[row] + hit, hits[hit]
            token[place], latent[place], value[place] = first_token + row, column, values[row, column]


@_compiled
def _list_exact(values, bound, start, token, latent, value, first_token, left, rows, bias, seen):
    hits = np.empty(values.shape[1] + 1, np.int32)
    for row in range(values.shape[0]):
        one = left[first_token + row]
        for hit in range(_columns_from(values[row], bound[row], hits)):
            place, column = start[row] + hit, hits[hit]
            other, total = rows[column], np.float32(0)
            for each in range(one.shape[0]):
                total += one[each] * other[each]
            token[place], latent[place], value[place] = first_token + row, column, total + bias[column]
            seen[place] = np.int32(values[row, column]) << 16


@_compiled
def _worst(value, seen, base, share):
    worst = np.float32(0)
    for pair in range(value.shape[0]):
        worst = max(worst, abs(value[pair] - seen[pair]) / (base + share * abs(value[pair])))
    return worst


@_compiled
def _at_least(token, latent, value, bound):
    kept = 0
    for pair in range(value.shape[0]):
        kept += value[pair] >= bound
    tokens, latents = np.empty(kept + 1, token.dtype), np.empty(kept + 1, latent.dtype)
    values = np.empty(kept + 1, value.dtype)
    place = 0
    for pair in range(value.shape[0]):
        tokens[place], latents[place], values[place] = token[pair], latent[pair], value[pair]
        place += value[pair] >= bound
    return tokens[:kept], latents[:kept], values[:kept]


def segment_sum(index: Tensor, value: Tensor, start: Tensor, rows: Tensor) -> Tensor:
    """Sum over each segment's entries of value times `rows[index]`, `[segments, D]`.

    Args:
        index: `[P]` long, segment after segment.
        value: `[P]`.
        start: `[segments + 1]` where each segment begins, and P.
        rows: `[R, D]`.
    """
    out = torch.empty(start.shape[0] - 1, rows.shape[1])
    _share(_segment_sum, out.shape[0], index, value, start, rows, out)
    return out


def gather_dot(token: Tensor, latent: Tensor, left_ND: Tensor, rows_FD: Tensor) -> Tensor:
    """Inner product of `left[token]` and `rows[latent]` for every pair, `[P]`."""
    out = torch.empty(token.shape[0])
    _share(_gather_dot, out.shape[0], token, latent, left_ND, rows_FD, out)
    return out


def by_latent(token: Tensor, latent: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """The order that sorts pairs by latent, where each of `num` latents begins in it (and P), and the tokens in that order."""
    return _tensors(_by_latent(token.numpy(), latent.numpy(), num))


def entries_from(
    pre: Tensor,
    bound: Tensor,
    centred_ND: Tensor,
    weight_FD: Tensor,
    bias_F: Tensor,
    *,
    first_token: int,
    slack: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Token, latent, value and largest error of the entries of a block `[n, F]` from a bound on.

    Args:
        pre: Pre-activations in float32 or bfloat16; of those in bfloat16 the value is computed again in float32.
        bound: `[n]`, not negative, in the same type.
        centred_ND: What the pre-activations are made of, with `weight_FD` and `bias_F`.
        first_token: Number of the first row.
        slack: Errors are measured in units of `slack[0] + slack[1] * abs(value)`.
    """
    start = np.zeros(pre.shape[0] + 1, np.int64)
    low = pre.dtype == torch.bfloat16
    # numbers from zero on are ordered as the integers that they look like, and negative ones look negative
    values, least = ((each.view(torch.int16) if low else each).contiguous().numpy() for each in (pre, bound))
    _count(values, least, start)
    found = np.empty(start[-1], np.int64), np.empty(start[-1], np.int64), np.empty(start[-1], np.float32)
    worst = 0.0
    if low:
        seen = np.empty(start[-1], np.int32)
        inputs = (each.contiguous().numpy() for each in (centred_ND, weight_FD, bias_F))
        _list_exact(values, least, start, *found, first_token, *inputs, seen)
        worst = float(_worst(found[2], seen.view(np.float32), *slack))
    else:
        _list(values, least, start, *found, first_token)
    token, latent, value = _tensors(found)
    return token, latent, value, worst


def at_least(token: Tensor, latent: Tensor, value: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """The entries whose value is a bound or more."""
    return _tensors(_at_least(token.numpy(), latent.numpy(), value.numpy(), np.float32(bound)))


def _share(kernel: Callable[..., None], num: int, *given: Tensor | int) -> None:
    """Run a loop over `num` rows, in parts."""
    arrays = [each.contiguous().numpy() if isinstance(each, Tensor) else each for each in given]
    in_parts(lambda first, last: kernel(*arrays, first, last), num, at_least=_FEW)


def _tensors(arrays: tuple[np.ndarray, ...]) -> Any:
    return tuple(torch.from_numpy(array) for array in arrays)
