"""Activations of latents and concepts over texts, with bounded memory.

Position 0 is left out everywhere, as in the training of dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.progress import track
from fairlead.core.records import Concept
from fairlead.data import Batch, Encoded, iter_batches
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model


class TextActivations(NamedTuple):
    """Mean activation of each concept in each text.

    Attributes:
        whole: `[text, concept]` over all tokens but the first.
        response: `[text, concept]` over response tokens.
    """

    whole: np.ndarray
    response: np.ndarray


def membership(concepts: Sequence[Concept] | Sequence[Sequence[int]], d_dict: int) -> Tensor:
    """`[d_dict, concept]`: 1 where a latent belongs to a concept."""
    member = torch.zeros(d_dict, len(concepts))
    for place, concept in enumerate(concepts):
        member[list(concept.latents if isinstance(concept, Concept) else concept), place] = 1.0
    return member


def concept_activations(
    dictionary: Dictionary, concepts: Concept | Sequence[Concept], hidden: Tensor
) -> Tensor:
    """Summed strength of each concept's latents (activation; of a block its norm), `[..., concept]`, of hidden states `[..., d_model]`."""
    chosen = [concepts] if isinstance(concepts, Concept) else list(concepts)
    latents = [latent for concept in chosen for latent in concept.latents]
    acts = dictionary.strengths(dictionary.encode_latents(hidden, latents), latents)
    groups = torch.zeros(len(latents), len(chosen))
    place = 0
    for column, concept in enumerate(chosen):
        groups[place : place + len(concept.latents), column] = 1.0
        place += len(concept.latents)
    return acts @ groups.to(acts)


def iter_hidden(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 64,
    label: str | None = None,
) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
    """Batches (whose `index` is the place in `encoded`) with hidden states and masks of all and of response tokens, no position 0."""
    placed = [replace(row, index=place) for place, row in enumerate(encoded)]
    batches = list(iter_batches(placed, batch_size=batch_size, pad_id=model.pad_id))
    for batch in track(batches, label, unit="batches") if label else batches:
        hidden = model.capture(batch, [dictionary.site])[str(dictionary.site)]
        used = batch.attention_mask.bool().clone()
        used[:, 0] = False
        yield batch, hidden, used, used & batch.loss_mask


@torch.no_grad()
def latent_profile(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 64,
    label: str | None = "concepts",
) -> np.ndarray:
    """Mean activation of every latent in every text, `[text, d_dict]` float32."""
    profile = np.zeros((len(encoded), dictionary.d_dict), dtype=np.float32)
    for batch, hidden, used, _ in iter_hidden(model, dictionary, encoded, batch_size=batch_size, label=label):
        acts = dictionary.strengths(dictionary.encode(hidden)) * used[..., None].to(hidden.device)
        mean = acts.sum(1) / used.sum(1, keepdim=True).clamp_min(1).to(hidden.device)
        profile[batch.index.numpy()] = mean.float().cpu().numpy()
    return profile


@torch.no_grad()
def text_activations(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 64,
) -> TextActivations:
    """Mean activation of each concept in each text, over the whole text and over its response."""
    whole = np.zeros((len(encoded), len(concepts)))
    response = np.zeros_like(whole)
    for batch, hidden, used, wanted in iter_hidden(model, dictionary, encoded, batch_size=batch_size):
        acts = concept_activations(dictionary, concepts, hidden).cpu()
        for mask, target in ((used, whole), (wanted, response)):
            mean = (acts * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
            target[batch.index.numpy()] = mean.double().numpy()
    return TextActivations(whole, response)
