"""Statistics shared by all layers: intervals, bootstrap, AUROC, rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_BOOTSTRAP_CELLS = 4_000_000


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float


def wilson(num_hits: int, num: int, *, z: float = 1.959964) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); (nan, 0, 1) for `num` = 0."""
    if num == 0:
        return Interval(float("nan"), 0.0, 1.0)
    p = num_hits / num
    centre = (p + z * z / (2 * num)) / (1 + z * z / num)
    half = z * np.sqrt(p * (1 - p) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return Interval(p, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def bootstrap(
    values: Sequence[float] | np.ndarray,
    *,
    statistic: Callable[..., np.ndarray] = np.mean,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a statistic over items (Efron 1979).

    Args:
        values: `[item]`.
        statistic: Takes `axis`; the mean by default.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    rows = max(1, min(num_resamples, _BOOTSTRAP_CELLS // array.size))  # bounds the memory
    samples = np.concatenate(
        [
            statistic(
                array[generator.integers(0, array.size, size=(min(rows, num_resamples - done), array.size))],
                axis=1,
            )
            for done in range(0, num_resamples, rows)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(statistic(array, axis=0)), float(low), float(high))


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student t interval of the mean over a few runs (seeds); width is nan for one value."""
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    mean = float(array.mean())
    if array.size < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.5 + level / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size))
    return Interval(mean, mean - half, mean + half)


def auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve (Mann-Whitney), ties count half; nan where a side is empty."""
    from scipy.stats import rankdata

    pos, neg = np.asarray(positive, float), np.asarray(negative, float)
    if pos.size == 0 or neg.size == 0:
        return float("nan")
    ranks = rankdata(np.concatenate([pos, neg]))
    return float((ranks[: pos.size].sum() - pos.size * (pos.size + 1) / 2) / (pos.size * neg.size))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman rank correlation; nan where a side is constant or shorter than 3."""
    from scipy.stats import spearmanr

    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.size < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)
