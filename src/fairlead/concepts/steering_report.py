"""What AutoSteer tried and chose, as a record."""

from __future__ import annotations

from typing import Literal

from fairlead.core.config import Record

Direction = Literal["on", "off"]


class Trial(Record):
    """One setting that was tried.

    Attributes:
        name: "contrast", the concepts' ids, or "placebo".
        strengths: By part.
        effect: Share of answers that show the behaviour (on) or do not (off).
        loss_rise: Nats per token, see the module (3).
    """

    name: str
    strengths: dict[str, float]
    effect: float
    loss_rise: float


class SteeringReport(Record):
    """What AutoSteer tried and chose.

    Attributes:
        effect_before: Without any edit, on the calibration prompts.
        effect_request: With the request in the prompt instead of edits (turning on), the ceiling.
        readout_auroc: Of the probe on held-out answers; None with a check.
        neutral_loss: Nats per token of plain answers to prompts without the request: unedited, edited.
        requested_loss: Nats per token of the requested answers: unedited model with the request; edited model without it (turning on).
        gate: How well the request is told from other prompts, where edits are tied to it.
        chosen: Place in `trials`.
        placebo: Edits of equal norm at the same places through random latents.
    """

    format: Literal["fairlead.steering"] = "fairlead.steering"
    version: Literal[1] = 1
    description: str
    direction: Direction
    requests: tuple[str, ...]
    goal: float
    max_loss_rise: float
    num_contrast: int
    num_calibration: int
    effect_before: float
    effect_request: float
    readout_auroc: float | None = None
    neutral_loss: tuple[float, float]
    requested_loss: tuple[float, float] | None = None
    gate: float | None = None
    candidates: tuple[str, ...] = ()
    trials: tuple[Trial, ...]
    chosen: int
    placebo: Trial
    samples: tuple[tuple[str, str, str], ...] = ()  # prompt, unedited answer, edited answer

    @property
    def best(self) -> Trial:
        """The chosen trial."""
        return self.trials[self.chosen]

    @property
    def reached(self) -> bool:
        """Whether the goal was reached within the allowed rise of the loss."""
        return self.best.effect >= self.goal and self.best.loss_rise <= self.max_loss_rise

    @property
    def verdict(self) -> str:
        """Whether the goal was reached, and if not, what it fell short of."""
        if self.reached:
            return "Goal reached"
        short = []
        if self.best.effect < self.goal:
            short.append(f"effect below {self.goal:.0%}")
        if self.best.loss_rise > self.max_loss_rise:
            short.append(
                f"{self.best.loss_rise:+.2f} nats a token where {self.max_loss_rise:+.2f} are allowed"
            )
        return f"Goal not reached ({', '.join(short)})"
