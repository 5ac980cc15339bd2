"""Measuring the student while it trains: the same training, the same numbers as the saved model's."""

from __future__ import annotations

import sys

import pytest
import torch

from fairlead.core.errors import ConfigError
from fairlead.studies.train import train
from fairlead.training.verification import measure_answers, measure_losses

SETTINGS = {
    "steps": 8,
    "batch_size": 8,
    "lr": 3e-3,
    "observe": False,
    "checkpoint_every": 3,
    "controls": "plain",
}


@pytest.fixture
def suite(micro):
    return sys.modules["micro_world"].suite_of(micro)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkups_change_nothing_and_say_what_the_saved_model_does(micro, suite, tmp_path, method):
    settings = {**SETTINGS, "method": method, "neutral": micro.neutral}
    without = train(micro.copy(), micro.data, micro.plan, out=tmp_path / "a", **settings)
    run = train(
        micro.copy(), micro.data, micro.plan, out=tmp_path / "b", suite=suite, verify_at=(2, 8), **settings
    )
    assert [step.loss for step in run.steps] == [step.loss for step in without.steps]
    assert [one.step for one in run.checkups] == [2, 8] and without.checkups == ()
    if method == "full":
        final = run.load_model()
        one, two = final.hf.state_dict(), without.load_model().hf.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert run.checkups[1].measures == measure_answers(final, suite)[0] | measure_losses(final, suite)
    assert run.checkups[0].measures != run.checkups[1].measures or method == "lora"


def test_a_resumed_run_has_each_checkup_once(micro, suite, tmp_path, monkeypatch):
    def go(out):
        return train(
            micro.copy(), micro.data, micro.plan, out=tmp_path / out, neutral=micro.neutral,
            suite=suite, verify_at=(2, 4, 6), **SETTINGS,
        )  # fmt: skip

    whole = go("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        sys.modules["micro_world"].interrupt_at(
            patch, 5
        )  # after the checkup of step 4, from a checkpoint of step 3
        go("cut")
    assert go("cut").checkups == whole.checkups


def test_steps_want_a_suite_and_must_be_of_the_training(micro, suite, tmp_path):
    with pytest.raises(ConfigError, match="needs a suite"):
        train(micro.model, micro.data, micro.plan, out=tmp_path / "a", verify_at=(2,), **SETTINGS)
    with pytest.raises(ConfigError, match="steps 1 to 8"):
        train(
            micro.model, micro.data, micro.plan, out=tmp_path / "a", suite=suite, verify_at=(9,), **SETTINGS
        )
