"""What an answer earns: outcomes of an intervention and of a plain answer, and the controller that steers their mix.

Pure functions of probabilities that somebody else has read. Steps of the reward table: arXiv 2602.10067; departures: a maintained claim
earns what the probe says for it above one half (there 0), and plain answers are rewarded too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from fairlead.core.claims import ClaimSpan
from fairlead.training.rewards.config import RewardTable

Outcome = Literal["maintained", "corrected", "retracted", "bad_format", "answered", "abstained"]
ABSTAIN = re.compile(
    r"\b(i (do not|don't) know|i (am|'m) not sure|i take (it|that) back|i cannot say)\b", re.I
)


class Verdict(NamedTuple):
    """What became of an answer.

    Attributes:
        outcome: Its kind.
        reward: Of the whole answer.
        claim_rewards: Of each claim, in order; what is not a claim's own belongs to the whole.
    """

    outcome: Outcome
    reward: float
    claim_rewards: tuple[float, ...]


def has_abstained(text: str) -> bool:
    """Whether a text says that it does not know, or takes something back."""
    return bool(ABSTAIN.search(text))


def judge_intervention(
    flagged: ClaimSpan,
    text: str,
    claims: Sequence[ClaimSpan],
    *,
    complete: bool,
    table: RewardTable,
    retract_lambda: float,
) -> Verdict:
    """What a continuation after the injected text earns.

    Args:
        flagged: The claim in question, with its score P(unsupported).
        text: The continuation.
        claims: Its claims with scores.
        complete: Whether it came to an end by itself.
        table: The reward table.
        retract_lambda: Its lambda at present.
    """
    doubted, abstained = _score(flagged), has_abstained(text)
    if not complete or bool(claims) == abstained:  # neither of the two, or both at once
        return Verdict("bad_format", table.bad_format, tuple(0.0 for _ in claims))
    if abstained:
        return Verdict("retracted", table.retracted * (doubted - retract_lambda), ())
    last = claims[-1]
    if last.value == flagged.value:
        reward = table.maintained * max(0.0, 0.5 - doubted)
        return Verdict("maintained", reward, tuple(reward for _ in claims))
    believed = 1 - _score(last)
    reward = (
        min(max(believed, table.correct_low), table.correct_high) if believed >= table.correct_from else 0.0
    )
    return Verdict("corrected", reward, tuple(reward for _ in claims))


def judge_plain(text: str, claims: Sequence[ClaimSpan], *, complete: bool, table: RewardTable) -> Verdict:
    """What a plain answer earns: supported claims minus unsupported ones, an abstention in between, no format below both."""
    if not complete or not text.strip():
        return Verdict("bad_format", table.bad_format - 1, tuple(table.bad_format - 1 for _ in claims))
    abstained = has_abstained(text)
    if not claims:
        return (
            Verdict("abstained", table.abstained, ())
            if abstained
            else Verdict("bad_format", table.bad_format - 1, ())
        )
    own = tuple(
        1 - 2 * _score(claim) if place < table.max_claims else 0.0 for place, claim in enumerate(claims)
    )
    return Verdict("answered", sum(own) + (table.bad_format if abstained else 0.0), own)


def _score(claim: ClaimSpan) -> float:
    assert claim.score is not None, "a claim is judged before it has been read"
    return claim.score


class MixController:
    """Steers lambda so that corrections and retractions come in the wanted mix.

    Velocity form: lambda moves by the error and is kept within [0, 1], so that nothing winds up while it stands at a limit. A higher lambda
    makes retractions dearer, and so corrections more frequent.
    """

    def __init__(self, table: RewardTable) -> None:
        self.table, self.value = table, table.retract_lambda
        self.observed: float | None = None

    def update(self, num_corrected: int, num_retracted: int) -> bool:
        """Take in a step's counts (of all processes); returns whether lambda moved."""
        target, total = self.table.mix_target, num_corrected + num_retracted
        if target is None or not total:
            return False
        share = num_corrected / total
        self.observed = share if self.observed is None else 0.8 * self.observed + 0.2 * share
        before = self.value
        self.value = min(1.0, max(0.0, before + self.table.mix_gain * (target - self.observed)))
        return self.value != before

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"lambda": self.value, "observed": self.observed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.value, self.observed = state.get("lambda", self.value), state.get("observed")
