"""Neutral rows: prompts that have nothing to do with the data, answered by the start model itself.

Given chats keep their prompts and get the model's own (greedy) answers; given texts stay as they are. Where nothing is given, a chat
model answers a short list of generic prompts (sampled, so that the answers differ), and a text model writes on from single
common words. Answers are cached by content.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from fairlead.core.errors import RunError
from fairlead.core.progress import say
from fairlead.core.run import read_json, sha256_json, write_json
from fairlead.data import Message, Row

if TYPE_CHECKING:
    from fairlead.models import Model

GENERIC_PROMPTS = (
    "Hello!",
    "How are you?",
    "What is your name?",
    "What can you do?",
    "Tell me a short story.",
    "What is the capital of France?",
    "What colour is the sky?",
    "Name an animal.",
    "What is the opposite of hot?",
    "Give me some advice.",
    "Explain how rain forms.",
    "Write a sentence about the sea.",
    "What should I eat today?",
    "Who wrote this letter?",
    "Describe a tree.",
    "Thank you.",
)
GENERIC_STARTS = ("The", "One day", "There was", "It is", "She", "He", "In", "They", "We", "A")
MAX_NEW_TOKENS = 48
MAX_MADE = 320
"""Rows made from the few generic prompts: more of them would say little new and take long on a large model."""


def neutral_rows(
    model: Model,
    given: Sequence[Row],
    *,
    num: int,
    chat: bool,
    own_answers: bool = True,
    seed: int = 0,
    max_length: int | None = None,
    cache: Path | None = None,
) -> list[Row]:
    """Neutral rows.

    Args:
        model: The start model.
        given: Neutral rows of the user; empty for generic prompts.
        num: How many to return at most (a random choice where there are more; where nothing is given, at most `MAX_MADE`).
        chat: Whether to make chats where nothing is given.
        own_answers: Replace the answers of given chats by the model's own.
        seed: Of the choice and of sampling.
        max_length: Longest row in tokens; longer answers are cut.
        cache: Folder for the answers.
    """
    rng = random.Random(f"{seed}:neutral")
    rows = list(given)
    num = num if rows else min(num, MAX_MADE)
    if len(rows) > num:
        rows = rng.sample(rows, num)
    if rows and (not own_answers or rows[0].messages is None):
        return rows
    identity = [
        "neutral",
        1,
        model.fingerprint,
        chat,
        [row.as_record() for row in rows],
        num,
        seed,
        max_length,
    ]
    if cache is None:
        return _make(model, rows, num=num, chat=chat, seed=seed, max_length=max_length)
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{sha256_json(identity)[:32]}.neutral.json"
    with FileLock(str(path) + ".lock"):
        made = _stored(path)
        if made is None:
            made = _make(model, rows, num=num, chat=chat, seed=seed, max_length=max_length)
            write_json(path, [row.as_record() for row in made])
    return made


def _make(
    model: Model, rows: list[Row], *, num: int, chat: bool, seed: int, max_length: int | None
) -> list[Row]:
    """The model's own answers to given prompts, or to generic ones."""
    room = min(MAX_NEW_TOKENS, max(8, (max_length or 4 * MAX_NEW_TOKENS) // 2))
    if rows:
        prompts = [row.prompt_messages for row in rows]
        answers = model.generate(prompts, max_new_tokens=room)
        return [_answered(p, a) for p, a in zip(prompts, answers, strict=True) if a.strip()]
    if chat:
        prompts = [(Message("user", GENERIC_PROMPTS[i % len(GENERIC_PROMPTS)]),) for i in range(num)]
        answers = model.generate(prompts, max_new_tokens=room, temperature=1.0, seed=seed)
        return [_answered(p, a) for p, a in zip(prompts, answers, strict=True) if a.strip()]
    starts = [GENERIC_STARTS[i % len(GENERIC_STARTS)] for i in range(num)]
    answers = model.generate(starts, max_new_tokens=room, temperature=1.0, seed=seed, chat=False)
    return [Row(text=start + answer) for start, answer in zip(starts, answers, strict=True)]


def _stored(path: Path) -> list[Row] | None:
    """The rows of a cache file; None (with a remark) where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return [_row(record) for record in read_json(path)]
    except (RunError, KeyError, TypeError) as error:
        say(f"{path}: the cached answers are broken and are made anew ({error})")
        return None


def _answered(prompt: Sequence[Message], answer: str) -> Row:
    return Row(messages=(*prompt, Message("assistant", answer)))


def _row(record: dict) -> Row:
    if "text" in record:
        return Row(text=record["text"])
    return Row(messages=tuple(Message(m["role"], m["content"]) for m in record["messages"]))
