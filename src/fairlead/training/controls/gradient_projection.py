"""Gradient projection: remove the component along the trait's directions from dL/dh on data rows.

A baseline that *blocks*: known to fail, since other layers and directions take the trait up (DESIGN 5.2: leak unchanged even
with all layers projected). Directions and placebo: `controls.span`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from fairlead.models import site_hook
from fairlead.training.batching import StepState
from fairlead.training.controls.base import is_data_forward
from fairlead.training.controls.span import RandomSpan, SpanControl


class GradientProjection(SpanControl):
    """No gradient along the trait's directions on data rows."""

    name: ClassVar[str] = "gradient_projection"
    placebo: ClassVar[str | None] = "gradient_projection_placebo"
    summary: ClassVar[str] = "the gradient's component along the trait's directions is removed on data rows"
    owns: ClassVar[str | None] = "the projected directions"

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        for site, basis in self.bases.items():

            def block(hidden: Tensor, basis: Tensor = basis) -> None:
                if is_data_forward(hidden, state) and hidden.requires_grad:
                    hidden.register_hook(lambda grad: without_span(grad, basis, share=self.dial))

            stack.enter_context(site_hook(module, site, block, when="grad"))


class GradientProjectionPlacebo(RandomSpan, GradientProjection):
    """As many random directions."""

    name: ClassVar[str] = "gradient_projection_placebo"
    summary: ClassVar[str] = "as many random directions are removed from the gradient"


def without_span(grad: Tensor, basis: Tensor, *, share: float = 1.0) -> Tensor:
    """A gradient `[..., d]` less (a share of) its component in the span of an orthonormal basis `[rank, d]`."""
    basis = basis.to(grad)
    return grad - share * ((grad @ basis.T) @ basis)
