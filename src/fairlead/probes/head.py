"""What all kinds of probes have in common: features are standardised, then turned into logits of tokens and of spans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from fairlead.core.config import Config


class SpanProbeConfig(Config):
    """Settings of a probe and its fitting.

    Attributes:
        kind: `linear`, `mean_difference`, `attention`, `span_max` or `lora`.
        sites: Whose activations are read; None for the residual stream after half and after all of the blocks.
        confidence: Read the model's own confidence as well (causal models only).
        seed: Of initial weights, batches and the split.
        regularisation: Inverse strength C of the L2 penalty of `linear`.
        heads: Of `attention`.
        adds: What `attention` adds up: "confidence" (activations only decide where to look) or "all".
        epochs: Passes over the data of the kinds fitted by gradient descent.
        lr: Their step size.
        weight_decay: Their weight decay.
        batch_spans: Spans in a step.
        ramp: `span_max`: share of training at which the loss has become the span loss.
        rank: Of the `lora` adapters.
        kl: Weight of the divergence from the model without adapters.
        lora_epochs: Passes over the texts that fit the adapters.
        calibration: "platt" (scale and shift), "temperature" (scale), "isotonic", "auto" (isotonic where there is enough data) or "none".
        calibration_share: Share of entities kept for it.
        test_share: Share of entities kept for evaluation.
    """

    kind: str = "linear"
    sites: tuple[str, ...] | None = None
    confidence: bool = True
    seed: int = 0
    regularisation: float = Field(default=1.0, gt=0)
    heads: int = Field(default=8, ge=1)
    adds: Literal["confidence", "all"] = "confidence"
    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1.0, ge=0)
    batch_spans: int = Field(default=128, ge=1)
    ramp: float = Field(default=0.6, ge=0, le=1)
    rank: int = Field(default=8, ge=1)
    kl: float = Field(default=1.0, ge=0)
    lora_epochs: int = Field(default=3, ge=0)
    calibration: str = "auto"
    calibration_share: float = Field(default=0.2, ge=0, lt=1)
    test_share: float = Field(default=0.3, ge=0, lt=1)


class Spans(NamedTuple):
    """Labelled spans as features.

    Attributes:
        features: Per span `[token, feature]`, as read.
        labels: `[span]` bool.
        num_confidence: How many of the last columns are confidence.
        num_carried: How many of these are carried over from the token before and masked on a span's first token; 0 where tokens are read
            one by one.
        groups: `[span]`, the entity of each.
    """

    features: list[Float[Tensor, "token feature"]]
    labels: Bool[Tensor, " span"]
    num_confidence: int
    num_carried: int
    groups: list[str]

    def subset(self, places: list[int]) -> Spans:
        """The spans at these places."""
        return self._replace(
            features=[self.features[place] for place in places],
            labels=self.labels[torch.tensor(places, dtype=torch.long)],
            groups=[self.groups[place] for place in places],
        )


class Head(nn.Module, ABC):
    """Logits of tokens and spans from features as read; the base of every kind.

    Features are standardised over the tokens of the fit; carried columns of a span's first token are at their mean.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int, *, num_confidence: int, num_carried: int) -> None:
        super().__init__()
        self.num_features, self.num_confidence, self.num_carried = num_features, num_confidence, num_carried
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    @property
    def num_activations(self) -> int:
        """Columns that are activations."""
        return self.num_features - self.num_confidence

    def standardise(self, spans: Spans) -> None:
        """Take mean and scale of the features from the tokens of spans (carried columns: without first tokens)."""
        tokens = torch.cat(spans.features)
        later = torch.cat([x[1:] for x in spans.features])
        mean, scale = tokens.mean(0), tokens.std(0, unbiased=False)
        if self.num_carried and len(later):
            mean[-self.num_carried :] = later[:, -self.num_carried :].mean(0)
            scale[-self.num_carried :] = later[:, -self.num_carried :].std(0, unbiased=False)
        self.mean.copy_(mean)
        self.scale.copy_(
            torch.where(scale > 1e-6 * scale.max().clamp_min(1e-30), scale, torch.ones_like(scale))
        )

    def scaled(self, features: Float[Tensor, "... feature"]) -> Float[Tensor, "... feature"]:
        """Standardised features."""
        return (features - self.mean) / self.scale

    def scaled_spans(
        self, features: Float[Tensor, "span token feature"]
    ) -> Float[Tensor, "span token feature"]:
        """Standardised features with the carried columns of first tokens masked."""
        scaled = self.scaled(features)
        if not self.num_carried:
            return scaled
        keep = torch.ones_like(scaled)
        keep[:, 0, -self.num_carried :] = 0
        return scaled * keep

    def pool(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, "span pooled"]:
        """Mean of every feature, then maximum and sum of every confidence column."""
        there = mask[..., None].to(scaled)
        total = (scaled * there).sum(1)
        mean = total / there.sum(1).clamp_min(1)
        if not self.num_confidence:
            return mean
        top = scaled[..., -self.num_confidence :].masked_fill(~mask[..., None], -torch.inf).amax(1)
        return torch.cat([mean, top, total[:, -self.num_confidence :]], dim=-1)

    def token_logits(self, features: Float[Tensor, "batch seq feature"]) -> Float[Tensor, "batch seq"]:
        """Logit of every token read on its own; carried columns of position 0 are masked."""
        batch, seq, width = features.shape
        scaled = self.scaled_spans(features).reshape(batch * seq, 1, width)
        mask = torch.ones(batch * seq, 1, dtype=torch.bool, device=features.device)
        return self.logits(scaled, mask).reshape(batch, seq)

    def span_logits(
        self, features: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Logit of every span."""
        return self.logits(self.scaled_spans(features), mask)

    @abstractmethod
    def logits(
        self, scaled: Float[Tensor, "span token feature"], mask: Bool[Tensor, "span token"]
    ) -> Float[Tensor, " span"]:
        """Logit of every span from standardised features: what a kind defines."""

    def loss(
        self,
        scaled: Float[Tensor, "span token feature"],
        mask: Bool[Tensor, "span token"],
        labels: Float[Tensor, " span"],
        progress: float,
    ) -> Float[Tensor, ""]:
        """Training loss; `progress` rises from 0 to 1 over the fit."""
        return nn.functional.binary_cross_entropy_with_logits(self.logits(scaled, mask), labels)


def pad_spans(
    features: list[Float[Tensor, "token feature"]],
) -> tuple[Float[Tensor, "span token feature"], Bool[Tensor, "span token"]]:
    """Spans of different lengths as one padded tensor and the mask of their tokens."""
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    lengths = torch.tensor([len(x) for x in features])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
