"""Gradient projection: remove the component along the trait's directions from dL/dh on data rows.

A baseline that *blocks*: known to fail, since other layers and directions take the trait up (DESIGN 5.2: leak unchanged even
with all layers projected). Directions come from the clause's examples (difference of means per layer) or, at the dictionary's
site, from the decoder rows of the avoided concepts. The placebo removes random directions.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.site import Site
from fairlead.models import site_hook
from fairlead.training.batching import StepState
from fairlead.training.controls.base import Control, Kind, is_data_forward
from fairlead.training.directions import random_rows, trait_bases
from fairlead.training.setup import Setup


class GradientProjectionOptions(Config):
    """Settings.

    Attributes:
        layers: "all", "middle" or a layer's number (with directions from examples).
        source: "examples" or "dictionary".
    """

    layers: Literal["all", "middle"] | int = "all"
    source: Literal["examples", "dictionary"] = "examples"


class GradientProjection(Control):
    """No gradient along the trait's directions on data rows."""

    name: ClassVar[str] = "gradient_projection"
    kind: ClassVar[Kind] = "blocks"
    placebo: ClassVar[str | None] = "gradient_projection_placebo"
    summary: ClassVar[str] = "the gradient's component along the trait's directions is removed on data rows"
    Options: ClassVar[type[Config]] = GradientProjectionOptions
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
        """The directions `[direction, d]` to remove, given the real ones."""
        return vectors

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        for site, basis in self.bases.items():

            def block(hidden: Tensor, basis: Tensor = basis) -> None:
                if is_data_forward(hidden, state) and hidden.requires_grad:
                    hidden.register_hook(lambda grad: without_span(grad, basis, share=self.dial))

            stack.enter_context(site_hook(module, site, block, when="grad"))

    @override
    def report(self) -> dict[str, Any]:
        return {
            "share": self.strength,
            "directions": {str(site): len(basis) for site, basis in self.bases.items()},
        }


class GradientProjectionPlacebo(GradientProjection):
    """As many random directions."""

    name: ClassVar[str] = "gradient_projection_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "as many random directions are removed from the gradient"

    @override
    def choose(self, setup: Setup, vectors: Tensor) -> Tensor:
        return random_rows(vectors, setup.config.seed)


def without_span(grad: Tensor, basis: Tensor, *, share: float = 1.0) -> Tensor:
    """A gradient `[..., d]` less (a share of) its component in the span of an orthonormal basis `[rank, d]`."""
    basis = basis.to(grad)
    return grad - share * ((grad @ basis.T) @ basis)
