"""The records of what training did: measures, pressure, verification, comparison.

Names of measures (one vocabulary for tables, reports, `--json` and agents):

    skill.NAME / skill.NAME.heldout    share of held-out items answered right
    skill.NAME.plain                   ... right and without any avoided trait ("asked and answered plainly")
    leak.TRAIT.neutral / .domain       share of answers with the avoided trait, on other / on-topic prompts
    request.TRAIT                      share of answers with the trait when it is asked for
    elicited.TRAIT                     share of continuations with it, after openings in its style (models of plain text)
    loss.neutral / loss.keep           nats per token on neutral text / on the Keep clauses' held-out text
    loss.TRAIT                         nats per token on held-out text that shows the avoided trait
    monitor.TRAIT.old_probe            AUROC of the start model's probe on the trained model
    monitor.TRAIT.new_probe            AUROC of a retrained probe
    monitor.TRAIT.text_only            AUROC of a text classifier on the same answers
    monitor.TRAIT.*_token              the same three from one token of each answer
    monitor.dictionary.fvu             share of variance the old dictionary leaves unexplained
    monitor.dictionary.ce_recovered    share of cross-entropy it recovers
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fairlead.core.config import Record


class Measure(Record):
    """A number with its 95 % interval and the count behind it."""

    value: float
    low: float
    high: float
    num: int


class Prediction(Record):
    """Previewed against measured change of one concept."""

    concept: str
    label: str
    predicted: float  # uptake of the preview
    rehearsed: float | None = None  # its change in the preview's rehearsal, where there was one
    measured: float  # change of the concept's mean activation (trained minus start), held-out prompts
    verdict: str = "ignore"


class Sample(Record):
    """One prompt with one model's answer."""

    prompt: str
    answer: str
    group: str  # "domain", "neutral", "request"
    correct: bool | None = None
    traits: tuple[str, ...] = ()  # avoided traits found in the answer


class Verification(Record):
    """Everything measured on one model after a training (or on the start model)."""

    format: Literal["fairlead.verification"] = "fairlead.verification"
    version: Literal[1] = 1
    model: str
    measures: dict[str, Measure]
    predictions: tuple[Prediction, ...] = ()
    prediction_spearman: float | None = None
    rehearsal_spearman: float | None = None
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()


class StepRecord(Record):
    """One observed training step."""

    step: int
    loss: float
    seconds: float
    pressure: dict[str, float] = Field(default_factory=dict)  # avoided concept's id -> uptake on this batch
    kept: dict[str, float] = Field(default_factory=dict)  # the same of the concepts that are kept
    # loss parts by control ("anchor", "spec_examples", ...)
    parts: dict[str, float] = Field(default_factory=dict)


class Checkup(Record):
    """What was measured on the student after a step of its training."""

    step: int
    measures: dict[str, Measure]


class ArmResult(Record):
    """One training run of a comparison."""

    arm: str
    seed: int
    controls: tuple[str, ...]
    steps: tuple[StepRecord, ...] = ()
    checkups: tuple[Checkup, ...] = ()  # while it trained, where that was asked for
    verification: Verification
    seconds: float = 0.0
    folder: str = ""


class Comparison(Record):
    """Arms over seeds, beside the start model."""

    format: Literal["fairlead.comparison"] = "fairlead.comparison"
    version: Literal[1] = 1
    model: str
    data: str
    base: Verification
    arms: tuple[ArmResult, ...]
    command: str = ""
    notes: tuple[str, ...] = ()

    def arm_names(self) -> tuple[str, ...]:
        """Arms in order of first appearance."""
        return tuple(dict.fromkeys(result.arm for result in self.arms))

    def values(self, arm: str, measure: str) -> list[float]:
        """One value per seed of a measure; empty where the arm lacks it."""
        return [
            result.verification.measures[measure].value
            for result in self.arms
            if result.arm == arm and measure in result.verification.measures
        ]

    def checked_steps(self) -> tuple[int, ...]:
        """Steps at which students were measured while they trained."""
        return tuple(sorted({one.step for result in self.arms for one in result.checkups}))

    def values_at(self, arm: str, measure: str, step: int) -> list[float]:
        """One value per seed of a measure after a step; empty where the arm lacks it."""
        return [
            one.measures[measure].value
            for result in self.arms
            for one in result.checkups
            if result.arm == arm and one.step == step and measure in one.measures
        ]
