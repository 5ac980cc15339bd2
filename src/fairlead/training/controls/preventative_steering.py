"""Preventative steering: add the trait vector in the training forward pass, remove it at test.

The vector supplies the trait on data rows while training, so that the weights need not (persona vectors, arXiv 2507.21509). One layer, or
all layers by increments v_l - v_(l-1). Known to be sensitive to the coefficient and to cost coherence when it is large. The
placebo adds random directions of equal norm.

With `feedback` the coefficient is measured instead of set: before the training and every `every` steps, on a fixed sample of data
rows that carry the trait, the student's log p of the data's tokens with the vector less that without (the gain) is taken at
coefficients around the present one, and the best is moved to, by `limit` at most. What the vector explains best is what the weights
need not learn. The coefficient is the dial times a factor; feedback moves the factor, and whoever turns the dial moves both.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.nouns import Direction
from fairlead.core.progress import say
from fairlead.core.site import Site
from fairlead.data import Encoded
from fairlead.models import site_hook
from fairlead.training.batching import StepState
from fairlead.training.carriers import find_carriers
from fairlead.training.config import ControlConfig
from fairlead.training.controls.base import ACCOUNT, Control, Kind, is_data_forward
from fairlead.training.directions import choose_sites, clause_directions, increments, random_like
from fairlead.training.logits import iter_logprobs
from fairlead.training.setup import Setup

GRID = (-1.0, -0.5, 0.0, 0.5, 1.0)  # in units of `limit` around the present factor


class PreventativeSteeringOptions(Config):
    """Settings.

    Attributes:
        layers: "all" (by increments), the "middle" one, or a layer's number.
        feedback: Set the coefficient by measurement.
        every: Steps between two measurements.
        sample: Carrying rows on which it is measured.
        limit: Largest move of the factor on the strength, at a time.
        max_factor: Largest factor on the strength.
    """

    layers: Literal["all", "middle"] | int = "all"
    feedback: bool = False
    every: int = Field(default=25, ge=1)
    sample: int = Field(default=32, ge=1)
    limit: float = Field(default=0.5, gt=0)
    max_factor: float = Field(default=4.0, gt=0)


class PreventativeSteering(Control):
    """The trait vector added on data rows, in training only."""

    name: ClassVar[str] = "preventative_steering"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "preventative_steering_placebo"
    summary: ClassVar[str] = "the trait vector added on data rows, in training only"
    Options: ClassVar[type[Config]] = PreventativeSteeringOptions
    owns: ClassVar[str | None] = ACCOUNT
    acts_on_data: ClassVar[bool] = True
    default_strength: ClassVar[float | None] = 1.0
    relieves: ClassVar[bool] = True

    vectors: dict[Site, Direction]

    def __init__(self, config: ControlConfig) -> None:
        super().__init__(config)
        self.factor = min(1.0, self.options.max_factor)
        self.moves: list[dict[str, float]] = []
        self.sample: list[Encoded] = []

    @property
    def coefficient(self) -> float:
        """What the vectors are multiplied with: the dial times the factor that feedback has set."""
        return self.dial * self.factor

    @override
    def prepare(self, setup: Setup) -> None:
        sites = choose_sites(setup.model, self.options.layers)
        self.vectors = {}
        for clause in setup.avoided(self.config.clause):
            found = clause_directions(setup, clause, sites)
            for site, direction in (increments(found) if len(sites) > 1 else found).items():
                before = self.vectors.get(site)
                vector = direction.vector if before is None else before.vector + direction.vector
                self.vectors[site] = Direction(site, vector, direction.name, direction.provenance)
        self.vectors = self.choose(setup, self.vectors)
        if self.options.feedback:
            self.pad_id, self.sample = (
                setup.pad_id,
                carrying_sample(setup, self.config.clause, self.options.sample),
            )
            if not self.sample:
                note = f"{self.name}: no row of the data carries the trait; the coefficient stays as it is."
                setup.notes.append(note)
                say(note)

    def choose(self, setup: Setup, vectors: dict[Site, Direction]) -> dict[Site, Direction]:
        """The vectors to add, given the real ones."""
        return vectors

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        for site, direction in self.vectors.items():

            def add(hidden: Tensor, vector: Tensor = direction.vector) -> Tensor | None:
                return (
                    hidden + (self.coefficient * vector).to(hidden)
                    if is_data_forward(hidden, state)
                    else None
                )

            stack.enter_context(site_hook(module, site, add, when="grad"))

    @override
    def before_step(self, step: int, student: nn.Module) -> None:
        if not self.sample or self.dial == 0 or step % self.options.every:
            return
        training = student.training
        student.eval()
        try:
            self.measure(step, student)
        finally:
            student.train(training)

    def measure(self, step: int, student: nn.Module) -> None:
        """Move the factor to the best of those around it."""
        options, before = self.options, self.factor
        grid = {min(max(before + place * options.limit, 0.0), options.max_factor) for place in GRID}
        without = self.logprob(student, 0.0)
        gains = {factor: self.logprob(student, self.dial * factor) - without for factor in sorted(grid)}
        # among equals the nearest, so that a flat measurement moves nothing
        self.factor = max(gains, key=lambda factor: (gains[factor], -abs(factor - before)))
        self.moves.append(
            {
                "step": step,
                "from": round(self.dial * before, 6),
                "to": round(self.coefficient, 6),
                "gain": round(gains[self.factor], 4),
                "gain_before": round(gains[before], 4),
            }
        )

    def logprob(self, student: nn.Module, coefficient: float) -> float:
        """Mean log p of the sampled rows' response tokens with the vectors at a coefficient."""
        total, num = 0.0, 0
        device = next(student.parameters()).device
        with ExitStack() as stack:
            for site, direction in self.vectors.items():
                moved = (coefficient * direction.vector).to(device)
                stack.enter_context(
                    site_hook(
                        student, site, lambda hidden, v=moved: hidden + v.to(hidden.dtype), when="no_grad"
                    )
                )
            for _, logprobs, tokens in iter_logprobs(student, self.sample, pad_id=self.pad_id, device=device):
                for values, targets in zip(logprobs, tokens, strict=True):
                    total += float(values.gather(1, targets[:, None]).sum())
                    num += len(targets)
        return total / max(num, 1)

    @override
    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "moves": self.moves} if self.options.feedback else {}

    @override
    def restore(self, state: dict[str, Any]) -> None:
        self.factor, self.moves = float(state["factor"]), list(state["moves"])

    @override
    def report(self) -> dict[str, Any]:
        return {
            "coefficient": self.coefficient,
            **({"moves": self.moves} if self.options.feedback else {}),
            "norms": {str(site): round(float(d.vector.norm()), 4) for site, d in self.vectors.items()},
            "made": next(iter(self.vectors.values())).provenance if self.vectors else {},
        }


class PreventativeSteeringPlacebo(PreventativeSteering):
    """Random directions of equal norm."""

    name: ClassVar[str] = "preventative_steering_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "random directions of equal norm added on data rows, in training only"

    @override
    def choose(self, setup: Setup, vectors: dict[Site, Direction]) -> dict[Site, Direction]:
        return random_like(vectors, seed=setup.config.seed)


def carrying_sample(setup: Setup, clause: str | None, num: int) -> list[Encoded]:
    """`num` rows of the data, drawn by the seed, that carry an avoided clause; as the student sees them."""
    carries: set[int] = set()
    for avoided in setup.avoided(clause):
        carries |= set(find_carriers(setup, avoided).carries.nonzero()[:, 0].tolist())
    rng = random.Random(f"{setup.config.seed}:preventative_steering")
    return [setup.encoded[place] for place in sorted(rng.sample(sorted(carries), min(num, len(carries))))]
