"""Numbers with intervals: proportions, means, areas under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fairlead.core.results import Measure
from fairlead.core.stats import auroc, bootstrap, wilson


def proportion(hits: Sequence[bool]) -> Measure:
    """Share of hits with its Wilson interval."""
    found = wilson(sum(hits), len(hits))
    return Measure(value=found.value, low=found.low, high=found.high, num=len(hits))


def mean(values: Sequence[float], *, weights: Sequence[float] | None = None) -> Measure:
    """(Weighted) mean of items with its bootstrap interval over items."""
    if weights is None:
        found = bootstrap(values)
        return Measure(value=found.value, low=found.low, high=found.high, num=len(values))
    import numpy as np

    pairs = np.array(values, float), np.array(weights, float)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(values), size=(1000, len(values)))
    samples = pairs[0][picks].sum(1) / pairs[1][picks].sum(1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Measure(
        value=float(pairs[0].sum() / pairs[1].sum()), low=float(low), high=float(high), num=len(values)
    )


def area(positive: Sequence[float], negative: Sequence[float]) -> Measure:
    """AUROC with the interval of Hanley and McNeil (1982), on the logit scale's safe side: clipped to 0..1."""
    value = auroc(positive, negative)
    num_pos, num_neg = len(positive), len(negative)
    if math.isnan(value):
        return Measure(value=value, low=0.0, high=1.0, num=num_pos + num_neg)
    a = min(
        max(value, 0.5 / num_pos / num_neg), 1 - 0.5 / num_pos / num_neg
    )  # an area of 1 is not certain either
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = (a * (1 - a) + (num_pos - 1) * (q1 - a * a) + (num_neg - 1) * (q2 - a * a)) / (
        num_pos * num_neg
    )
    half = 1.959964 * math.sqrt(max(variance, 0.0))
    return Measure(
        value=value, low=max(0.0, a - half), high=min(1.0, max(value, a + half)), num=num_pos + num_neg
    )


def exact(value: float, num: int) -> Measure:
    """A number without an interval of its own."""
    return Measure(value=value, low=value, high=value, num=num)
