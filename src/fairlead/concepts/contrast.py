"""Which concepts tell two sets of texts apart.

Per concept: its mean (or strongest) activation in each text, the AUROC of the first set against the second, a permutation p-value (which
texts belong to which set is shuffled; the ranks stay), corrected for the number of concepts by Benjamini and Hochberg (1995), and for
the best a bootstrap interval. Order: by |2 AUROC - 1|; concepts that tell the sets apart equally well by their share of the difference
in activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata

from fairlead.concepts.profiles import concept_activations, iter_hidden
from fairlead.core.errors import DataError
from fairlead.core.records import Concept
from fairlead.core.stats import Interval
from fairlead.data import Encoded
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

Measure = Literal["mean", "max"]
_TIE = 0.02  # AUROCs this close count as equal


class Contrast(NamedTuple):
    """One concept, held against two sets of texts.

    Attributes:
        concept: The concept.
        auroc: Of the first set against the second: 1 where it acts more in every text of the first.
        low: Lower end of the 95 % bootstrap interval (nan where it was not computed).
        high: Upper end.
        p: Permutation p-value, two-sided.
        q: The same, corrected for the number of concepts (false discovery rate).
        first: Mean over the first set.
        second: Mean over the second set.
    """

    concept: Concept
    auroc: float
    low: float
    high: float
    p: float
    q: float
    first: float
    second: float


@torch.no_grad()
def measure_texts(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    encoded: Sequence[Encoded],
    *,
    measure: Measure = "mean",
    tokens: Literal["all", "answer"] = "all",
    batch_size: int = 64,
) -> np.ndarray:
    """`[text, concept]`: mean or strongest activation in each text, position 0 left out."""
    found = np.zeros((len(encoded), len(concepts)))
    for batch, hidden, used, answer in iter_hidden(model, dictionary, encoded, batch_size=batch_size):
        mask = (answer if tokens == "answer" else used)[..., None]
        acts = concept_activations(dictionary, concepts, hidden).float().cpu() * mask
        value = acts.amax(1) if measure == "max" else acts.sum(1) / mask.sum(1).clamp_min(1)
        found[batch.index.numpy()] = value.double().numpy()
    return found


def contrast(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    first: Sequence[Encoded],
    second: Sequence[Encoded],
    *,
    measure: Measure = "mean",
    tokens: Literal["all", "answer"] = "all",
    num_permutations: int = 2000,
    num_intervals: int = 20,
    seed: int = 0,
) -> list[Contrast]:
    """All concepts by how well they tell two sets of texts apart, best first.

    Args:
        model: The model.
        dictionary: Its dictionary.
        concepts: Concepts of that dictionary.
        first: Texts of the first set, at least two.
        second: Of the second.
        measure: A concept's mean or strongest activation in a text.
        tokens: Over all tokens or those of answers.
        num_permutations: Shuffles for the p-values.
        num_intervals: Concepts that get a bootstrap interval.
        seed: Of shuffles and resamples.

    Raises:
        DataError: A set has fewer than two texts.
    """
    if min(len(first), len(second)) < 2:
        raise DataError("contrast needs two texts or more on each side. Next: add texts.")
    values = [
        measure_texts(model, dictionary, concepts, part, measure=measure, tokens=tokens)
        for part in (first, second)
    ]
    return contrast_values(
        concepts, *values, num_permutations=num_permutations, num_intervals=num_intervals, seed=seed
    )


def contrast_values(
    concepts: Sequence[Concept],
    first: np.ndarray,
    second: np.ndarray,
    *,
    num_permutations: int = 2000,
    num_intervals: int = 20,
    seed: int = 0,
) -> list[Contrast]:
    """The same from activations `[text, concept]` of the two sets."""
    num, rest = len(first), len(second)
    ranks = rankdata(np.concatenate([first, second]), axis=0)
    area = (ranks[:num].sum(0) - num * (num + 1) / 2) / (num * rest)
    p = _permutation(ranks, area, num, num_permutations, seed)
    q = false_discovery(p)
    difference = first.mean(0) - second.mean(0)
    share = np.abs(difference) / max(np.abs(difference).sum(), 1e-12)
    strength = np.abs(2 * area - 1)
    order = np.lexsort((-share, -np.floor(strength / (2 * _TIE) + 1e-9)))
    found = []
    for rank, place in enumerate(order):
        ends = (float("nan"), float("nan"))
        if rank < num_intervals:
            ends = _bootstrap(first[:, place], second[:, place], seed=seed)[1:]
        found.append(
            Contrast(
                concepts[place],
                float(area[place]),
                *ends,
                float(p[place]),
                float(q[place]),
                float(first[:, place].mean()),
                float(second[:, place].mean()),
            )
        )
    return found


def _permutation(ranks: np.ndarray, area: np.ndarray, num: int, times: int, seed: int) -> np.ndarray:
    """Share of shuffles (the observed one counted) whose AUROC is as far from one half."""
    rng = np.random.default_rng(seed)
    total, rest = ranks.shape[0], ranks.shape[0] - num
    far = np.abs(area - 0.5) - 1e-12
    hits = np.ones_like(area)
    for start in range(0, times, 200):
        picks = np.zeros((min(200, times - start), total), dtype=np.float32)
        for row in picks:
            row[rng.permutation(total)[:num]] = 1.0
        sums = picks.astype(np.float64) @ ranks
        hits += (np.abs((sums - num * (num + 1) / 2) / (num * rest) - 0.5) >= far).sum(0)
    return hits / (times + 1)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values."""
    order = np.argsort(p)
    raw = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.minimum.accumulate(raw[::-1])[::-1]
    found = np.empty_like(p)
    found[order] = np.minimum(adjusted, 1.0)
    return found


def _bootstrap(first: np.ndarray, second: np.ndarray, *, seed: int, num: int = 300) -> Interval:
    """AUROC with its percentile bootstrap interval over the texts of both sets."""
    rng = np.random.default_rng(seed)
    above = (first[:, None] > second[None, :]) + 0.5 * (first[:, None] == second[None, :])
    draws = []
    for _ in range(num):
        rows = rng.integers(0, len(first), len(first))
        columns = rng.integers(0, len(second), len(second))
        draws.append(above[rows][:, columns].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(above.mean()), float(low), float(high))
