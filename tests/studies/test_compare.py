"""Comparisons: arms over seeds, kept when interrupted, the same in one process and in two."""

from __future__ import annotations

import sys

import pytest

from fairlead.core.errors import ConfigError
from fairlead.core.results import Comparison
from fairlead.core.run import read_json
from fairlead.studies import compare as module
from fairlead.studies.compare import compare

suite_of = sys.modules["micro_world"].suite_of
FAST = {"steps": 3, "batch_size": 8, "lr": 3e-3, "observe": False}


def test_arms_and_seeds_make_one_table(micro, tmp_path):
    found = compare(
        micro.model, micro.data, micro.plan, out=tmp_path / "c", arms=("plain", "recipe"), seeds=(0, 1), suite=suite_of(micro),
        neutral=micro.neutral, **FAST,
    )  # fmt: skip
    assert [(a.arm, a.seed) for a in found.arms] == [("plain", 0), ("recipe", 0), ("plain", 1), ("recipe", 1)]
    assert found.arms[0].controls == ("anchor",), "every arm gets the same anchor"
    assert set(found.arms[1].controls) == {"explain_away", "anchor", "spec_examples", "own_counterparts"}
    assert "skill.s" in found.base.measures and len(found.values("plain", "skill.s")) == 2
    table = (tmp_path / "c" / "comparison.md").read_text()
    assert table.count("\n| ") == 4 and "| recipe |" in table and "(start model)" in table
    assert Comparison.model_validate(read_json(tmp_path / "c" / "comparison.json")) == found
    assert not (tmp_path / "c" / "cache").exists()
    assert (tmp_path / "c" / found.arms[0].folder / "model").is_dir()


def test_finished_trainings_are_kept(micro, tmp_path, monkeypatch):
    common = {
        "arms": ("plain", "plain_no_anchor"),
        "suite": suite_of(micro),
        "neutral": micro.neutral,
        **FAST,
    }
    run_job, calls = module.run_job, []

    def stop(job, *args):
        calls.append(job.arm)
        if len(calls) == 2:
            raise KeyboardInterrupt
        run_job(job, *args)

    monkeypatch.setattr(module, "run_job", stop)
    with pytest.raises(KeyboardInterrupt):
        compare(micro.model, micro.data, micro.plan, out=tmp_path / "c", **common)
    assert (tmp_path / "c.part" / "arms" / "plain-seed0" / "verification.json").is_file()
    found = compare(micro.model, micro.data, micro.plan, out=tmp_path / "c", **common)
    assert calls == ["plain", "plain_no_anchor", "plain_no_anchor"]
    assert found.arm_names() == ("plain", "plain_no_anchor")


@pytest.mark.slow
def test_two_processes_find_what_one_finds(micro, tmp_path):
    common = {"arms": ("plain", "recipe"), "suite": suite_of(micro), "neutral": micro.neutral, **FAST}
    one = compare(micro.model, micro.data, micro.plan, out=tmp_path / "one", workers=1, **common)
    two = compare(micro.model, micro.data, micro.plan, out=tmp_path / "two", workers=2, **common)
    for a, b in zip(one.arms, two.arms, strict=True):
        assert a.verification.measures == b.verification.measures


def test_mistakes_come_before_any_training(micro, tmp_path):
    with pytest.raises(ConfigError, match="at least one arm"):
        compare(micro.model, micro.data, micro.plan, out=tmp_path / "c", arms=(), suite=suite_of(micro))
    with pytest.raises(ConfigError, match="unknown recipe"):
        compare(
            micro.model, micro.data, micro.plan, out=tmp_path / "c", arms=("plane",), suite=suite_of(micro)
        )
    with pytest.raises(ConfigError, match="stepz"):
        compare(
            micro.model,
            micro.data,
            micro.plan,
            out=tmp_path / "c",
            arms=("plain",),
            suite=suite_of(micro),
            stepz=2,
        )
    assert not list(tmp_path.iterdir())
