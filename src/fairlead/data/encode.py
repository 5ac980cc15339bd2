"""Rows to token ids with loss masks, ready for any causal model.

The loss mask is True at a position whose TOKEN is predicted (from the position before it): response tokens
with their end-of-turn token in chats, every token but the first in plain text. Position 0 is never in the
loss.

`encode_aligned` encodes the same rows under several system prompts and checks that the response tokens are
the same, one to one, which is what a comparison of next-token distributions with and without a prompt needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fairlead.core.errors import ConfigError, DataError
from fairlead.data.rows import ChatData, Row, RowLike, as_rows
from fairlead.data.template import Place, Tokens, encode_chat, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnLong = Literal["error", "truncate", "drop"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row as tokens.

    Attributes:
        input_ids: Token ids `[seq]`.
        loss_mask: `[seq]`, True where the token is predicted.
        index: Index of the row in the data that was encoded.
        row: The row itself.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    index: int
    row: Row

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_loss_tokens(self) -> int:
        """Number of predicted tokens."""
        return sum(self.loss_mask)


def encode(
    data: ChatData | Iterable[RowLike],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    system: str | None = None,
    on_long: OnLong = "error",
    truncate: bool = False,
) -> list[Encoded]:
    """Encode rows, in order.

    Args:
        data: A data set, or rows, texts and message lists.
        tokenizer: A Hugging Face tokenizer.
        max_length: Longest allowed sequence in tokens; None for no limit.
        system: Replaces (or adds) the system message of every chat; stands before a plain text, outside the
            loss.
        on_long: What to do with a longer row: "error", "truncate" (cut its end) or "drop".
        truncate: Short for `on_long="truncate"`.

    Raises:
        DataError: No rows; a row is too long (the message counts them and names the first); a row has no
        token
            to learn from; a template cannot render it.
    """
    rows = as_rows(data)
    source = data.source if isinstance(data, ChatData) else "rows"
    on_long = "truncate" if truncate else on_long
    encoded = [
        Encoded(*_tokens(row, tokenizer, system=system, source=source), index, row)
        for index, row in enumerate(rows)
    ]
    keep = _fit([encoded], max_length=max_length, on_long=on_long, source=source)[0]
    _check_some_loss(keep, source=source, total=len(rows))
    return keep


def encode_aligned(
    data: ChatData | Iterable[RowLike],
    tokenizer: PreTrainedTokenizerBase,
    *,
    systems: Sequence[str | None],
    max_length: int | None,
    on_long: OnLong = "error",
) -> list[list[Encoded]]:
    """Encode the same rows under several system prompts, with identical response tokens.

    Returns:
        One list per entry of `systems` (None = the row's own), all with the same rows in the same order.
        `response_positions` of the same row line up one to one across the lists. A row that is too long under
        one prompt is dropped, or its response cut at the same token, under all.

    Raises:
        DataError: As `encode`; also where a prompt changes how the response is tokenised.
        ConfigError: No system prompt given.
    """
    if not systems:
        raise ConfigError("systems is empty. Next: pass at least one prompt (None for the row's own).")
    rows = as_rows(data)
    source = data.source if isinstance(data, ChatData) else "rows"
    columns = [
        [
            Encoded(*_tokens(row, tokenizer, system=system, source=source), index, row)
            for index, row in enumerate(rows)
        ]
        for system in systems
    ]
    columns = _fit(columns, max_length=max_length, on_long=on_long, source=source)
    for column in columns[1:]:
        for first, other in zip(columns[0], column, strict=True):
            check_aligned(first, other)
    _check_some_loss(columns[0], source=source, total=len(rows))
    return columns


def response_positions(encoded: Encoded) -> list[int]:
    """Positions of the predicted tokens, in order; position t is predicted from t - 1."""
    return [position for position, wanted in enumerate(encoded.loss_mask) if wanted]


def check_aligned(first: Encoded, other: Encoded) -> None:
    """Check that two encodings of a row predict the same tokens, one to one.

    Raises:
        DataError: They do not; names the row.
    """
    one = [first.input_ids[position] for position in response_positions(first)]
    two = [other.input_ids[position] for position in response_positions(other)]
    if one != two:
        raise DataError(
            "the response has other tokens under another prompt, so the two cannot be compared token by "
            f"token ({len(one)} against {len(two)} tokens). Next: use the tokenizer's own chat template, or "
            "drop the row.",
            line=first.row.line or None,
        )


def _tokens(row: Row, tokenizer: PreTrainedTokenizerBase, *, system: str | None, source: str) -> Tokens:
    if row.messages is None:
        return encode_text(row.text or "", tokenizer, system=system)
    return encode_chat(row.messages, tokenizer, system=system, place=Place(source, row.line or None))


def _fit(
    columns: list[list[Encoded]], *, max_length: int | None, on_long: OnLong, source: str
) -> list[list[Encoded]]:
    """Apply the length limit to parallel encodings of the same rows."""
    if on_long not in ("error", "truncate", "drop"):
        raise ConfigError(f"on_long is {on_long!r}; use 'error', 'truncate' or 'drop'.")
    if max_length is None:
        return columns
    if max_length < 2:
        raise ConfigError(f"max_length is {max_length}; it must be at least 2.")
    groups = list(zip(*columns, strict=True))
    long = [group for group in groups if max(map(len, group)) > max_length]
    if not long:
        return columns
    if on_long == "error":
        longest = max(len(item) for group in long for item in group)
        raise DataError(
            f"{len(long)} of {len(groups)} examples are longer than {max_length} tokens (the first is this "
            f"one, with {max(map(len, long[0]))}; the longest has {longest}). Next: shorten or remove them, "
            "raise max_length up to the model's limit, or pass --on-long truncate or drop (in Python on_long=...).",
            source=source,
            line=long[0][0].row.line or None,
        )
    kept = []
    for group in groups:
        if max(map(len, group)) <= max_length:
            kept.append(group)
        elif on_long == "truncate":
            room = min(sum(item.loss_mask[:max_length]) for item in group)
            kept.append(tuple(_cut(item, max_length, room) for item in group))
    return [list(column) for column in zip(*kept, strict=True)] if kept else [[] for _ in columns]


def _cut(item: Encoded, max_length: int, room: int) -> Encoded:
    """Cut a row at `max_length` tokens and at most `room` loss tokens."""
    end, seen = min(len(item), max_length), 0
    for position in range(end):
        if item.loss_mask[position]:
            if seen == room:
                end = position
                break
            seen += 1
    return Encoded(item.input_ids[:end], item.loss_mask[:end], item.index, item.row)


def _check_some_loss(encoded: list[Encoded], *, source: str, total: int) -> None:
    if not encoded:
        why = "is empty" if total == 0 else f"has no example left: all {total} are too long"
        raise DataError(f"the data set {why}. Next: check the file and max_length.", source=source)
    empty = [item for item in encoded if not any(item.loss_mask)]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(encoded)} examples have no token to learn from (the response is empty or "
            "was cut off by max_length). Next: raise max_length or drop them.",
            source=source,
            line=empty[0].row.line or None,
        )
