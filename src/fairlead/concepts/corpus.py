"""A corpus read piece by piece: rows become tokens when they are asked for, and stretches of text are numbered.

A *stretch* is what examples and labels are about: a whole text, or, where a text is longer than `window` tokens, a window of it.
Its number is `row * MAX_WINDOWS + window`, the same in every pass, so that a harvest keeps numbers instead of texts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.data import Batch, ChatData, Encoded, Row, encode, iter_batches
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

MAX_WINDOWS = 1 << 16
WINDOW = 128
_CHUNK = 512
_KEPT_TOKENS = 4_000_000
_NOTHING = Encoded([], [], 0, Row(text=""))
_CELLS = 24_000_000  # numbers in one [stretch, token, concept] block


class Corpus(Sequence[Encoded]):
    """The rows of a data set as tokens; of those, some millions are kept, the first that were read go first.

    Args:
        data: Rows, or encodings that are there already.
        model: Whose tokenizer and limit apply.
        max_length: Longer rows are cut; None: the model's limit.
        max_rows: Use the first so many rows.
    """

    def __init__(
        self,
        data: ChatData | Sequence[Encoded],
        model: Model,
        *,
        max_length: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        self._rows = data.rows if isinstance(data, ChatData) else data
        self._source = data.source if isinstance(data, ChatData) else "rows"
        self._tokenizer = model.tokenizer
        self._max_length = max_length or model.max_length
        self._num = min(len(self._rows), max_rows or len(self._rows))
        self._kept: OrderedDict[int, Encoded] = OrderedDict()
        self._room = 0

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]
        if not 0 <= index < self._num:
            raise IndexError(index)
        if index not in self._kept:
            ahead = _CHUNK if index == 0 or index - 1 in self._kept else 1  # read on, or look one up
            stop = min(index + ahead, self._num)
            for row in self._read(index, stop):
                self._room += len(row.input_ids) - len(self._kept.pop(row.index, _NOTHING).input_ids)
                self._kept[row.index] = row
            while self._room > _KEPT_TOKENS and len(self._kept) > ahead:
                self._room -= len(self._kept.popitem(last=False)[1].input_ids)
        return self._kept[index]

    def _read(self, start: int, stop: int) -> list[Encoded]:
        found = [row for row in self._rows[start:stop] if isinstance(row, Encoded)]
        if not found:
            rows = [row for row in self._rows[start:stop] if isinstance(row, Row)]
            data = ChatData(rows, self._source)
            found = encode(data, self._tokenizer, max_length=self._max_length, on_long="truncate")
        return [replace(row, index=start + place) for place, row in enumerate(found)]


class Stretch(NamedTuple):
    """Tokens of one stretch with their mask of answer tokens."""

    ids: list[int]
    response: list[bool]


def read_stretch(corpus: Sequence[Encoded], number: int, window: int) -> Stretch:
    """The stretch of a number."""
    row, place = divmod(int(number), MAX_WINDOWS)
    text = corpus[row]
    where = slice(place * window, (place + 1) * window)
    return Stretch(text.input_ids[where], text.loss_mask[where])


class Block(NamedTuple):
    """Some stretches read by the model and the dictionary.

    Attributes:
        numbers: `[stretch]` their numbers.
        acts: `[stretch, token, concept]` activations of concepts, 0 where not used.
        used: `[stretch, token]` real tokens but the first of each text.
        response: `[stretch, token]` answer tokens among them.
        hidden: `[stretch, token, d]` what the dictionary read.
    """

    numbers: Tensor
    acts: Tensor
    used: Tensor
    response: Tensor
    hidden: Tensor


class GroupSums:
    """Sums of latents by concept, as an index per latent: cheap for many concepts.

    Args:
        groups: Latents of each concept, disjoint.
        d_dict: Latents of the dictionary.
    """

    def __init__(self, groups: Sequence[Sequence[int]], d_dict: int) -> None:
        self.num = len(groups)
        self.column = torch.full((d_dict,), self.num, dtype=torch.long)
        for place, group in enumerate(groups):
            self.column[list(group)] = place

    def __call__(self, acts: Tensor) -> Tensor:
        """`[..., concept]` of activations `[..., latent]`."""
        flat = acts.reshape(-1, acts.shape[-1])
        out = torch.zeros(flat.shape[0], self.num + 1, dtype=flat.dtype, device=flat.device)
        out.index_add_(1, self.column.to(flat.device), flat)
        return out[:, : self.num].reshape(*acts.shape[:-1], self.num)


def stretches_of(rows: Sequence[Encoded], window: int) -> list[int]:
    """Numbers of the stretches of some rows (by their `index`); a tail of a single token is left out."""
    found = []
    for row in rows:
        num = -(-len(row.input_ids) // window)
        found += [
            row.index * MAX_WINDOWS + place for place in range(num) if len(row.input_ids) - place * window > 1
        ]
    return found


@torch.no_grad()
def iter_blocks(
    model: Model, dictionary: Dictionary, rows: Sequence[Encoded], sums: GroupSums, *, window: int = WINDOW
) -> Iterator[Block]:
    """Blocks of all stretches of some rows; long rows are read whole and cut after the model.

    Memory is bounded by `_CELLS` numbers, whatever the number of rows and concepts.
    """
    longest = max((len(row.input_ids) for row in rows), default=1)
    width = max(sums.num, dictionary.d_dict)
    batch_size = int(np.clip(_CELLS // max(1, longest * width), 1, 64))
    for batch in iter_batches(rows, batch_size=batch_size, pad_id=model.pad_id):
        hidden = model.capture(batch, [dictionary.site])[str(dictionary.site)]
        used = batch.attention_mask.bool().clone()
        used[:, 0] = False
        for start in range(0, hidden.shape[1], window):
            yield _block(batch, hidden, used, dictionary, sums, start, window)


def _block(
    batch: Batch,
    hidden: Tensor,
    used: Tensor,
    dictionary: Dictionary,
    sums: GroupSums,
    start: int,
    window: int,
) -> Block:
    part = slice(start, start + window)
    there = used[:, part].any(1)
    used_here = used[there, part]
    hidden_here = hidden[there.to(hidden.device), part]
    acts = sums(dictionary.strengths(dictionary.encode(hidden_here))).float().cpu() * used_here[..., None]
    numbers = batch.index[there] * MAX_WINDOWS + start // window
    return Block(numbers, acts, used_here, used_here & batch.loss_mask[there, part], hidden_here)
