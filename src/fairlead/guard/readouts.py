"""Readouts that a guard can use: anything that is a `SpanReadout`, and any other readout made one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fairlead.core.claims import TokenSpan
from fairlead.core.errors import ConfigError
from fairlead.core.nouns import Readout, SpanReadout
from fairlead.core.site import Site

Pool = Literal["mean", "max", "last"]


class TokenReadout:
    """A readout of single activations (a linear probe, a dictionary latent, a projection) as a `SpanReadout`.

    Probabilities are the logistic function of its scores; a span has that of the mean, largest or last score of its tokens.

    Args:
        readout: Scores activations, above 0 for the unwanted side.
        pool: How tokens make a span.
    """

    def __init__(self, readout: Readout, *, pool: Pool = "mean") -> None:
        self.readout, self.pool = readout, pool

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the activations come from."""
        return (self.readout.site,)

    def token_scores(self, activations: Mapping[str, Tensor]) -> Tensor:
        """Probabilities `[batch, seq]`."""
        return torch.sigmoid(self._raw(activations))

    def span_scores(self, activations: Mapping[str, Tensor], spans: Sequence[TokenSpan]) -> Tensor:
        """Probabilities `[span]`."""
        return self._pooled(self._raw(activations), spans)

    def span_and_token_scores(
        self, activations: Mapping[str, Tensor], spans: Sequence[TokenSpan]
    ) -> tuple[Tensor, Tensor]:
        """`span_scores` and `token_scores`, from one reading."""
        raw = self._raw(activations)
        return self._pooled(raw, spans), torch.sigmoid(raw)

    def _pooled(self, raw: Tensor, spans: Sequence[TokenSpan]) -> Tensor:
        found = []
        for span in spans:
            own = raw[span.row, span.start : span.end]
            found.append(own.mean() if self.pool == "mean" else own.max() if self.pool == "max" else own[-1])
        return torch.sigmoid(torch.stack(found)) if found else raw.new_zeros(0)

    def _raw(self, activations: Mapping[str, Tensor]) -> Tensor:
        return self.readout(activations[str(self.readout.site)].float())


def as_span_readout(readout: SpanReadout | Readout) -> SpanReadout:
    """The readout itself where it reads spans, else a `TokenReadout` of it.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(readout, SpanReadout):
        return readout
    if isinstance(readout, Readout):
        return TokenReadout(readout)
    raise ConfigError(
        f"{type(readout).__name__} reads no activations. Next: pass a probe, or anything with `sites`, `token_scores` and `span_scores`."
    )


def score_both(
    readout: SpanReadout, activations: Mapping[str, Tensor], spans: Sequence[TokenSpan]
) -> tuple[Tensor, Tensor]:
    """Probabilities of spans `[span]` and tokens `[batch, seq]`; read once where the readout can (`span_and_token_scores`)."""
    together = getattr(readout, "span_and_token_scores", None)
    if together is not None:
        return together(activations, spans)
    return readout.span_scores(activations, spans), readout.token_scores(activations)
