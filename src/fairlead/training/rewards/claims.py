"""What the rewards ask of their surroundings: questions, a splitter of answers into claims, a verifier for spot checks.

The default splitter takes each sentence that is no abstention and no remark about checking as one claim; its value, by which a
maintained claim is told from a corrected one, are its words in order, without "yes", "no" and the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from fairlead.core.claims import ClaimSpan
from fairlead.core.errors import DataError
from fairlead.data import ChatData
from fairlead.training.rewards.table import has_abstained

SENTENCE = re.compile(r"[^.!?\n]*[^.!?\s][^.!?\n]*[.!?]*")
OPENING = re.compile(
    r"^(yes|no|right|wrong|that (was|is) (wrong|right|true)|actually|correct|sorry)\b[\s,.:;!-]*", re.I
)
REMARK = re.compile(r"\blet me check\b", re.I)
MIN_WORDS = 2


class Question(NamedTuple):
    """What the student is asked.

    Attributes:
        id: Its name.
        messages: Turns with `role` and `content`, the last one the user's.
        entity: What it is about; "" where unknown.
        meta: What a splitter or verifier needs.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    entity: str = ""
    meta: dict[str, Any] = {}  # noqa: RUF012 (never changed)


class Splitter(Protocol):
    """Finds the claims of an answer."""

    def __call__(self, question: Question, response: str) -> Sequence[ClaimSpan]:
        """The claims in their order; `value` tells claims that say the same."""
        ...


class Verifier(Protocol):
    """Says which claims of an answer are supported."""

    def __call__(self, question: Question, response: str) -> Sequence[ClaimSpan]:
        """The claims with their labels."""
        ...


def split_sentences(question: Question, response: str) -> list[ClaimSpan]:
    """Each sentence that states something as one claim."""
    return list(_iter_sentences(response))


def _iter_sentences(response: str) -> Iterator[ClaimSpan]:
    for match in SENTENCE.finditer(response):
        text = match.group().strip()
        start = match.start() + match.group().find(text)
        words = re.findall(r"\w+", OPENING.sub("", text).lower())
        if len(words) < MIN_WORDS or has_abstained(text) or REMARK.search(text) or text.endswith("?"):
            continue
        yield ClaimSpan(start=start, end=start + len(text), text=text, value=" ".join(words))


def questions_of(data: ChatData) -> list[Question]:
    """The prompts of a data set as questions (answers in it are left out).

    Raises:
        DataError: A row has no prompt.
    """
    found = []
    for place, row in enumerate(data.rows):
        messages = (
            tuple({"role": m.role, "content": m.content} for m in row.prompt_messages) if row.messages else ()
        )
        if not messages or messages[-1]["role"] != "user":
            raise DataError(
                "has no question to answer. Next: give chats or prompts that end with (or hold) a user's turn.",
                source=data.source,
                line=row.line or place + 1,
            )
        found.append(Question(id=str(row.line or place + 1), messages=messages))
    return found
