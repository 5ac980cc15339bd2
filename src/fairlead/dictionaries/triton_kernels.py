"""The products of `sparse` as Triton kernels, for CUDA; imported only where triton is installed.

Shape suffixes as in `sparse`. Sums are in float32, in the order of the pairs, without atomics, so that a result does not depend on how the
device schedules them. The tests run the kernels in Triton's interpreter on a CPU against the functions of `sparse`; on a GPU they have been
neither run nor timed.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_COLUMNS = 256
_PAIRS = 16


@triton.jit
def _segment_sum(index, value, start, rows, out, width, COLUMNS: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    first = tl.load(start + segment)
    last = tl.load(start + segment + 1)
    for place in range(first, last):
        row = tl.load(index + place)
        part = tl.load(rows + row * width + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(value + place).to(tl.float32) * part
    tl.store(out + segment * width + column, total, mask=inside)


@triton.jit
def _gather_dot(token, latent, left, rows, out, num, width, PAIRS: tl.constexpr, COLUMNS: tl.constexpr):
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    there = pair < num
    one = tl.load(token + pair, mask=there, other=0)
    other = tl.load(latent + pair, mask=there, other=0)
    total = tl.zeros((PAIRS,), dtype=tl.float32)
    for begin in range(0, width, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        inside = there[:, None] & (column < width)[None, :]
        first = tl.load(left + one[:, None] * width + column[None, :], mask=inside, other=0.0)
        second = tl.load(rows + other[:, None] * width + column[None, :], mask=inside, other=0.0)
        total += tl.sum(first.to(tl.float32) * second.to(tl.float32), axis=1)
    tl.store(out + pair, total, mask=there)


def segment_sum(index: Tensor, value: Tensor, start: Tensor, rows: Tensor) -> Tensor:
    """Sum over each segment's entries of value times `rows[index]`, `[segments, D]`.

    Args:
        index: `[P]` long, segment after segment.
        value: `[P]`.
        start: `[segments + 1]` where each segment begins, and P.
        rows: `[R, D]`.
    """
    rows, num = rows.contiguous(), start.shape[0] - 1
    out = torch.empty(num, rows.shape[1], dtype=rows.dtype, device=rows.device)
    if not out.numel():
        return out
    grid = (num, triton.cdiv(rows.shape[1], _COLUMNS))
    _segment_sum[grid](  # type: ignore[index]
        index, value, start, rows, out, rows.shape[1], COLUMNS=_COLUMNS
    )
    return out


def gather_dot(token: Tensor, latent: Tensor, left_ND: Tensor, rows_FD: Tensor) -> Tensor:
    """Inner product of `left[token]` and `rows[latent]` for every pair, `[P]`."""
    left_ND, rows_FD = left_ND.contiguous(), rows_FD.contiguous()
    out = torch.empty(token.shape[0], dtype=left_ND.dtype, device=left_ND.device)
    if out.numel():
        grid = (triton.cdiv(token.shape[0], _PAIRS),)
        _gather_dot[grid](  # type: ignore[index]
            token,
            latent,
            left_ND,
            rows_FD,
            out,
            token.shape[0],
            left_ND.shape[1],
            PAIRS=_PAIRS,
            COLUMNS=_COLUMNS,
        )
    return out
