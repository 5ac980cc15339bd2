"""What a guard does with an answer: one policy per request."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fairlead.core.config import Config

Kind = Literal["observe", "flag", "retract", "correct", "best_of_n", "abort"]
KINDS: tuple[Kind, ...] = ("observe", "flag", "retract", "correct", "best_of_n", "abort")
ACTING = ("retract", "correct", "abort")  # kinds that do something about a flagged claim
UPHOLD = 0.66
_LEAST = 1e-4
TEXTS = {"retract": "I do not know.", "correct": "Wait, let me check."}


class Policy(Config):
    """What to do when a claim's score reaches the threshold.

    Attributes:
        kind: `observe` reads only; `flag` marks the claim; `retract` puts a retraction behind it; `correct` puts an opening for a
            correction behind it and lets the model go on; `best_of_n` draws several answers and keeps the one whose worst claim
            scores lowest; `abort` ends the answer behind it.
        threshold: Probability of being unsupported from which a claim counts as flagged; the guard's own where None.
        text: What is put in; "I do not know." or "Wait, let me check." by default.
        then: Whether a retraction ends the answer.
        max_interventions: Most interventions in one answer; further flagged claims are only marked.
        n: Answers that `best_of_n` draws.
        ask_again: Before a claim is retracted, corrected or the answer aborted, put the request in this many other ways (0: do not);
            None for what the guard was calibrated with.
        uphold: Share of these answers that must hold the claim's decisive word for the claim to stand (`guard.asking_again`); None
            for what the guard was calibrated with, else two thirds.
        slope: Instead of `uphold`, a share that grows with the score: more than `slope` times what the score's log odds have above the
            threshold's. 0: `uphold` holds; None for what the guard was calibrated with, unless `uphold` is given.
    """

    kind: Kind = "observe"
    threshold: float | None = Field(default=None, ge=0, le=1)
    text: str | None = Field(default=None, min_length=1, max_length=200)
    then: Literal["end", "go_on"] = "end"
    max_interventions: int = Field(default=1, ge=0, le=16)
    n: int = Field(default=4, ge=2, le=64)
    ask_again: int | None = Field(default=None, ge=0, le=16)
    uphold: float | None = Field(default=None, ge=0, le=1)
    slope: float | None = Field(default=None, ge=0)

    @property
    def injection(self) -> str:
        """The text that this policy puts into an answer; "" for none."""
        return (self.text or TEXTS[self.kind]) if self.kind in TEXTS else ""

    @property
    def asks_again(self) -> bool:
        """Whether a flagged claim gets a second opinion."""
        return bool(self.ask_again) and self.kind in ACTING

    def stands(self, share: float, score: float, threshold: float) -> bool:
        """Whether a flagged claim with this score stands if a share of the other answers holds it."""
        if not self.slope:
            return share >= (self.uphold or 0.0)
        return share > self.slope * (log_odds(score) - log_odds(threshold))

    def filled(self, ask_again: int = 0, uphold: float = UPHOLD, slope: float = 0.0) -> Policy:
        """The same with these where it leaves them open."""
        if self.uphold is not None:
            slope = 0.0
        return self.model_copy(
            update={
                "ask_again": ask_again if self.ask_again is None else self.ask_again,
                "uphold": uphold if self.uphold is None else self.uphold,
                "slope": slope if self.slope is None else self.slope,
            }
        )


def log_odds(probability: float) -> float:
    """Nats, with the ends cut off at one in ten thousand."""
    return math.log((probability + _LEAST) / (1 - probability + _LEAST))
