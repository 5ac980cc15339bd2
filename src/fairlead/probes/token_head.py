"""What a single token says: the reading of tokens that goes with a probe of spans.

A span's pooled features mean little for one token (most tokens of a claim carry nothing, and those that do are told apart by where they
stand), so tokens have a small head of their own: gates on the activations decide whether the token's confidence counts,
`logit = sum over gates of sigmoid(g . x) * (v . confidence) + w . confidence + b`; without confidence, it is linear in the activations.
Fitted like the spans, every token carrying the label of its span.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fairlead.probes.descent import descend
from fairlead.probes.head import Head, SpanProbeConfig, Spans

NUM_GATES = 4
MAX_TOKENS = 40_000  # a token head is small: more tokens only take time


class TokenHead(Head):
    """Gated confidence; spans score as the mean of their tokens (it is not used for spans)."""

    def __init__(self, num_features: int, *, num_confidence: int, num_carried: int, **_: object) -> None:
        super().__init__(num_features, num_confidence=num_confidence, num_carried=num_carried)
        gates = NUM_GATES if num_confidence else 0
        self.gates = nn.Parameter(torch.zeros(self.num_activations, gates))
        self.values = nn.Parameter(torch.randn(num_confidence, gates) * 0.1)
        self.direct = nn.Parameter(torch.zeros(num_confidence or num_features, 1))
        self.bias = nn.Parameter(torch.zeros(()))

    def scores(self, scaled: Float[Tensor, "span token feature"]) -> Float[Tensor, "span token"]:
        """Logit of every token."""
        read = scaled[..., -len(self.direct) :]
        direct = (read @ self.direct)[..., 0] + self.bias
        if not self.num_confidence:
            return direct
        open_ = torch.sigmoid(
            scaled[..., : self.num_activations] @ self.gates * (3 / self.num_activations**0.5)
        )
        return direct + (open_ * (read @ self.values)).sum(-1)

    def logits(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Mean over the tokens; for a span of one token, its logit."""
        there = mask.to(scaled)
        return (self.scores(scaled) * there).sum(1) / there.sum(1).clamp_min(1)

    def loss(
        self,
        scaled: Float[Tensor, "span token feature"],
        mask: Bool[Tensor, "span token"],
        labels: Float[Tensor, " span"],
        progress: float,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the tokens."""
        each = labels[:, None].expand(mask.shape)[mask]
        return nn.functional.binary_cross_entropy_with_logits(self.scores(scaled)[mask], each)


def fit_token_head(spans: Spans, config: SpanProbeConfig) -> TokenHead:
    """Fit on the tokens of spans (on some of the spans where there are very many tokens)."""
    torch.manual_seed(config.seed)
    order = torch.randperm(len(spans.features), generator=torch.Generator().manual_seed(config.seed)).tolist()
    chosen, num = [], 0
    for place in order:
        if num >= MAX_TOKENS:
            break
        chosen.append(place)
        num += len(spans.features[place])
    part = spans.subset(sorted(chosen))
    head = TokenHead(
        part.features[0].shape[1], num_confidence=part.num_confidence, num_carried=part.num_carried
    )
    head.standardise(part)
    descend(head, part, config)
    return head
