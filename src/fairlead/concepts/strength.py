"""How strongly the latents of a concept usually act: the unit in which edits are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fairlead.concepts.profiles import iter_hidden
from fairlead.core.errors import DictionaryError
from fairlead.core.records import Concept
from fairlead.data import Encoded, encode
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model


@torch.no_grad()
def usual_strengths(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    encoded: Sequence[Encoded] | None = None,
    *,
    batch_size: int = 64,
) -> dict[str, tuple[float, ...]]:
    """Mean activation of each latent of each concept over the tokens on which the concept acts.

    Args:
        model: The model.
        dictionary: Its dictionary.
        concepts: Concepts of that dictionary.
        encoded: Texts to measure on; the concepts' own examples (their strongest contexts) where None.
        batch_size: Texts at a time.

    Returns:
        Concept id to one number per latent, in the order of `Concept.latents`.

    Raises:
        DictionaryError: A concept acts nowhere on these texts.
    """
    found = {}
    for concept in concepts:
        texts = list(encoded) if encoded is not None else _examples(model, concept)
        latents = list(concept.latents)
        total, count = torch.zeros(len(latents)), 0
        for _, hidden, used, _ in iter_hidden(model, dictionary, texts, batch_size=batch_size):
            acts = dictionary.encode_latents(hidden, latents).float().cpu()[used]
            acting = dictionary.strengths(acts, latents).sum(-1) > 0
            total += acts[acting].sum(0)
            count += int(acting.sum())
        if count == 0:
            raise DictionaryError(
                f"concept {concept.id} ({concept.label}) acts on none of {len(texts)} texts, so that its usual strength is unknown. "
                "Next: pass texts in which it acts."
            )
        found[concept.id] = tuple(float(value) for value in total / count)
    return found


def _examples(model: Model, concept: Concept) -> list[Encoded]:
    texts = ["".join(example.tokens) for example in concept.examples if len(example.tokens) > 1]
    if not texts:
        raise DictionaryError(
            f"concept {concept.id} ({concept.label}) has no example. Next: pass texts to measure its strength on."
        )
    return encode(texts, model.tokenizer, max_length=model.max_length, on_long="truncate")
