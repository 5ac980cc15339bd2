"""Companions: which concepts come along with which on ordinary texts.

Flattery brings exclamation marks and praise with it, and with them whatever concepts read those. On a menu such companions would
stand as findings of their own; knowing them, they can be told from news (gradients/menu.py). They must be looked for in texts
other than the data: there a planted trait and a planted skill go together by construction.
"""

from __future__ import annotations

import numpy as np

from fairlead.concepts.labels import shows_concept
from fairlead.concepts.profiles import TextActivations

MIN_TEXTS = 5


class Companions:
    """How much more present other concepts are in the texts that show a concept than in all texts.

    Args:
        texts: Activations of all concepts in texts that are not the data.
        min_texts: A concept that fewer texts show brings nothing along.
    """

    def __init__(self, texts: TextActivations, *, min_texts: int = MIN_TEXTS) -> None:
        self._texts, self._min_texts = texts, min_texts
        self._usual = [_shares(activation) for activation in texts]
        self._shares: dict[int, np.ndarray] = {}

    def __call__(self, concept: int, presence: np.ndarray) -> np.ndarray:
        """Extra shares of activation that a concept explains.

        Args:
            concept: Its place.
            presence: `[2]` its share of all activation in the data, over whole texts and over responses. Where it is a part of its share
                in the texts that show it, it brings that part.

        Returns:
            `[2, concept]`, at least 0.
        """
        if concept not in self._shares:
            self._shares[concept] = np.stack([self._where_shown(each, concept) for each in self._texts])
        shares = self._shares[concept]
        own = shares[:, concept]
        part = np.divide(presence, own, out=np.zeros(2), where=own > 0).clip(0, 1)
        return part[:, None] * np.maximum(shares - self._usual, 0)

    def _where_shown(self, activation_EC: np.ndarray, concept: int) -> np.ndarray:
        shown = shows_concept(activation_EC[:, concept])
        enough = shown.sum() >= self._min_texts
        return _shares(activation_EC[shown]) if enough else np.zeros(activation_EC.shape[1])


def _shares(activation_EC: np.ndarray) -> np.ndarray:
    sums = activation_EC.sum(0)
    return sums / max(float(sums.sum()), 1e-12)
