"""What controls share that act on the span of the trait's directions: where it comes from, and its placebo.

Directions come from the clause's examples (difference of means per layer) or, at the dictionary's site, from the decoder rows of
the avoided concepts. The placebo spans as many random directions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.site import Site
from fairlead.training.controls.base import Control, Kind
from fairlead.training.directions import random_rows, trait_bases
from fairlead.training.setup import Setup


class SpanOptions(Config):
    """Settings.

    Attributes:
        layers: "all", "middle" or a layer's number (with directions from examples).
        source: "examples" or "dictionary".
    """

    layers: Literal["all", "middle"] | int = "all"
    source: Literal["examples", "dictionary"] = "examples"


class SpanControl(Control):
    """Acts on the span of the trait's directions, with `bases` site by site `[rank, d]`; its dial is the share taken out."""

    kind: ClassVar[Kind] = "blocks"
    Options: ClassVar[type[Config]] = SpanOptions
    acts_on_data: ClassVar[bool] = True
    default_strength: ClassVar[float | None] = 1.0

    bases: dict[Site, Tensor]

    @override
    def prepare(self, setup: Setup) -> None:
        options = self.options
        self.bases = trait_bases(
            setup,
            self.config.clause,
            layers=options.layers,
            source=options.source,
            choose=lambda rows: self.choose(setup, rows),
        )

    def choose(self, setup: Setup, vectors: Tensor) -> Tensor:
        """The directions `[direction, d]` to span, given the real ones."""
        return vectors

    @override
    def report(self) -> dict[str, Any]:
        return {
            "share": self.strength,
            "directions": {str(site): len(basis) for site, basis in self.bases.items()},
        }


class RandomSpan(SpanControl):
    """Spans as many random directions: stands first among the bases of a placebo."""

    placebo: ClassVar[str | None] = None

    @override
    def choose(self, setup: Setup, vectors: Tensor) -> Tensor:
        return random_rows(vectors, setup.config.seed)
