"""Calibration: what is said comes true, the order stays, and a wrong map is seen in the error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairlead.core.errors import ConfigError
from fairlead.probes.calibrating import (
    Calibration,
    expected_calibration_error,
    fit_calibration,
    reliability,
)


@pytest.fixture(scope="module")
def sample():
    """Logits that are three times too large and off by one."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000) * 2 - 0.5
    labels = rng.random(4000) < 1 / (1 + np.exp(-true))
    return 3 * true + 1, labels


@pytest.mark.parametrize("method", ["platt", "isotonic", "auto", "temperature"])
def test_calibration_lowers_the_error_and_keeps_the_order(sample, method):
    logits, labels = sample
    calibration = fit_calibration(logits[:2000], labels[:2000], method=method)
    held, truth = torch.from_numpy(logits[2000:]), labels[2000:]
    before = expected_calibration_error(torch.sigmoid(held).numpy(), truth)
    after = expected_calibration_error(calibration(held).numpy(), truth)
    assert after < before / 2 and (method == "temperature" or after < 0.04)
    curve = calibration(torch.linspace(-20, 20, 400, dtype=torch.float64))
    assert (curve.diff() >= 0).all() and curve.min() >= 0 and curve.max() <= 1


def test_isotonic_rises_everywhere_and_is_differentiable(sample):
    calibration = fit_calibration(*sample, method="isotonic")
    logits = torch.linspace(-8, 8, 200, dtype=torch.float64).requires_grad_()
    calibration(logits).sum().backward()
    assert (logits.grad > 0).all()


def test_platt_finds_the_map_it_was_made_with(sample):
    calibration = fit_calibration(*sample, method="platt")
    assert calibration.scale == pytest.approx(1 / 3, rel=0.1)
    assert calibration.shift == pytest.approx(-1 / 3, abs=0.15)


def test_few_examples_are_not_fitted_by_isotonic(sample):
    logits, labels = sample
    assert fit_calibration(logits[:100], labels[:100]).method == "platt"
    assert fit_calibration(logits, labels).method == "isotonic"


def test_it_survives_json(sample):
    calibration = fit_calibration(*sample, method="isotonic")
    assert Calibration.from_json(calibration.as_json()) == calibration


def test_one_class_or_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="both classes"):
        fit_calibration(np.zeros(5), np.ones(5, bool))
    with pytest.raises(ConfigError, match="use one of"):
        fit_calibration(np.zeros(5), np.array([True, False, True, False, True]), method="magic")


def test_reliability_counts_every_example_once():
    bins = reliability(np.array([0.0, 0.05, 0.95, 1.0]), np.array([False, False, True, True]))
    assert [b.num for b in bins] == [2, 2] and bins[0].share == 0 and bins[-1].share == 1
    assert expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)
