"""Labels from a language model, and its scores of any label: detection and fuzzing, as in arXiv 2410.13928.

The model sees contexts of a concept with the tokens it acts on between >> and <<, and near misses; its label is a short phrase. Scoring
is a new conversation that holds the label and numbered texts only, in shuffled order; the answer lists the numbers that match. All texts
are quoted as data (`llm.quote_data`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from fairlead.concepts.entries import Example, LabelScores
from fairlead.concepts.scoring import MIN_TEXTS, Fuzz
from fairlead.llm import LanguageModel, quote_data

_LABEL_TASK = (
    "You describe one internal feature of a language model. You get texts in which it acts, with the tokens on which it acts most "
    "between >> and <<, then texts in which it does not act. Say in at most ten words what the first texts have in common that the "
    "others lack: the most specific description that fits them all."
)
_DETECT_TASK = (
    "You get the description of a feature of texts, and numbered texts. Give the numbers of the texts that have the feature; an empty list "
    "if none has."
)
_FUZZ_TASK = (
    "You get the description of a feature of texts, and numbered texts with some tokens between >> and <<. Give the numbers of the texts "
    "in which the marked tokens are those that the description is about; an empty list if none is."
)
MAX_LABEL = 120


class LabelAnswer(BaseModel):
    """What a language model must answer when asked for a label."""

    label: str = Field(min_length=1, description="at most ten words")


class MatchAnswer(BaseModel):
    """What a language model must answer when asked which texts match."""

    matches: list[int] = Field(description="numbers of the matching texts")


def mark(tokens: Sequence[str], places: Sequence[int]) -> str:
    """The text with the tokens at some places marked."""
    chosen = set(places)
    return "".join(f">>{token}<<" if place in chosen else token for place, token in enumerate(tokens))


def ask_label(llm: LanguageModel, shown: Sequence[Example], near: Sequence[Example]) -> str:
    """A label of a concept by its contexts and near misses.

    Raises:
        LLMError: The endpoint failed, or did not answer to the schema.
    """
    parts = [_LABEL_TASK, "It acts in:"]
    for number, example in enumerate(shown):
        scores = np.array(example.context.scores)
        places = np.flatnonzero((scores > 0) & (scores >= 0.5 * scores.max(initial=0))).tolist()
        parts.append(
            quote_data(mark(example.context.tokens, places), label=f"text {number + 1}", max_chars=600)
        )
    parts.append("It does not act in:")
    for number, example in enumerate(near):
        parts.append(quote_data("".join(example.context.tokens), label=f"other {number + 1}", max_chars=600))
    answer = llm.complete(
        [{"role": "user", "content": "\n\n".join(parts)}], schema=LabelAnswer, temperature=0.0
    )
    assert isinstance(answer, LabelAnswer)
    return " ".join(answer.label.split())[:MAX_LABEL]


def ask_scores(
    llm: LanguageModel,
    label: str,
    *,
    shown: Sequence[str],
    other: Sequence[str],
    near: Sequence[str],
    fuzzes: Sequence[Fuzz],
    seed: int = 0,
) -> LabelScores:
    """Detection and fuzzing scores of a label, judged by a language model.

    Binary answers: an AUROC is then the balanced accuracy.

    Args:
        llm: The judge.
        label: What is judged.
        shown: Held-out texts that show the concept.
        other: Held-out texts that do not, drawn at random.
        near: Near misses.
        fuzzes: Texts with right and wrong highlightings; each is used once, every second one with the wrong one.

    Raises:
        LLMError: The endpoint failed, or did not answer to the schema.
    """
    rng = np.random.default_rng(seed)
    if len(shown) < MIN_TEXTS or len(other) < MIN_TEXTS:
        return LabelScores(judge=llm.name)
    texts: list[str] = [*shown, *other, *near]
    yes = _ask(llm, _DETECT_TASK, label, texts, rng)
    hits = yes[: len(shown)].mean()
    quiet = 1 - yes[len(shown) : len(shown) + len(other)].mean()
    close = 1 - yes[len(shown) + len(other) :].mean() if len(near) >= MIN_TEXTS else None
    easy = (hits + quiet) / 2
    hard = (hits + close) / 2 if close is not None else None
    fuzzing = None
    if len(fuzzes) >= 2 * MIN_TEXTS:
        marked = [mark(f.tokens, f.wrong if place % 2 else f.right) for place, f in enumerate(fuzzes)]
        found = _ask(llm, _FUZZ_TASK, label, marked, rng)
        fuzzing = round(float((found[0::2].mean() + 1 - found[1::2].mean()) / 2), 4)
    return LabelScores(
        detection=round(float(easy if hard is None else (easy + hard) / 2), 4),
        detection_near=None if hard is None else round(float(hard), 4),
        fuzzing=fuzzing,
        num=len(texts),
        judge=llm.name,
    )


def _ask(
    llm: LanguageModel, task: str, label: str, texts: Sequence[str], rng: np.random.Generator
) -> np.ndarray:
    """Which texts the judge says match, `[text]` 0 or 1, asked in shuffled order."""
    order = rng.permutation(len(texts))
    parts = [task, "Description:", quote_data(label, label="description")]
    for number, place in enumerate(order):
        parts.append(quote_data(texts[int(place)], label=f"text {number + 1}", max_chars=800))
    answer = llm.complete(
        [{"role": "user", "content": "\n\n".join(parts)}], schema=MatchAnswer, temperature=0.0
    )
    assert isinstance(answer, MatchAnswer)
    found = np.zeros(len(texts))
    for number in answer.matches:
        if 1 <= number <= len(texts):
            found[order[number - 1]] = 1.0
    return found
