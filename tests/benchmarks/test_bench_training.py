"""The cost benchmark still takes the steps it compares."""

from __future__ import annotations

from benchmarks.bench_training import Shape, measure


def test_every_contender_takes_steps_beside_the_baseline():
    found = measure(1, Shape(32, 3), warmup=0)
    assert found.pop("TRL")["seconds"] > 0
    assert set(found) == {
        "TRL again (placebo)",
        "adapter, plain",
        "adapter + observation",
        "adapter + explain-away (cached)",
        "adapter + explain-away + observation",
    }
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in found.values())
