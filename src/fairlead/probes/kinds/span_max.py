"""Token probe with span maximum (arXiv 2509.03531): a linear score per token; a span scores as its highest token.

The loss goes over from the tokens' cross-entropy (every token of a span carries the span's label) to that of the span's maximum.
Departure: the maximum is softened (log-mean-exp at `SHARPNESS`), so that more than one token gets a gradient.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fairlead.probes.descent import descend
from fairlead.probes.head import Head, SpanProbeConfig, Spans

SHARPNESS = 5.0


class SpanMaxHead(Head):
    """A linear score of every token; the span's is their soft maximum."""

    def __init__(
        self, num_features: int, *, num_confidence: int, num_carried: int, ramp: float, **_: object
    ) -> None:
        super().__init__(num_features, num_confidence=num_confidence, num_carried=num_carried)
        self.weight = nn.Parameter(torch.zeros(num_features, 1))
        self.bias = nn.Parameter(torch.zeros(()))
        self.ramp = ramp

    def scores(self, scaled: Float[Tensor, "span token feature"]) -> Float[Tensor, "span token"]:
        """Logit of every token."""
        return (scaled @ self.weight)[..., 0] + self.bias

    def logits(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Soft maximum over the span's tokens; the score itself for a span of one."""
        scores = self.scores(scaled).masked_fill(~mask, -torch.inf)
        return ((SHARPNESS * scores).logsumexp(1) - mask.sum(1).clamp_min(1).log()) / SHARPNESS

    def loss(
        self,
        scaled: Float[Tensor, "span token feature"],
        mask: Bool[Tensor, "span token"],
        labels: Float[Tensor, " span"],
        progress: float,
    ) -> Float[Tensor, ""]:
        """Token loss at the start, span loss from `ramp` on, mixed in between."""
        share = min(1.0, progress / self.ramp) if self.ramp > 0 else 1.0
        span = binary_cross_entropy_with_logits(self.logits(scaled, mask), labels)
        if math.isclose(share, 1.0):
            return span
        each = labels[:, None].expand(mask.shape)[mask]
        token = binary_cross_entropy_with_logits(self.scores(scaled)[mask], each)
        return share * span + (1 - share) * token


def fit_span_max(spans: Spans, config: SpanProbeConfig) -> Head:
    """Fit by gradient descent with the ramp."""
    torch.manual_seed(config.seed)
    head = SpanMaxHead(
        spans.features[0].shape[1],
        num_confidence=spans.num_confidence,
        num_carried=spans.num_carried,
        ramp=config.ramp,
    )
    head.standardise(spans)
    descend(head, spans, config)
    return head
