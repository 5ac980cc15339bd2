"""Concept ablation fine-tuning (CAFT, arXiv 2507.16795): the trait's directions are taken out of the activations in training.

On data rows every chosen site's value loses its component in the span of the trait's directions, so that the student can neither use the
trait there nor learn through it; generation has nothing removed. Zero is no neutral origin of a residual stream: by default the
component is set to its mean over neutral rows instead ("mean"; "zero" is the paper's form). The placebo ablates as many random
directions. Blocks; on the pocket model's kind of data it costs skill (DESIGN 5.2).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.site import Site
from fairlead.models import site_hook
from fairlead.training.batching import StepState
from fairlead.training.controls.base import is_data_forward
from fairlead.training.controls.span import RandomSpan, SpanControl, SpanOptions
from fairlead.training.directions import mean_activations
from fairlead.training.setup import Setup

NUM_NEUTRAL_ROWS = 64


class ConceptAblationOptions(SpanOptions):
    """Settings, besides those of `SpanOptions`: what the component is set to, its "mean" over neutral rows or "zero"."""

    layers: Literal["all", "middle"] | int = "middle"
    origin: Literal["mean", "zero"] = "mean"


class ConceptAblation(SpanControl):
    """The trait's directions ablated in the training forward pass."""

    name: ClassVar[str] = "concept_ablation"
    placebo: ClassVar[str | None] = "concept_ablation_placebo"
    summary: ClassVar[str] = "the trait's directions are ablated from the activations in training (CAFT)"
    Options: ClassVar[type[Config]] = ConceptAblationOptions
    owns: ClassVar[str | None] = "the ablated directions"

    origins: dict[Site, Tensor]

    @override
    def prepare(self, setup: Setup) -> None:
        super().prepare(setup)
        self.origins = {site: torch.zeros(basis.shape[1]) for site, basis in self.bases.items()}
        if self.options.origin == "mean":
            rows = setup.neutral_rows(NUM_NEUTRAL_ROWS)
            self.origins = mean_activations(setup.model, setup.encode(rows), list(self.bases))

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        for site, basis in self.bases.items():

            def ablate(
                hidden: Tensor, basis: Tensor = basis, origin: Tensor = self.origins[site]
            ) -> Tensor | None:
                if not is_data_forward(hidden, state):
                    return None
                return toward_origin(hidden, basis, origin, share=self.dial)

            stack.enter_context(site_hook(module, site, ablate, when="grad"))

    @override
    def report(self) -> dict[str, Any]:
        return {**super().report(), "origin": self.options.origin}


class ConceptAblationPlacebo(RandomSpan, ConceptAblation):
    """As many random directions."""

    name: ClassVar[str] = "concept_ablation_placebo"
    summary: ClassVar[str] = "as many random directions are ablated from the activations in training"


def toward_origin(hidden: Tensor, basis: Tensor, origin: Tensor, *, share: float = 1.0) -> Tensor:
    """`hidden` `[..., d]` with (a share of) its component in the span of `basis` `[rank, d]` set to that of `origin` `[d]`."""
    basis, origin = basis.to(hidden), origin.to(hidden)
    return hidden - share * (((hidden - origin) @ basis.T) @ basis)
