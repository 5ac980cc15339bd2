"""What comes out of a guard: an answer with scores of its tokens and claims, and what was done to it."""

from __future__ import annotations

from typing import Literal

from fairlead.core.claims import ClaimSpan
from fairlead.core.config import Record

Finish = Literal["stop", "length", "retract", "abort"]
ActKind = Literal["flag", "uphold", "retract", "correct", "abort"]
ACTS: tuple[ActKind, ...] = ("flag", "uphold", "retract", "correct", "abort")


class Intervention(Record):
    """One act of the guard.

    Attributes:
        kind: `flag` (only marked), `uphold` (marked, and upheld by other answers), `retract`, `correct` or `abort`.
        claim: Place of the claim in `GuardedAnswer.claims`.
        at: Character of the answer where the act is: behind the claim; where the text that was put in begins.
        token: The same in tokens.
        text: What was put in, as it stands in the answer; "" for nothing.
        score: The claim's probability of being unsupported.
        threshold: What it reached.
        note: Why a flagged claim was only marked, where the policy would do more; what a second opinion said.
    """

    kind: ActKind
    claim: int
    at: int
    token: int
    text: str = ""
    score: float
    threshold: float
    note: str = ""


class GuardedAnswer(Record):
    """An answer under a guard.

    Attributes:
        text: The answer.
        tokens: Its text token by token ("" where a character is spread over several).
        scores: Token by token the probability of being unsupported; None for tokens that were put in and for one that no pass
            has read (the last of an answer that was cut off).
        given: Token by token whether the guard put it in.
        claims: Spans with scores, in order.
        interventions: What was done, in order.
        finish: Why it ended: the model's own end, the longest answer, or a retraction or abort of the guard.
        policy: Kind of the policy.
        threshold: Its threshold.
        rivals: For `best_of_n`, the worst score of each draw, in order; the answer is the one with the lowest.
    """

    text: str
    tokens: tuple[str, ...]
    scores: tuple[float | None, ...]
    given: tuple[bool, ...]
    claims: tuple[ClaimSpan, ...]
    interventions: tuple[Intervention, ...]
    finish: Finish
    policy: str
    threshold: float
    rivals: tuple[float, ...] = ()

    @property
    def worst(self) -> float:
        """Highest score of a claim; 0 for an answer that claims nothing."""
        return max((claim.score or 0.0 for claim in self.claims), default=0.0)

    @property
    def flagged(self) -> tuple[int, ...]:
        """Places of the claims that reached the threshold."""
        return tuple(
            place
            for place, claim in enumerate(self.claims)
            if claim.score is not None and claim.score >= self.threshold
        )
