"""Preventative steering: add the trait vector in the training forward pass, remove it at test.

The vector supplies the trait on data rows while training, so that the weights need not (persona vectors, arXiv 2507.21509). One layer, or
all layers by increments v_l - v_(l-1). Known to be sensitive to the coefficient and to cost coherence when it is large: `fairlead plan`
calibrates it, and `feedback` turns it while training. The placebo adds random directions of equal norm.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.nouns import Direction
from fairlead.core.site import Site
from fairlead.models import site_hook
from fairlead.training.batching import StepState
from fairlead.training.controls.base import ACCOUNT, Control, Kind, is_data_forward
from fairlead.training.directions import choose_sites, clause_directions, increments, random_like
from fairlead.training.setup import Setup


class PreventativeSteeringOptions(Config):
    """Settings: "all" layers (by increments), the "middle" one, or a layer's number."""

    layers: Literal["all", "middle"] | int = "all"


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

    def choose(self, setup: Setup, vectors: dict[Site, Direction]) -> dict[Site, Direction]:
        """The vectors to add, given the real ones."""
        return vectors

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        for site, direction in self.vectors.items():

            def add(hidden: Tensor, vector: Tensor = direction.vector) -> Tensor | None:
                return hidden + (self.dial * vector).to(hidden) if is_data_forward(hidden, state) else None

            stack.enter_context(site_hook(module, site, add, when="grad"))

    @override
    def report(self) -> dict[str, Any]:
        return {
            "coefficient": self.strength,
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
