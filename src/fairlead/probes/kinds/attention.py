"""Attention probe (arXiv 2602.10067): each head looks at some tokens of the span and adds up what it finds there.

`weight = softmax over the span's tokens of q . k(x)`, `value = v(x)`, heads concatenated, linear, sigmoid. A query and a key map of one
head are a single vector, which is what is learned here. Departures: with `values="confidence"` the activations decide where to look and
the model's confidence there is what is added up, so that the probe cannot learn names by heart; and the confidence of the whole span
(mean, maximum, sum) is added to what the heads find.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fairlead.probes.descent import descend
from fairlead.probes.head import Head, SpanProbeConfig, Spans


class AttentionHead(Head):
    """Softmax pooling with several heads of one value each."""

    def __init__(
        self,
        num_features: int,
        *,
        num_confidence: int,
        num_carried: int,
        heads: int,
        values: str,
        **_: object,
    ) -> None:
        super().__init__(num_features, num_confidence=num_confidence, num_carried=num_carried)
        self.only_confidence = values == "confidence" and num_confidence > 0
        num_values = num_confidence if self.only_confidence else num_features
        num_keys = self.num_activations or num_features
        self.keys = nn.Parameter(torch.zeros(num_keys, heads))
        self.values = nn.Parameter(torch.randn(num_values, heads) * 0.3 / num_values**0.5)
        self.out = nn.Parameter(torch.randn(heads) / heads**0.5)
        self.whole = nn.Parameter(torch.zeros(3 * num_confidence))
        self.bias = nn.Parameter(torch.zeros(()))

    def weights(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, "span token head"]:
        """How much each head looks at each token; sums to 1 over the tokens of a span."""
        keys = scaled[..., : len(self.keys)] @ self.keys * (3 / len(self.keys) ** 0.5)
        return keys.masked_fill(~mask[..., None], -torch.inf).softmax(1)

    def logits(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Heads' sums, weighted."""
        found = scaled[..., -len(self.values) :] @ self.values
        heads = (self.weights(scaled, mask) * found).sum(1) @ self.out + self.bias
        if not self.num_confidence:
            return heads
        confidence = self.pool(scaled, mask)[:, self.num_activations :]
        return heads + confidence @ self.whole


def fit_attention(spans: Spans, config: SpanProbeConfig) -> Head:
    """Fit by gradient descent on the spans' cross-entropy."""
    torch.manual_seed(config.seed)
    head = AttentionHead(
        spans.features[0].shape[1],
        num_confidence=spans.num_confidence,
        num_carried=spans.num_carried,
        heads=config.heads,
        values=config.values,
    )
    head.standardise(spans)
    descend(head, spans, config)
    return head
