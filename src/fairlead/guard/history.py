"""Activations of spans that have not ended yet, for every row of a running batch, without a copy per row.

One buffer `[row, column, d]` per site; a pass writes one column for all rows. A row's span is a stretch of columns that ends at the
newest. The column before a span is kept with it (for the first token of an answer that of the prompt's last token), since some readouts
carry something over from the token before. Columns that no row needs any more are dropped when the buffer is full. What no row has
written is never read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairlead.core.claims import TokenSpan

_ROOM = 64


class History:
    """Columns of activations by site.

    Attributes:
        now: Columns written since the start; a row keeps the value at which its span began.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self.now = 0
        self._first = 0  # column that the buffer's column 0 is
        self._kept: dict[str, Tensor] = {}

    def push(self, values: Mapping[str, Tensor], starts: Sequence[int]) -> None:
        """Write a column.

        Args:
            values: `[row, d]` by site.
            starts: Per row the column at which its span began: what must be kept.
        """
        place = self.now - self._first
        if not self._kept or place == self._kept[self.sites[0]].shape[1]:
            self._make_room(values, starts)
            place = self.now - self._first
        for site in self.sites:
            self._kept[site][:, place] = values[site]
        self.now += 1

    def rewrite(self, site: str, values: Tensor) -> None:
        """Replace the newest columns of a site by `[row, column, d]`; of columns that are dropped already nothing is needed."""
        until = self.now - self._first
        num = min(values.shape[1], until)
        self._kept[site][:, until - num : until] = values[:, values.shape[1] - num :]

    def read(self, rows: Sequence[int], starts: Sequence[int]) -> tuple[dict[str, Tensor], list[TokenSpan]]:
        """Activations of the spans of some rows, each with the column before it, and where each span is.

        They stand one behind the other, `[1, seq, d]` by site: padding them to one width would have readouts compute for nothing.
        """
        lengths = [self.now - start + 1 for start in starts]
        ends = list(itertools.accumulate(lengths))
        row, shift = torch.tensor([rows, [self.now - self._first - end for end in ends]]).repeat_interleave(
            torch.tensor(lengths), dim=1
        )
        column = torch.arange(ends[-1]) + shift
        activations = {site: values[row, column][None] for site, values in self._kept.items()}
        spans = [TokenSpan(0, end - length + 1, end) for length, end in zip(lengths, ends, strict=True)]
        return activations, spans

    def select(self, keep: Tensor) -> None:
        """Only these rows go on."""
        self._kept = {site: values[keep] for site, values in self._kept.items()} if len(keep) else {}

    def newest(self, num: int) -> dict[str, Tensor]:
        """The newest columns of all rows, `[row, num, d]` by site."""
        until = self.now - self._first
        return {site: values[:, until - num : until] for site, values in self._kept.items()}

    def join(self, values: Mapping[str, Tensor]) -> None:
        """New rows at the end, with the activations `[row, d]` of their prompts' last tokens as the newest column."""
        if not self._kept:
            num = len(next(iter(values.values())))
            self.push(values, [self.now] * num)
            return
        place = self.now - self._first - 1
        for site, kept in self._kept.items():
            fresh = kept.new_empty(len(values[site]), *kept.shape[1:])
            fresh[:, place] = values[site]
            self._kept[site] = torch.cat([kept, fresh])

    def _make_room(self, values: Mapping[str, Tensor], starts: Sequence[int]) -> None:
        first = max(self._first, min(min(starts), self.now) - 1) if self._kept else self.now
        held = self.now - first
        for site in self.sites:
            fresh = values[site].new_empty(len(values[site]), max(_ROOM, 2 * held), values[site].shape[-1])
            if held:
                fresh[:, :held] = self._kept[site][:, first - self._first : self.now - self._first]
            self._kept[site] = fresh
        self._first = first
