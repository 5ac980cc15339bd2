"""Which concepts are active in a text, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from fairlead.concepts.profiles import concept_activations
from fairlead.concepts.search import surprise
from fairlead.core.records import Concept
from fairlead.data import Encoded, collate, token_text

if TYPE_CHECKING:
    from fairlead.concepts.catalogue import Catalogue
    from fairlead.models import Model


class Active(NamedTuple):
    """A concept in one text.

    Attributes:
        concept: The concept.
        scores: Its activation at every token; 0 at the first.
        peak: The strongest.
        mean: Over all tokens but the first.
        times_usual: `mean` over its mean on the catalogue's corpus.
        surprise: sqrt(share of all activation) x log(times usual): what the concepts are ordered by.
    """

    concept: Concept
    scores: tuple[float, ...]
    peak: float
    mean: float
    times_usual: float
    surprise: float


class Inspection(NamedTuple):
    """A text as tokens, and the concepts that act in it, the most remarkable first.

    Attributes:
        tokens: The tokens as text.
        answer: Which of them belong to an answer.
        concepts: Those that act on any token.
    """

    tokens: tuple[str, ...]
    answer: tuple[bool, ...]
    concepts: tuple[Active, ...]

    def at(self, place: int, num: int = 3) -> list[Active]:
        """The concepts that act most on one token, strongest first."""
        there = [one for one in self.concepts if one.scores[place] > 0]
        return sorted(there, key=lambda one: -one.scores[place])[:num]


@torch.no_grad()
def inspect_text(catalogue: Catalogue, model: Model, text: Encoded) -> Inspection:
    """Read a text with the catalogue's dictionary.

    Raises:
        CatalogueError: The model is not the one that the catalogue describes.
        DictionaryError: The dictionary is gone or was changed.
    """
    catalogue.check_model(model)
    dictionary, concepts = catalogue.load_dictionary(), catalogue.concepts
    batch = collate([text], pad_id=model.pad_id)
    hidden = model.capture(batch, [dictionary.site])[str(dictionary.site)][0]
    acts = concept_activations(dictionary, concepts, hidden).double().cpu().numpy()
    acts[0] = 0.0
    mean = acts[1:].mean(0) if len(acts) > 1 else acts.sum(0)
    usual = np.array([entry.statistics.mean for entry in catalogue.entries])
    remarkable = surprise(mean, usual)
    found = [
        Active(
            concepts[place],
            tuple(round(float(score), 4) for score in acts[:, place]),
            float(acts[:, place].max()),
            float(mean[place]),
            float(mean[place] / max(usual[place], 1e-9)),
            float(remarkable[place]),
        )
        for place in np.flatnonzero(acts.max(0) > 0)
    ]
    found.sort(key=lambda one: (-one.surprise, -one.peak))
    tokens = tuple(token_text(model.tokenizer, token) for token in text.input_ids)
    return Inspection(tokens, tuple(text.loss_mask), tuple(found))
