"""Pressure: the uptake of a few concepts on one training batch, cheap enough for every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairlead.core.records import Concept
from fairlead.dictionaries import Dictionary


class PressureGauge:
    """Precomputed encoder columns and decoder rows of some concepts' latents.

    Calling it costs two thin matrix products (`tokens x d_model x latents`), nothing of the size of the dictionary, and
    no transfer from the device.
    """

    def __init__(self, dictionary: Dictionary, concepts: Sequence[Concept]) -> None:
        self.dictionary = dictionary
        self.latents = torch.tensor(
            [latent for concept in concepts for latent in concept.latents], dtype=torch.long
        )
        group = [place for place, concept in enumerate(concepts) for _ in concept.latents]
        self.member = torch.zeros(len(group), len(concepts))
        if group:
            self.member[torch.arange(len(group)), torch.tensor(group)] = 1.0

    @torch.no_grad()
    def __call__(
        self, hidden: Tensor, grad: Tensor, *, num_loss_tokens: int | Tensor, scale: float | Tensor = 1.0
    ) -> Tensor:
        """Uptake of each concept on the batch, `[concept]`.

        Args:
            hidden: `[batch, seq, d_model]` at the dictionary's site.
            grad: dL/dh, same shape; padded positions must have gradient 0 (they have, when they are masked).
            num_loss_tokens: Loss tokens of the batch.
            scale: What L was divided by, where it is not the plain sum (for a mean over tokens: `num_loss_tokens`).
        """
        acts = self.dictionary.encode_latents(hidden, self.latents)
        rows = self.dictionary.decoder[self.latents.to(hidden.device)]
        pull = grad.to(rows) @ rows.T
        per_latent = -(pull * acts).flatten(0, -2).sum(0)
        return per_latent @ self.member.to(per_latent) * (scale / num_loss_tokens)


def batch_pressure(
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    hidden: Tensor,
    grad: Tensor,
    *,
    num_loss_tokens: int | Tensor,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Uptake `[concept]` on one batch from activations and gradients at hand (see `PressureGauge`, which is cheaper to repeat)."""
    return PressureGauge(dictionary, concepts)(hidden, grad, num_loss_tokens=num_loss_tokens, scale=scale)
