"""Thresholds by a target false-positive rate, from answers whose claims are known to be true or not.

The rate is kept in the conformal way: of n true answers (or claims), the threshold lies just above the floor(rate * (n + 1))-th largest
score, so that a new true answer like them is flagged with at most this probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fairlead.core.claims import ClaimedAnswer
from fairlead.core.config import Record
from fairlead.core.errors import ConfigError

if TYPE_CHECKING:
    from fairlead.guard.guard import Guard

Level = Literal["answer", "claim"]


class Calibration(Record):
    """How a threshold was found.

    Attributes:
        target: False-positive rate asked for.
        level: Whether the rate counts true answers (all claims supported; their highest score decides) or true claims.
        threshold: Scores from here on are flagged.
        num_true: True answers (or claims) it rests on.
        num_false: Unsupported ones beside them.
        false_positives: Share of the true ones that it flags.
        true_positives: Share of the unsupported ones that it flags.
        sha256: Hash of the answers.
    """

    target: float
    level: Level
    threshold: float
    num_true: int
    num_false: int
    false_positives: float
    true_positives: float
    sha256: str = ""


def find_threshold(true: Sequence[float], target: float) -> float:
    """The lowest threshold at which a new true item is flagged with at most the probability `target`.

    Raises:
        ConfigError: The target is out of range, or there are too few scores for it.
    """
    if not 0 < target < 1:
        raise ConfigError(f"the false-positive rate is {target}; it must lie between 0 and 1.")
    allowed = math.floor(target * (len(true) + 1))
    if allowed < 1:
        raise ConfigError(
            f"{len(true)} true answers are too few for a false-positive rate of {target:g}. Next: give at least "
            f"{math.ceil(1 / target) - 1}, or allow a higher rate."
        )
    return math.nextafter(sorted(true, reverse=True)[allowed - 1], math.inf)


def calibrate(
    true: Sequence[float], false: Sequence[float], *, target: float, level: Level = "answer", sha256: str = ""
) -> Calibration:
    """A calibration from scores of true and of unsupported answers (or claims).

    Raises:
        ConfigError: See `find_threshold`.
    """
    threshold = min(find_threshold(true, target), 1.0)
    return Calibration(
        target=target,
        level=level,
        threshold=threshold,
        num_true=len(true),
        num_false=len(false),
        false_positives=sum(score >= threshold for score in true) / len(true),
        true_positives=sum(score >= threshold for score in false) / len(false) if false else 0.0,
        sha256=sha256,
    )


def calibrate_guard(
    guard: Guard,
    answers: Sequence[ClaimedAnswer],
    *,
    target: float,
    level: Level = "answer",
    batch_size: int = 32,
    sha256: str = "",
) -> Calibration:
    """A calibration of a guard on labelled answers, which it reads as it reads its own while they are written.

    Args:
        guard: Its readout and its segmenter count.
        answers: Answers with labelled claims.
        target: False-positive rate.
        level: Of true answers or of true claims.
        batch_size: Answers at a time.
        sha256: Hash of the answers, for the record.

    Raises:
        ConfigError: No claim has a label, or there are too few true ones.
    """
    from fairlead.guard.reading import read_answers

    scores: dict[bool, list[float]] = {True: [], False: []}
    for answer, spans in zip(answers, read_answers(guard, answers, batch_size=batch_size), strict=True):
        known = [(span.score or 0.0, span.unsupported) for span in spans if span.unsupported is not None]
        if level == "claim":
            for score, unsupported in known:
                scores[bool(unsupported)].append(score)
        elif any(claim.label is not None for claim in answer.claims):
            # all spans count, as they do when the guard reads: a sentence that claims nothing can be flagged as well
            worst = max((span.score or 0.0 for span in spans), default=0.0)
            scores[any(bool(claim.unsupported) for claim in answer.claims)].append(worst)
    if not scores[False]:
        raise ConfigError(
            f"none of the {len(answers)} answers has supported claims only. Next: label claims (supported, contradicted, insufficient)."
        )
    return calibrate(scores[False], scores[True], target=target, level=level, sha256=sha256)
