"""Statistics against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from fairlead.core import stats


@given(st.integers(1, 200).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_wilson_agrees_with_scipy(pair: tuple[int, int]) -> None:
    hits, num = pair
    oracle = scipy_stats.binomtest(hits, num).proportion_ci(method="wilson")
    found = stats.wilson(hits, num)
    assert found.value == hits / num
    assert found.low == pytest.approx(oracle.low, abs=1e-6)
    assert found.high == pytest.approx(oracle.high, abs=1e-6)


def test_wilson_of_nothing_knows_nothing() -> None:
    found = stats.wilson(0, 0)
    assert np.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)


def test_bootstrap_agrees_with_theory_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = stats.bootstrap(values, num_resamples=2000)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    monkeypatch.setattr(stats, "_BOOTSTRAP_CELLS", 1500)
    assert stats.bootstrap(values, num_resamples=2000) == found
    assert stats.bootstrap(values, statistic=np.median).value == pytest.approx(np.median(values))
    assert all(np.isnan(stats.bootstrap([])))


def test_bootstrap_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        found = stats.bootstrap(rng.exponential(1.0, size=60), num_resamples=400, seed=seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99, hits


def test_t_interval_agrees_with_scipy() -> None:
    values = [0.9, 0.95, 0.97]
    found = stats.t_interval(values)
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(values), scipy_stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high))
    one = stats.t_interval([0.5])
    assert one.value == 0.5 and np.isnan(one.low) and np.isnan(one.high)
    assert all(np.isnan(stats.t_interval([])))


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20)


@given(SCORES, SCORES)
def test_auroc_agrees_with_sklearn_also_with_ties(positive: list[float], negative: list[float]) -> None:
    oracle = roc_auc_score([1] * len(positive) + [0] * len(negative), positive + negative)
    assert stats.auroc(positive, negative) == pytest.approx(oracle)
    assert stats.auroc(negative, positive) == pytest.approx(1 - oracle)


def test_auroc_and_spearman_of_too_little() -> None:
    assert np.isnan(stats.auroc([], [1.0]))
    assert np.isnan(stats.spearman([1, 2], [1, 2]))
    assert np.isnan(stats.spearman([1, 1, 1], [1, 2, 3]))
    assert stats.spearman([1, 2, 3, 4], [10, 20, 30, 25]) == pytest.approx(0.8)
