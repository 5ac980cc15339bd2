"""Thresholds by a target false-positive rate, from answers whose claims are known to be true or not.

The rate is kept in the conformal way: of n true answers (or claims), the threshold lies just above the floor(rate * (n + 1))-th largest
score, so that a new true answer like them is flagged with at most this probability. A guard that asks again (`guard.asking_again`) is
calibrated as a whole: the score of a claim that the other answers uphold counts as 0, so that the rate is that of true answers acted on.
Or score and other answers are weighed together (`weigh`): a logistic regression on labelled claims says how many nats of the score's log
odds a share of the answers is worth, and a claim counts with what is left of its score.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.config import Record
from fairlead.core.errors import ConfigError
from fairlead.guard.policy import UPHOLD, log_odds
from fairlead.models.generation import prompt_ids

if TYPE_CHECKING:
    from fairlead.guard.guard import Guard

Level = Literal["answer", "claim"]
_WEAK = 10.0  # inverse strength of the penalty on two weights


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
        ask_again: Other ways in which a flagged claim is asked about; then the rates count answers that are acted on.
        uphold: Share of these answers that lets a claim stand.
        slope: Where score and answers are weighed together: the share must be above this many times what the score's log odds have
            above the threshold's (`Policy.slope`); else 0.
        rephrase: How the other ways are made, as the command line calls it; "" for other system prompts.
    """

    target: float
    level: Level
    threshold: float
    num_true: int
    num_false: int
    false_positives: float
    true_positives: float
    sha256: str = ""
    ask_again: int = 0
    uphold: float = UPHOLD
    slope: float = 0.0
    rephrase: str = ""


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
    ask_again: int = 0,
    uphold: float = UPHOLD,
    weigh: bool = False,
    rephrase: str = "",
) -> Calibration:
    """A calibration of a guard on labelled answers, which it reads as it reads its own while they are written.

    Args:
        guard: Its readout and its segmenter count.
        answers: Answers with labelled claims.
        target: False-positive rate.
        level: Of true answers or of true claims.
        batch_size: Answers at a time.
        sha256: Hash of the answers, for the record.
        ask_again: Set the threshold for a guard that asks again before it acts: the rate counts true answers that are acted on.
        uphold: Share of the other answers that lets a claim stand.
        weigh: Weigh score and other answers together instead; every claim is asked about once, here.
        rephrase: Name of the guard's other ways, for the record.

    Raises:
        ConfigError: No claim has a label, or there are too few true ones; or the other answers tell nothing that could be weighed.
    """
    from fairlead.guard.reading import read_answers

    found: dict[bool, list[_Scored]] = {True: [], False: []}
    for answer, spans in zip(answers, read_answers(guard, answers, batch_size=batch_size), strict=True):
        if level == "claim":
            for span in spans:
                if span.unsupported is not None:
                    found[span.unsupported].append(_Scored(answer, (span,)))
        elif any(claim.label is not None for claim in answer.claims):
            # all spans count, as they do when the guard reads: a sentence that claims nothing can be flagged as well
            found[any(bool(claim.unsupported) for claim in answer.claims)].append(
                _Scored(answer, tuple(spans))
            )
    if not found[False]:
        raise ConfigError(
            f"none of the {len(answers)} answers has supported claims only. Next: label claims (supported, contradicted, insufficient)."
        )
    if not ask_again:
        true, false = ([one.worst for one in found[label]] for label in (False, True))
        return calibrate(true, false, target=target, level=level, sha256=sha256)
    find_threshold([one.worst for one in found[False]], target)  # enough of them? before anything is asked
    if weigh:
        shares = {label: [_shares(guard, one, ask_again) for one in found[label]] for label in found}
        slope = _slope(found, shares)
        false, true = (
            [_weighed(one, share, slope) for one, share in zip(found[label], shares[label], strict=True)]
            for label in (True, False)
        )
        kept = calibrate(true, false, target=target, level=level, sha256=sha256)
        return kept.model_copy(update={"ask_again": ask_again, "slope": slope, "rephrase": rephrase})
    allowed, true = math.floor(target * (len(found[False]) + 1)), []
    for one in sorted(found[False], key=lambda one: -one.worst):
        largest = heapq.nlargest(allowed, true)
        settled = (
            len(largest) == allowed and largest[-1] >= one.worst
        )  # nothing that follows can be among these
        true.append(one.worst if settled else _acted_on(guard, one, ask_again, uphold))
    at = min(find_threshold(true, target), 1.0)
    false = [
        _acted_on(guard, one, ask_again, uphold) if one.worst >= at else one.worst for one in found[True]
    ]
    kept = calibrate(true, false, target=target, level=level, sha256=sha256)
    return kept.model_copy(update={"ask_again": ask_again, "uphold": uphold, "rephrase": rephrase})


class _Scored(NamedTuple):
    """An answer and those of its spans that count."""

    answer: ClaimedAnswer
    spans: tuple[ClaimSpan, ...]

    @property
    def worst(self) -> float:
        return max((span.score or 0.0 for span in self.spans), default=0.0)


def _acted_on(guard: Guard, one: _Scored, ask_again: int, uphold: float) -> float:
    """The highest score among the spans that other answers do not uphold; 0 for none."""
    share_of = _asker(guard, one.answer, ask_again)
    for span in sorted(one.spans, key=lambda span: -(span.score or 0.0)):
        if share_of(span) < uphold:
            return span.score or 0.0
    return 0.0


def _shares(guard: Guard, one: _Scored, ask_again: int) -> list[float]:
    """Per span the share of the other answers that hold it."""
    share_of = _asker(guard, one.answer, ask_again)
    return [share_of(span) for span in one.spans]


def _asker(guard: Guard, answer: ClaimedAnswer, ask_again: int) -> Callable[[ClaimSpan], float]:
    from fairlead.guard.pieces import Pieces

    messages = list(answer.messages)
    opinion = guard.second_opinion(messages, ask_again)
    prompt = prompt_ids(guard.model, messages)
    tokens = list(guard.model.tokenizer(answer.response, add_special_tokens=False)["input_ids"])
    pieces = Pieces(guard.lexicon.table)
    texts = [pieces.add(token) for token in tokens]
    return lambda span: opinion.on(prompt, tokens, texts, (span.start, span.end)).share


def _slope(found: dict[bool, list[_Scored]], shares: dict[bool, list[list[float]]]) -> float:
    """Share of the other answers that is worth a nat of the score's log odds, by logistic regression on the labelled claims."""
    from sklearn.linear_model import LogisticRegression

    rows, labels = [], []
    for label in found:
        for one, own in zip(found[label], shares[label], strict=True):
            for span, share in zip(one.spans, own, strict=True):
                if span.unsupported is not None:
                    rows.append([log_odds(span.score or 0.0), share])
                    labels.append(span.unsupported)
    if len(set(labels)) < 2:
        raise ConfigError(
            "weigh: claims of both kinds are needed. Next: add unsupported ones, or set uphold."
        )
    by_score, by_share = LogisticRegression(C=_WEAK).fit(rows, labels).coef_[0]
    if by_score <= 0 or by_share >= 0:
        raise ConfigError(
            f"weigh: on these {len(labels)} claims the weights of score and other answers are {by_score:.2f} and {by_share:.2f}, so that "
            "one of them tells nothing. Next: set uphold, give more answers, or ask in other ways."
        )
    return float(by_score / -by_share)


def _weighed(one: _Scored, shares: Sequence[float], slope: float) -> float:
    """The highest score that is left of an answer's spans once the other answers are counted."""
    left = [
        log_odds(span.score or 0.0) - share / slope for span, share in zip(one.spans, shares, strict=True)
    ]
    return 1 / (1 + math.exp(-max(left))) if left else 0.0
