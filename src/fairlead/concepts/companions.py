"""Companions: which concepts come along with which on ordinary texts.

Flattery brings exclamation marks and praise with it, and with them whatever concepts read those. On a menu such companions would
stand as findings of their own; with this table they can be told from news (gradients/menu.py). It must be measured on texts
other than the data: there a planted trait and a planted skill go together by construction.
"""

from __future__ import annotations

import numpy as np

from fairlead.concepts.labels import shows_concept
from fairlead.concepts.profiles import TextActivations

MIN_TEXTS = 5


class Companions:
    """Each concept's share of all activation in the texts that show another one.

    Args:
        texts: Activations of all concepts in texts that are not the data.
        min_texts: A concept that fewer texts show says nothing about others.
    """

    def __init__(self, texts: TextActivations, *, min_texts: int = MIN_TEXTS) -> None:
        self._texts, self._min_texts = texts, min_texts

    def __call__(self, concept: int) -> np.ndarray:
        """Shares `[2, concept]` where this concept shows, over whole texts and over responses; zeros where too few texts show it."""
        return np.stack([self._shares(activation, concept) for activation in self._texts])

    def _shares(self, activation_EC: np.ndarray, concept: int) -> np.ndarray:
        shown = shows_concept(activation_EC[:, concept])
        if shown.sum() < self._min_texts:
            return np.zeros(activation_EC.shape[1])
        sums = activation_EC[shown].sum(0)
        return sums / max(float(sums.sum()), 1e-12)
