"""Activations of answers for probes: one vector per answer, the mean over its response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from fairlead.core.site import Site
from fairlead.data import Encoded, iter_batches

if TYPE_CHECKING:
    from fairlead.models import Model


@torch.no_grad()
def pool_answers(
    model: Model, encoded: Sequence[Encoded], site: Site | str, *, batch_size: int = 64
) -> Float[Tensor, "row d"]:
    """Mean activation over the response tokens of each row, float32 on the CPU, in the order of the rows."""
    places = [replace(item, index=place) for place, item in enumerate(encoded)]
    pooled = torch.zeros(len(encoded), model.d_model)
    for batch in iter_batches(places, batch_size=batch_size, pad_id=model.pad_id):
        hidden = model.capture(batch, [site])[str(Site.parse(site))].float()
        mask = batch.loss_mask.to(hidden.device).float()[..., None]
        pooled[batch.index] = ((hidden * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu()
    return pooled
