"""Logistic regression, or the difference of means, on what a span's tokens hold together.

Pooled are the mean of every feature, and the maximum and the sum of every confidence column. Activations are many and confidence columns
few, so `linear` scales the activations down by a factor that is chosen by cross-validation over entities: probes that could learn the
entities of the fit by heart are held to what carries over.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fairlead.core.stats import auroc
from fairlead.probes.head import Head, SpanProbeConfig, Spans, pad_spans

FACTORS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NUM_FOLDS = 4


class PooledHead(Head):
    """A weight for each pooled feature."""

    def __init__(self, num_features: int, *, num_confidence: int, num_carried: int, **_: object) -> None:
        super().__init__(num_features, num_confidence=num_confidence, num_carried=num_carried)
        self.weight = nn.Parameter(torch.zeros(num_features + 2 * num_confidence))
        self.bias = nn.Parameter(torch.zeros(()))

    def logits(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Weighted sum of the pooled features."""
        return self.pool(scaled, mask) @ self.weight + self.bias


def fit_linear(spans: Spans, config: SpanProbeConfig) -> Head:
    """L2-regularised logistic regression (scikit-learn)."""
    head, pooled = _prepare(spans)
    x, y = pooled.double().numpy(), spans.labels.numpy()
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-8, scale, 1.0)
    x = (x - mean) / scale
    factors = np.ones(x.shape[1])
    if spans.num_confidence:
        factors[: head.num_activations] = _choose_factor(x, y, spans.groups, head.num_activations, config)
    model = _logistic(config).fit(x * factors, y)
    weight = model.coef_[0] * factors / scale
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.fill_(float(np.ravel(model.intercept_)[0]) - float(weight @ mean))
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


def _logistic(config: SpanProbeConfig):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=config.regularisation, max_iter=2000)


def _choose_factor(
    x: np.ndarray, y: np.ndarray, groups: list[str], num: int, config: SpanProbeConfig
) -> float:
    """The scale of the activations with the best AUROC over folds of entities; the smaller one where two are equal."""
    rng = np.random.default_rng(config.seed)
    names = sorted(set(groups))
    fold_of = dict(zip(names, rng.permutation(len(names)) % NUM_FOLDS, strict=True))
    folds = np.array([fold_of[group] for group in groups])
    best, chosen = -1.0, 0.0
    for factor in FACTORS:
        factors = np.ones(x.shape[1])
        factors[:num] = factor
        scores = np.zeros(len(y))
        for fold in range(NUM_FOLDS):
            held = folds == fold
            if held.all() or not held.any() or y[~held].all() or not y[~held].any():
                return 1.0  # too few entities to choose by
            scores[held] = (
                _logistic(config).fit(x[~held] * factors, y[~held]).decision_function(x[held] * factors)
            )
        quality = auroc(scores[y], scores[~y])
        if quality > best + 1e-4:
            best, chosen = quality, factor
    return chosen


def _prepare(spans: Spans) -> tuple[PooledHead, Tensor]:
    head = PooledHead(
        spans.features[0].shape[1], num_confidence=spans.num_confidence, num_carried=spans.num_carried
    )
    head.standardise(spans)
    pooled = []
    with torch.no_grad():
        for start in range(
            0, len(spans.features), 256
        ):  # long texts, padded all at once, would not fit into memory
            features, mask = pad_spans(spans.features[start : start + 256])
            pooled.append(head.pool(head.scaled_spans(features), mask))
    return head, torch.cat(pooled)
