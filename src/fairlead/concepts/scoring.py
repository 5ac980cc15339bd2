"""Is a label any good? Detection and fuzzing, on texts that the label was not made from.

Follows "Automatically interpreting millions of features in large language models" (Paulo, Mallen, Juang, Belrose 2024, arXiv 2410.13928):

- *detection*: given the label, tell texts that show the concept from texts that do not;
- *fuzzing*: given the label, tell texts with the right tokens highlighted from texts with wrong ones highlighted.

Departures: scores are AUROCs, not accuracies; half of detection's negatives are near misses (texts in which the concept does not act
although some token lies furthest along its direction); without a language model the label's own words are the judge: a text matches as
far as it has them, a highlighting as far as it lies on them. A text shows a concept when its mean activation exceeds half of the 95th
percentile over texts (`labels.shows_concept`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairlead.concepts.entries import Entry, LabelScores
from fairlead.core.stats import auroc

MIN_TEXTS = 4
_MAX_HIGHLIGHTS = 8


class Fuzz(NamedTuple):
    """One text with a set of highlighted tokens, as words.

    Attributes:
        tokens: The tokens as text.
        right: Places where the concept acts strongly.
        wrong: As many places where it does not act.
        words: The word, and the part of a longer word, at each place ("" where none).
    """

    tokens: tuple[str, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    words: tuple[tuple[str, str], ...]


def bound_of(means: np.ndarray, share: float) -> float:
    """Half of the 95th percentile over all texts of a concept's mean, from draws of the texts in which it acts.

    Args:
        means: Of texts in which it acts.
        share: Share of all texts in which it does. Below 5 % the percentile is the median of those.
    """
    if len(means) == 0:
        return 0.0
    level = 1 - 0.05 / share if share > 0.05 else 0.5
    return 0.5 * float(np.quantile(means, level))


def word_detection(
    keywords: Mapping[str, float],
    shown: Sequence[set[str]],
    other: Sequence[set[str]],
    near: Sequence[set[str]],
) -> LabelScores:
    """Detection by the label's own words.

    Args:
        keywords: Words of the label with their weights.
        shown: Words of held-out texts that show the concept.
        other: Words of held-out texts that do not, drawn at random.
        near: Words of near misses.
    """
    weigh = [
        [sum(w for word, w in keywords.items() if word in text) for text in part]
        for part in (shown, other, near)
    ]
    if len(shown) < MIN_TEXTS or len(other) < MIN_TEXTS:
        return LabelScores()
    easy = auroc(weigh[0], weigh[1])
    hard = auroc(weigh[0], weigh[2]) if len(near) >= MIN_TEXTS else None
    value = easy if hard is None else (easy + hard) / 2
    return LabelScores(
        detection=round(value, 4),
        detection_near=None if hard is None else round(hard, 4),
        num=sum(map(len, (shown, other, near))),
    )


def make_fuzz(
    tokens: Sequence[str], scores: np.ndarray, words: Sequence[tuple[str, str]], rng: np.random.Generator
) -> Fuzz | None:
    """Right and wrong highlightings of one text; None where it has too few tokens without activation.

    Right are the tokens above half of the text's peak; wrong are drawn from those that do not act. Tokens that are no word are left out of
    both, so that position cannot tell.
    """
    usable = np.array([bool(word) for word, _ in words]) & (np.arange(len(tokens)) > 0)
    right = np.flatnonzero(usable & (scores > 0) & (scores >= 0.5 * scores.max(initial=0)))[:_MAX_HIGHLIGHTS]
    idle = np.flatnonzero(usable & (scores <= 0))
    if len(right) == 0 or len(idle) < len(right):
        return None
    wrong = np.sort(rng.choice(idle, len(right), replace=False))
    return Fuzz(tuple(tokens), tuple(right.tolist()), tuple(wrong.tolist()), tuple(words))


def word_fuzzing(keywords: Mapping[str, float], fuzzes: Sequence[Fuzz]) -> float | None:
    """Fuzzing by the label's own words: AUROC of the highlighted tokens' weight, right against wrong; None with too few texts."""
    if len(fuzzes) < MIN_TEXTS:
        return None

    def weight(fuzz: Fuzz, places: Sequence[int]) -> float:
        worth = [max(keywords.get(name, 0.0) for name in fuzz.words[place]) for place in places]
        return sum(worth) / max(len(places), 1)

    found = auroc([weight(f, f.right) for f in fuzzes], [weight(f, f.wrong) for f in fuzzes])
    return round(found, 4)


def summarize_scores(entries: Sequence[Entry]) -> dict[str, Any]:
    """Means of the label scores of some concepts, over concepts and `weighted` by activation, and the 90th percentile of their value."""
    out: dict[str, Any] = {"num": len(entries)}
    for name in ("detection", "detection_near", "fuzzing", "value"):
        values = [v for e in entries if (v := getattr(e.scores, name)) is not None]
        out[name] = round(float(np.mean(values)), 4) if values else None
        out[f"num_{name}"] = len(values)
    pairs = [(e.scores.value, e.statistics.mean) for e in entries if e.scores.value is not None]
    total = sum(weight for _, weight in pairs)
    out["weighted"] = round(sum(v * w for v, w in pairs) / total, 4) if total > 0 else None
    values = [value for value, _ in pairs]
    out["value_90"] = round(float(np.quantile(values, 0.9)), 4) if values else None
    return out
