"""Directions and readouts: the nouns that probes, dictionaries and geometry make and all else uses.

A `Direction` is a vector at a site with its provenance. A `Readout` turns activations
`[..., d_model]` at a site into scores `[...]`; a `SpanReadout` reads stretches of tokens, at one site or several. None says which
method made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from fairlead.core.claims import TokenSpan
    from fairlead.core.site import Site


@dataclass(frozen=True)
class Direction:
    """A vector at a site.

    Attributes:
        site: Where the vector lives.
        vector: Tensor `[d_model]`, in the units of the activations at `site`.
        name: What it stands for.
        provenance: How it was made (method, data hash, seed, ...); JSON values only.
    """

    site: Site
    vector: torch.Tensor
    name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def unit(self) -> torch.Tensor:
        """The vector at norm one, `[d_model]`."""
        return self.vector / self.vector.norm().clamp_min(1e-12)


@runtime_checkable
class Readout(Protocol):
    """Anything that scores activations at a site."""

    @property
    def site(self) -> Site:
        """Where the activations come from."""
        ...

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """Scores `[...]` of activations `[..., d_model]`."""
        ...


@runtime_checkable
class SpanReadout(Protocol):
    """Anything that scores stretches of tokens: what guards and rewards read claims with."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the activations come from."""
        ...

    def token_scores(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Probabilities `[batch, seq]` token by token, from activations `[batch, seq, d_model]` by `str(site)`."""
        ...

    def span_scores(
        self, activations: Mapping[str, torch.Tensor], spans: Sequence[TokenSpan]
    ) -> torch.Tensor:
        """Calibrated probabilities `[span]`; a span's score depends on the activations of its own tokens alone."""
        ...


@dataclass(frozen=True)
class LinearReadout:
    """Projection on a direction plus a bias: the simplest readout."""

    direction: Direction
    bias: float = 0.0

    @property
    def site(self) -> Site:
        """Where the direction lives."""
        return self.direction.site

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """Scores `[...]` of activations `[..., d_model]`."""
        vector = self.direction.vector.to(activations)
        return activations @ vector + self.bias
