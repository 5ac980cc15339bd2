"""Menus of single examples and tokens: where in a text the data pulls on a concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fairlead.core.records import Concept, TokenContext
from fairlead.data import Encoded, token_text
from fairlead.data.batches import collate
from fairlead.dictionaries import Dictionary
from fairlead.gradients.attribution import site_gradient, token_uptake

if TYPE_CHECKING:
    from fairlead.models import Model


def token_menu(model: Model, dictionary: Dictionary, concepts: Sequence[Concept], row: Encoded) -> Tensor:
    """Uptake of each concept at each token of one example, `[concept, seq]`, per loss token of the example.

    Summed over tokens it is the example's own uptake. The value at a position is what the loss says about the concept's
    activation THERE; the tokens it helps to predict come later.
    """
    batch = collate([row], pad_id=model.pad_id).to(model.device)
    found = site_gradient(model, batch, dictionary.site)
    pairs, _, _ = token_uptake(dictionary, batch, found)
    group_of = torch.full((dictionary.d_dict,), len(concepts), dtype=torch.long)
    for place, concept in enumerate(concepts):
        group_of[list(concept.latents)] = place
    seq = batch.input_ids.shape[1]
    flat = torch.zeros((len(concepts) + 1) * seq)
    flat.index_add_(0, group_of[pairs.latent.cpu()] * seq + pairs.position.cpu(), pairs.value.float().cpu())
    return flat.view(-1, seq)[:-1] / max(found.num_tokens, 1)


def token_contexts(
    model: Model, dictionary: Dictionary, encoded: Sequence[Encoded], concept: Concept, rows: Sequence[int]
) -> tuple[TokenContext, ...]:
    """Examples of a data set with the concept's uptake at every token, for display.

    Args:
        rows: `Encoded.index` of the examples.
    """
    by_index = {row.index: row for row in encoded}
    contexts = []
    for index in rows:
        row = by_index[index]
        scores = token_menu(model, dictionary, [concept], row)[0].tolist()
        tokens = tuple(token_text(model.tokenizer, token) for token in row.input_ids)
        contexts.append(
            TokenContext(tokens=tokens, scores=tuple(round(score, 6) for score in scores), example=index)
        )
    return tuple(contexts)
