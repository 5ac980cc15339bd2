"""Many texts as tokens in little memory: two flat arrays, 5 bytes a token, made a few hundred texts at a time.

A list of `Encoded` costs 60 to 70 bytes a token in Python objects, which is what ends a run over a hundred million tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from typing_extensions import override

from fairlead.data.encode import Encoded, encode
from fairlead.data.rows import ChatData, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512
_NO_ROW = Row(text="")


class TextsOnDemand(Sequence[Encoded]):
    """Texts that are turned into an `Encoded` when they are asked for."""

    @abstractmethod
    def text(self, index: int) -> Encoded:
        """The text at a place from 0 on."""

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.text(index % len(self))


class PackedTexts(TextsOnDemand):
    """Encoded texts; a text is turned into an `Encoded` (its row left out) when it is asked for.

    Attributes:
        lengths: Tokens of each text.
    """

    def __init__(self, texts: Iterable[Encoded]) -> None:
        ids, mask, self.lengths = array("i"), bytearray(), array("i")
        for text in texts:
            ids.extend(text.input_ids)
            mask.extend(text.loss_mask)
            self.lengths.append(len(text))
        self._ids, self._mask = np.frombuffer(ids, dtype=np.int32), np.frombuffer(mask, dtype=bool)
        self._start = np.concatenate([[0], np.cumsum(np.frombuffer(self.lengths, dtype=np.int32))])

    @classmethod
    def encode(
        cls, data: ChatData, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None
    ) -> PackedTexts:
        """Encode a data set, longer texts cut at `max_length`.

        Raises:
            DataError: No rows, or a row without a token to learn from.
        """

        def parts() -> Iterable[Encoded]:
            for start in range(0, max(len(data.rows), 1), _CHUNK):
                some = ChatData(data.rows[start : start + _CHUNK], data.source)
                yield from encode(some, tokenizer, max_length=max_length, on_long="truncate")

        return cls(parts())

    def __len__(self) -> int:
        return len(self.lengths)

    @override
    def text(self, index: int) -> Encoded:
        where = slice(int(self._start[index]), int(self._start[index + 1]))
        return Encoded(self._ids[where].tolist(), self._mask[where].tolist(), index, _NO_ROW)
