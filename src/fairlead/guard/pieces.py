"""The text of an answer token by token: pieces that add up to what decoding the whole gives.

A token's text depends on the one before it (some tokenizers drop the space at the start of a text) and may be no text at all yet, where
a character is spread over several tokens. Texts of pairs are kept, since decoding one token costs as much as decoding twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MAX_KEPT = 200_000
_PARTIAL = "\ufffd"


class PieceTable:
    """Texts of tokens by the token before; one per tokenizer, shared by all answers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._pairs: dict[tuple[int | None, int], str | None] = {}

    def piece(self, before: int | None, token: int) -> str | None:
        """Text that `token` adds behind `before`; None where it holds part of a character."""
        key = (before, token)
        if key not in self._pairs:
            if len(self._pairs) >= _MAX_KEPT:
                self._pairs.clear()
            self._pairs[key] = self.added([] if before is None else [before], [token])
        return self._pairs[key]

    def added(self, before: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Text that `tokens` add behind `before`; None where it ends within a character."""
        head = self._decode(before)
        whole = self._decode([*before, *tokens])
        if _PARTIAL in head[-1:] or whole.endswith(_PARTIAL):
            return None
        return whole[len(head) :] if whole.startswith(head) else self._decode(tokens)

    def plain(self, tokens: Sequence[int]) -> str:
        """Text of tokens, with a mark for what is no whole character."""
        return self._decode(tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)) if tokens else ""


class Pieces:
    """The pieces of one answer.

    Args:
        table: Of the tokenizer.
        before: Tokens that the answer continues, where its first piece depends on them (a prompt without a chat template).
    """

    def __init__(self, table: PieceTable, before: Sequence[int] = ()) -> None:
        self._table = table
        self._last: list[int] = next(([token] for token in reversed(before) if table.plain([token])), [])
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that a token adds; "" while a character is incomplete, then all of it."""
        if not self._pending and len(self._last) < 2:
            piece = self._table.piece(self._last[0] if self._last else None, token)
            if piece is not None:
                if piece:  # special tokens are no text: what follows stands behind the text before them
                    self._last = [token]
                return piece
        self._pending.append(token)
        piece = self._table.added(self._last, self._pending)
        if piece is None:
            return "" if len(self._pending) < 8 else self.flush()
        self._last, self._pending = self._pending, []
        return piece

    def flush(self) -> str:
        """What is left at the end: characters that were never completed."""
        if not self._pending:
            return ""
        rest, self._last, self._pending = self._table.plain(self._pending), [], []
        return rest
