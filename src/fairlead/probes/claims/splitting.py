"""Splitting an answer into claims: by a language model that quotes them, or sentence by sentence.

The language model sees the question and the answer as quoted data and gives claims back word for word, in order; a quotation that does
not stand in the answer is dropped and counted, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, Field

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.llm import LanguageModel, quote_data
from fairlead.probes.claims.cost import Cost

SENTENCE = re.compile(r"[^.!?\n]*[^.!?\s][^.!?\n]*[.!?]*")
MAX_CHARS = 20_000
_TASK = (
    "You get a question and an answer to it. List the claims in the answer: the shortest stretches of the answer that each state one "
    "thing about the world which can be true or false (names, numbers, dates, properties, events). Quote every claim word for word, "
    "exactly as it stands in the answer, in the order of the answer, without overlaps. Leave out greetings, opinions, questions and what "
    "the answer says about itself. An empty list if there is none. Say also what the answer is mainly about (a name, as it stands in the "
    "question or answer)."
)


class SplitAnswer(BaseModel):
    """What a language model must answer when asked for claims."""

    claims: list[str] = Field(description="quoted word for word, in order")
    entity: str = Field(default="", description="what the answer is mainly about")


class Split(NamedTuple):
    """An answer with its claims, and quotations that do not stand in it."""

    answer: ClaimedAnswer
    dropped: tuple[str, ...] = ()


def split_claims(answer: ClaimedAnswer, llm: LanguageModel, *, cost: Cost | None = None) -> Split:
    """Have a language model find the claims of an answer; labels are not set, the call is counted in `cost`.

    Raises:
        LLMError: The endpoint failed, or did not answer to the schema.
    """
    prompt = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in answer.messages)
    parts = [
        _TASK,
        quote_data(prompt, label="question", max_chars=MAX_CHARS),
        quote_data(answer.response, label="answer", max_chars=MAX_CHARS),
    ]
    cost = cost or Cost()
    found = cost.ask(llm, "\n\n".join(parts), SplitAnswer)
    claims, dropped = place_quotes(answer.response, found.claims)
    cost.claims += len(claims)
    entity = answer.entity or " ".join(found.entity.split())[:200]
    return Split(answer.model_copy(update={"claims": claims, "entity": entity}), dropped)


def split_sentences(answer: ClaimedAnswer) -> Split:
    """Every sentence a claim: for short answers, without a language model."""
    quotes = [match.group().strip() for match in SENTENCE.finditer(answer.response)]
    claims, dropped = place_quotes(answer.response, quotes)
    return Split(answer.model_copy(update={"claims": claims}), dropped)


def place_quotes(text: str, quotes: Sequence[str]) -> tuple[tuple[ClaimSpan, ...], tuple[str, ...]]:
    """Where quotations stand in a text, in order and without overlap; those that do not stand there (any more) are the second value.

    White space may differ; nothing else.
    """
    claims: list[ClaimSpan] = []
    dropped: list[str] = []
    at = 0
    for quote in quotes:
        words = quote.split()
        match = re.compile(r"\s+".join(map(re.escape, words))).search(text, at) if words else None
        if match is None:
            dropped.append(quote)
            continue
        claims.append(ClaimSpan(start=match.start(), end=match.end(), text=match.group()))
        at = match.end()
    return tuple(claims), tuple(dropped)


Splitter = Callable[[ClaimedAnswer], Split]


def splitter(llm: LanguageModel | None, *, cost: Cost | None = None) -> Splitter:
    """By language model where there is one (whose calls are counted in `cost`), else by sentence."""
    return split_sentences if llm is None else lambda answer: split_claims(answer, llm, cost=cost)
