"""Gradient projection: remove the component along the trait's directions from dL/dh on data rows.

A baseline that *blocks*: known to fail, since other layers and directions take the trait up (DESIGN 5.2: leak unchanged even
with all layers projected). Directions come from the clause's examples (difference of means per layer) or, at the dictionary's
site, from the decoder rows of the avoided concepts. The placebo removes random directions.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import TrainingError
from fairlead.core.site import Site
from fairlead.models import site_hook
from fairlead.training.batching import StepState
from fairlead.training.controls.base import Control, Kind, is_data_forward
from fairlead.training.directions import choose_sites, clause_directions
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
        vectors: dict[Site, list[Tensor]] = {}
        if self.options.source == "dictionary":
            if setup.dictionary is None or setup.plan is None:
                raise TrainingError(
                    "gradient_projection from a dictionary needs a plan that names one. Next: use source='examples'."
                )
            avoided = {decision.concept for decision in setup.plan.avoided()}
            latents = [i for c in setup.plan.concepts if c.id in avoided for i in c.latents]
            if not latents:
                raise TrainingError("the plan avoids no concept. Next: use source='examples'.")
            vectors[setup.dictionary.site] = list(setup.dictionary.decoder[latents].float())
        else:
            sites = choose_sites(setup.model, self.options.layers)
            for clause in setup.avoided(self.config.clause):
                for site, direction in clause_directions(setup, clause, sites).items():
                    vectors.setdefault(site, []).append(direction.vector)
        self.bases = {
            site: orthonormal(self.choose(setup, torch.stack(rows))) for site, rows in vectors.items()
        }

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
        generator = torch.Generator().manual_seed(setup.config.seed)
        return torch.randn(vectors.shape, generator=generator)


def orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal basis `[rank, d]` of the span of rows `[direction, d]`."""
    _, values, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    return basis[values > 1e-6 * values.max().clamp_min(1e-30)].float()


def without_span(grad: Tensor, basis: Tensor, *, share: float = 1.0) -> Tensor:
    """A gradient `[..., d]` less (a share of) its component in the span of an orthonormal basis `[rank, d]`."""
    basis = basis.to(grad)
    return grad - share * ((grad @ basis.T) @ basis)
