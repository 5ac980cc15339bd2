"""Typed answers: ask for JSON of a schema, validate, repair once, or fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from fairlead.core.errors import LLMError

_MAX_SHOWN = 300


def complete_typed(
    ask: Callable[[list[dict[str, str]]], str],
    messages: list[dict[str, str]],
    schema: type[BaseModel],
    *,
    name: str,
) -> BaseModel:
    """Ask for an answer that fits `schema`, with one repair attempt.

    Args:
        ask: Sends messages, returns the answer's text.
        messages: The conversation.
        schema: What the answer must fit.
        name: The model, for error messages.

    Raises:
        LLMError: Two answers did not fit; the message says why and shows the start of the second.
    """
    conversation = with_schema_rule(messages, schema)
    answer = ask(conversation)
    try:
        return parse_answer(answer, schema)
    except LLMError as first:
        conversation = [
            *conversation,
            {"role": "assistant", "content": answer or "(empty)"},
            {
                "role": "user",
                "content": f"That answer does not fit the schema: {first} Answer again, with the JSON object "
                "only.",
            },
        ]
    answer = ask(conversation)
    try:
        return parse_answer(answer, schema)
    except LLMError as error:
        shown = answer if len(answer) <= _MAX_SHOWN else answer[:_MAX_SHOWN] + "..."
        raise LLMError(
            f"{name}: the answer does not fit {schema.__name__}, nor did the repaired one: {error} The "
            f"answer was {shown!r}. Next: use a more capable model or another judge."
        ) from error


def with_schema_rule(messages: list[dict[str, str]], schema: type[BaseModel]) -> list[dict[str, str]]:
    """The messages with the schema stated in the system message (endpoints without typed output need it)."""
    rule = "Answer with one JSON object and nothing else. It must fit this JSON schema:\n" + json.dumps(
        schema.model_json_schema(), separators=(",", ":")
    )
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{rule}"}, *messages[1:]]
    return [{"role": "system", "content": rule}, *messages]


def parse_answer(answer: str, schema: type[BaseModel]) -> BaseModel:
    """The record in an answer (bare JSON, fenced JSON, or JSON after some words).

    Raises:
        LLMError: No JSON, or it does not fit; says which field.
    """
    value = _find_json(answer)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or '(whole)'}: {item['msg']}"
            for item in error.errors()
        )
        raise LLMError(f"{problems}.") from error


def _find_json(answer: str) -> Any:
    text = re.sub(r"^.*</think>", "", answer, flags=re.S).strip()
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, flags=re.S)
    for candidate in (text, fenced.group(1) if fenced else ""):
        try:
            return json.loads(candidate)
        except (json.JSONDecodeError, RecursionError):
            continue
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            return decoder.raw_decode(text, match.start())[0]
        except (json.JSONDecodeError, RecursionError):
            continue
    raise LLMError("it holds no JSON object.")
