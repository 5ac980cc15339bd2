"""Raw records to rows: chat, prompt/completion, preference pairs, plain text.

The format is told by the fields of the first record (or given), and every record of the data set must then
have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from fairlead.core.errors import ConfigError, DataError
from fairlead.data.rows import Message, Row, as_messages

Format = Literal["auto", "chat", "prompt_completion", "preference", "text"]
FORMATS = ("auto", "chat", "prompt_completion", "preference", "text")

# field names of public data sets, most specific first
_CHAT_FIELDS = ("messages", "conversation", "chat")
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("instruction", "output"))
_TEXT_FIELDS = ("text", "content", "story", "sequence")


class Reader(NamedTuple):
    """How the records of a data set become rows."""

    format: str
    read: Callable[[Mapping[str, Any], int], Row]


def choose_reader(record: Any, *, format: str, source: str, line: int) -> Reader:
    """The reader for a data set whose first record is `record`.

    Raises:
        ConfigError: Unknown format.
        DataError: The record has none of the known sets of fields.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}; use one of {', '.join(FORMATS)}.")
    check_record(record, source=source, line=line)
    fields = set(record)
    if format == "auto":
        format = _detect(fields)
    if format == "chat":
        name = next((f for f in _CHAT_FIELDS if f in fields), "messages")
        return Reader("chat", lambda r, n: _chat(r, n, source, name))
    if format == "prompt_completion":
        names = next((pair for pair in _PAIRS if set(pair) <= fields), _PAIRS[0])
        return Reader("prompt_completion", lambda r, n: _prompt_completion(r, n, source, *names))
    if format == "preference":
        return Reader("preference", lambda r, n: _preference(r, n, source))
    if format == "text":
        name = next((f for f in _TEXT_FIELDS if f in fields), "text")
        return Reader("text", lambda r, n: _text(r, n, source, name))
    raise DataError(
        f"none of the known fields is there (found: {', '.join(sorted(map(str, fields))) or 'nothing'}). "
        "Next: name the fields 'messages', 'prompt' and 'completion', 'chosen' and 'rejected', or 'text'.",
        source=source,
        line=line,
    )


def check_record(record: Any, *, source: str, line: int) -> None:
    """A record must be an object.

    Raises:
        DataError: It is not.
    """
    if not isinstance(record, Mapping):
        raise DataError(
            f"a record must be an object with fields, is {type(record).__name__}.", source=source, line=line
        )


def _detect(fields: set[str]) -> str:
    if {"chosen", "rejected"} <= fields:
        return "preference"
    if any(name in fields for name in _CHAT_FIELDS):
        return "chat"
    if any(set(pair) <= fields for pair in _PAIRS):
        return "prompt_completion"
    if any(name in fields for name in _TEXT_FIELDS):
        return "text"
    # half of a pair: let the reader name the missing half
    if fields & {"chosen", "rejected"}:
        return "preference"
    if fields & {"prompt", "completion"}:
        return "prompt_completion"
    return "unknown"


def _field(record: Mapping[str, Any], name: str, line: int, source: str) -> Any:
    if name not in record or record[name] is None:
        there = ", ".join(sorted(map(str, record))) or "nothing"
        raise DataError(f"is missing (the record has: {there}).", source=source, line=line, field=name)
    value = record[name]
    if isinstance(value, str) and value[:2] in ("[{", "[ ") and value.rstrip()[-1:] == "]":
        try:  # message lists in CSV cells
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _chat(record: Mapping[str, Any], line: int, source: str, name: str) -> Row:
    value = _field(record, name, line, source)
    answer = record.get(
        "response"
    )  # answers with labelled stretches keep the answer beside the messages before it
    if isinstance(answer, str) and isinstance(value, list):
        value = [*value, {"role": "assistant", "content": answer}]
    return Row(messages=as_messages(value, source=source, line=line, field=name), line=line)


def _prompt_completion(record: Mapping[str, Any], line: int, source: str, first: str, second: str) -> Row:
    prompt = _side(_field(record, first, line, source), "user", first, line, source, need_response=False)
    answer = _side(_field(record, second, line, source), "assistant", second, line, source)
    system = record.get("system")
    if isinstance(system, str) and system and not (prompt and prompt[0].role == "system"):
        prompt = (Message("system", system), *prompt)
    return Row(messages=prompt + answer, line=line)


def _preference(record: Mapping[str, Any], line: int, source: str) -> Row:
    prompt: tuple[Message, ...] = ()
    if record.get("prompt") is not None:
        value = _field(record, "prompt", line, source)
        prompt = _side(value, "user", "prompt", line, source, need_response=False)
    sides = []
    for name in ("chosen", "rejected"):
        side = _side(_field(record, name, line, source), "assistant", name, line, source)
        # some data sets repeat the prompt inside both answers
        sides.append(side if prompt and side[: len(prompt)] == prompt else prompt + side)
    return Row(messages=sides[0], rejected=sides[1], line=line)


def _side(
    value: Any, role: str, field: str, line: int, source: str, *, need_response: bool = True
) -> tuple[Message, ...]:
    """Text becomes one message of `role`; a message list is checked."""
    if isinstance(value, str):
        if role == "assistant" and not value.strip():
            raise DataError(
                "empty response. Next: fill it in or drop the record.", source=source, line=line, field=field
            )
        return (Message(role, value),)
    if isinstance(value, list):
        return as_messages(value, source=source, line=line, field=field, need_response=need_response)
    raise DataError(
        f"must be text or a list of messages, is {type(value).__name__}.",
        source=source,
        line=line,
        field=field,
    )


def _text(record: Mapping[str, Any], line: int, source: str, name: str) -> Row:
    value = _field(record, name, line, source)
    if not isinstance(value, str):
        raise DataError(f"must be text, is {type(value).__name__}.", source=source, line=line, field=name)
    if not value.strip():
        raise DataError("is empty. Next: drop the record.", source=source, line=line, field=name)
    return Row(text=value, line=line)
