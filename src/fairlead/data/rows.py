"""Rows: one example of a data set, whatever it was stored as.

A row is either a chat (`messages`, with at least one assistant turn) or plain text (`text`). A preference
pair is a chat whose assistant turn is the chosen answer, with the whole conversation that ends in the
rejected answer beside it. `ChatData` is an ordered list of rows with its origin and hash; every subset knows
which rows it holds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from fairlead.core.errors import ConfigError, DataError
from fairlead.core.run import sha256_json

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Row:
    """One example.

    Attributes:
        messages: The chat (for a preference pair: ending in the chosen answer); None for plain text.
        text: The text; None for a chat.
        rejected: For a preference pair, the chat that ends in the rejected answer.
        line: 1-based line (JSONL), record or block number in the source.
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    rejected: tuple[Message, ...] | None = None
    line: int = 0

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn; empty for plain text."""
        if self.messages is None:
            return ()
        return self.messages[: _last_assistant(self.messages)]

    @property
    def prompt(self) -> str:
        """Content of the last user turn before the response; empty where there is none."""
        for message in reversed(self.prompt_messages):
            if message.role == "user":
                return message.content
        return ""

    @property
    def response(self) -> str:
        """The last assistant turn; for plain text the whole text."""
        if self.messages is None:
            return self.text or ""
        return self.messages[_last_assistant(self.messages)].content

    @property
    def rejected_row(self) -> Row | None:
        """The rejected answer as a row of its own; None where there is none."""
        return None if self.rejected is None else Row(messages=self.rejected, line=self.line)

    def as_record(self) -> dict[str, Any]:
        """The row as JSON data that `load_data` reads back (`messages`, `text` or `chosen`/`rejected`)."""
        if self.messages is None:
            return {"text": self.text or ""}
        chat = [message.as_dict() for message in self.messages]
        if self.rejected is None:
            return {"messages": chat}
        return {"chosen": chat, "rejected": [message.as_dict() for message in self.rejected]}


@dataclass(frozen=True)
class ChatData:
    """An ordered list of rows with its origin.

    Attributes:
        rows: The rows, in the order of the source (or of the selection).
        source: File or data set name.
        sha256: Hash of the file's content; of the canonical rows where there is no single file; of parent
        hash and
            selection for a subset.
        format: "chat", "prompt_completion", "preference" or "text".
        order: For a subset, index of each row in the whole; None for the whole.
    """

    rows: list[Row]
    source: str = "memory"
    sha256: str = ""
    format: str = "chat"
    order: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", sha256_rows(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def subset(self, indices: Iterable[int]) -> ChatData:
        """The rows at `indices`, in that order."""
        picks = [int(index) for index in indices]
        whole = self.order if self.order is not None else range(len(self.rows))
        return ChatData(
            rows=[self.rows[index] for index in picks],
            source=self.source,
            sha256=sha256_json([self.sha256, picks]),
            format=self.format,
            order=tuple(whole[index] for index in picks),
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[ChatData, ChatData]:
        """Two disjoint random parts, the first with `fraction` of the rows.

        Both keep the order of the source. Each part gets at least one row where there are two or more.

        Raises:
            ConfigError: `fraction` is not strictly between 0 and 1, or there are fewer than two rows.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"fraction is {fraction}; it must lie strictly between 0 and 1.")
        if len(self.rows) < 2:
            raise ConfigError(
                f"{self.source}: {len(self.rows)} row(s) cannot be split in two. Next: use more data."
            )
        indices = list(range(len(self.rows)))
        random.Random(seed).shuffle(indices)
        cut = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        return self.subset(sorted(indices[:cut])), self.subset(sorted(indices[cut:]))

    def rejected_rows(self) -> ChatData:
        """The rejected answers of a preference data set, as chats in the same order.

        Raises:
            DataError: A row has no rejected answer.
        """
        rows = []
        for row in self.rows:
            if row.rejected_row is None:
                raise DataError(
                    "has no rejected answer.", source=self.source, line=row.line, field="rejected"
                )
            rows.append(row.rejected_row)
        return ChatData(rows, self.source, sha256_json([self.sha256, "rejected"]), "chat", self.order)


RowLike: TypeAlias = Row | str | Sequence[Message] | Sequence[Mapping[str, str]]


def as_rows(data: ChatData | Iterable[RowLike]) -> list[Row]:
    """Rows of a data set, or of a list of rows, texts and message lists.

    Raises:
        DataError: A chat is malformed; names the item.
    """
    if isinstance(data, ChatData):
        return data.rows
    rows = []
    for index, item in enumerate(data):
        if isinstance(item, Row):
            rows.append(item)
        elif isinstance(item, str):
            rows.append(Row(text=item, line=index + 1))
        else:
            rows.append(Row(messages=as_messages(item, source="rows", line=index + 1), line=index + 1))
    return rows


def as_messages(
    value: Any,
    *,
    source: str | None = None,
    line: int | None = None,
    field: str = "messages",
    need_response: bool = True,
) -> tuple[Message, ...]:
    """Checked messages of a list of `{role, content}` mappings or `Message`s.

    Args:
        value: The list.
        source: For error messages.
        line: For error messages.
        field: For error messages.
        need_response: Require an assistant turn, and none that is empty.

    Raises:
        DataError: Wrong type, unknown role, missing field, no assistant turn or an empty one; names the
        place.
    """

    def bad(message: str, where: str) -> DataError:
        return DataError(message, source=source, line=line, field=where)

    if isinstance(value, str) or not isinstance(value, Sequence):
        raise bad(f"must be a list of messages, is {_kind(value)}.", field)
    if not value:
        raise bad("holds no messages.", field)
    found: list[Message] = []
    for index, item in enumerate(value):
        where = f"{field}[{index}]"
        if isinstance(item, Message):
            item = item.as_dict()
        if not isinstance(item, Mapping):
            raise bad(f"must be an object with role and content, is {_kind(item)}.", where)
        for key in ("role", "content"):
            if key not in item:
                raise bad("is missing. Next: give every message a role and a content.", f"{where}.{key}")
        role, content = item["role"], item["content"]
        if role not in ROLES:
            raise bad(f"unknown role {role!r}. Next: use one of {', '.join(ROLES)}.", f"{where}.role")
        if not isinstance(content, str):
            raise bad(f"must be text, is {_kind(content)}.", f"{where}.content")
        if role == "assistant" and need_response and not content.strip():
            raise bad("empty response. Next: fill it in or drop the record.", f"{where}.content")
        found.append(Message(role, content))
    if need_response and not any(message.role == "assistant" for message in found):
        raise bad("no assistant turn, so there is nothing to learn. Next: add one or drop the record.", field)
    return tuple(found)


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The chat with its system message set to `system` (replaced, or put first); unchanged for None."""
    if system is None:
        return tuple(messages)
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    return (Message("system", system), *rest)


def sha256_rows(rows: Iterable[Row]) -> str:
    """Hash of rows in canonical form (their content and order, not their line numbers)."""
    return sha256_json([row.as_record() for row in rows])


def _last_assistant(messages: Sequence[Message]) -> int:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "assistant":
            return index
    raise DataError("the chat has no assistant turn.", field="messages")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true/false", int: "a number", float: "a number", str: "text"}
    return names.get(type(value), "a list" if isinstance(value, list) else f"a {type(value).__name__}")
