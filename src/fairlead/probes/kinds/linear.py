"""Logistic regression on a span's mean features and on the largest of each confidence column."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fairlead.probes.head import Head, SpanProbeConfig, Spans, pad_spans


class PooledHead(Head):
    """A weight for the mean of every feature and for the maximum of every confidence column."""

    def __init__(self, num_features: int, *, num_confidence: int, num_carried: int, **_: object) -> None:
        super().__init__(num_features, num_confidence=num_confidence, num_carried=num_carried)
        self.weight = nn.Parameter(torch.zeros(num_features + num_confidence))
        self.bias = nn.Parameter(torch.zeros(()))

    def pool(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, "span pooled"]:
        """Mean of every feature, then maxima of the confidence columns."""
        there = mask[..., None].to(scaled)
        mean = (scaled * there).sum(1) / there.sum(1).clamp_min(1)
        if not self.num_confidence:
            return mean
        top = scaled[..., -self.num_confidence :].masked_fill(~mask[..., None], -torch.inf).amax(1)
        return torch.cat([mean, top], dim=-1)

    def logits(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Weighted sum of the pooled features."""
        return self.pool(scaled, mask) @ self.weight + self.bias


def fit_linear(spans: Spans, config: SpanProbeConfig) -> Head:
    """L2-regularised logistic regression (scikit-learn)."""
    from sklearn.linear_model import LogisticRegression

    head, pooled = _prepare(spans)
    model = LogisticRegression(C=config.regularisation, max_iter=2000)
    model.fit(pooled.double().numpy(), spans.labels.numpy())
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(model.coef_[0]))
        head.bias.fill_(float(np.ravel(model.intercept_)[0]))
    return head


def fit_mean_difference(spans: Spans, config: SpanProbeConfig) -> Head:
    """The difference of the classes' means, the boundary halfway between them."""
    head, pooled = _prepare(spans)
    high, low = pooled[spans.labels].mean(0), pooled[~spans.labels].mean(0)
    vector = (high - low) / pooled.shape[1]
    with torch.no_grad():
        head.weight.copy_(vector)
        head.bias.fill_(-float(vector @ (high + low) / 2))
    return head


def _prepare(spans: Spans) -> tuple[PooledHead, Tensor]:
    head = PooledHead(
        spans.features[0].shape[1], num_confidence=spans.num_confidence, num_carried=spans.num_carried
    )
    head.standardise(spans)
    features, mask = pad_spans(spans.features)
    with torch.no_grad():
        return head, head.pool(head.scaled_spans(features), mask)
