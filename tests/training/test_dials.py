"""Dials of a running training: read before the next step, recorded, made again by a resumed run and a replay."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from fairlead.core.errors import ConfigError, RunError
from fairlead.studies.replay import branch, replay
from fairlead.studies.train import train
from fairlead.training import DialMove, read_moves, request_move

at_step = sys.modules["micro_world"].at_step
CONTROLS = ["explain_away", "anchor"]
SETTINGS = {
    "controls": CONTROLS,
    "steps": 8,
    "batch_size": 8,
    "lr": 3e-3,
    "checkpoint_every": 3,
    "observe": False,
}


def run(micro, out, **changes):
    settings = {**SETTINGS, **changes}
    return train(micro.model, micro.data, micro.plan, out=out, neutral=micro.neutral, **settings)


def losses(run):
    return [step.loss for step in run.steps]


def again(micro, kind, first, **how):
    return kind(first, model=micro.model, data=micro.data, neutral=micro.neutral, **how)


@pytest.fixture
def dialled(micro, tmp_path, monkeypatch):
    """A run whose explain-away was turned down after step 2 and off after step 5."""
    with monkeypatch.context() as patch:
        values = {2: "0.25", 5: "off"}
        at_step(patch, values, lambda step: request_move(tmp_path / "a", "explain_away", values[step]))
        return run(micro, tmp_path / "a")


def test_a_turn_takes_effect_before_the_next_step_and_is_recorded(micro, tmp_path, dialled):
    assert [(m.step, m.name, m.value) for m in dialled.moves] == [
        (2, "explain_away", 0.25),
        (5, "explain_away", "off"),
    ]
    plain = run(micro, tmp_path / "untouched")
    before, after = losses(plain), losses(dialled)
    assert after[:2] == before[:2] and after[2] != before[2]
    assert dialled.controls[0]["lambda"] == 0.0


def test_a_replay_repeats_the_moves_and_the_trajectory(micro, tmp_path, dialled):
    found = again(micro, replay, dialled, out=tmp_path / "b")
    assert found.same and found.max_difference == 0.0 and found.first_difference is None
    assert found.run.moves == dialled.moves
    twice = again(micro, replay, found.run, out=tmp_path / "c")
    assert twice.same and twice.run.moves == dialled.moves


def test_a_branch_is_the_run_up_to_its_step_and_then_goes_its_own_way(micro, tmp_path, dialled):
    other = again(
        micro,
        branch,
        dialled,
        at=4,
        out=tmp_path / "b",
        moves=[DialMove(step=4, name="explain_away", value="on")],
    )
    assert losses(other)[:4] == losses(dialled)[:4] and losses(other)[4] != losses(dialled)[4]
    assert [(m.step, m.value) for m in other.moves] == [(2, 0.25), (4, "on")]
    with pytest.raises(RunError, match="steps 0 to 7, not 8"):
        again(micro, branch, dialled, at=8, out=tmp_path / "c")
    with pytest.raises(ConfigError, match=r"no dial 'anker'.*anchor"):
        wrong = [DialMove(step=4, name="anker", value="off")]
        again(micro, branch, dialled, at=4, out=tmp_path / "d", moves=wrong)
    with pytest.raises(RunError, match="before the branch"):
        early = [DialMove(step=1, name="anchor", value="off")]
        again(micro, branch, dialled, at=4, out=tmp_path / "c", moves=early)


def test_an_interrupted_run_makes_its_moves_again(micro, tmp_path, monkeypatch, dialled):
    def act(step):
        if step == 5:
            raise KeyboardInterrupt
        request_move(tmp_path / "cut", "explain_away", "0.25")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, {2, 5}, act)
        run(micro, tmp_path / "cut")
    with monkeypatch.context() as patch:  # goes on after the checkpoint at step 3
        at_step(patch, {5}, lambda step: request_move(tmp_path / "cut", "explain_away", "off"))
        resumed = run(micro, tmp_path / "cut")
    assert resumed.moves == dialled.moves
    assert losses(resumed) == pytest.approx(losses(dialled), abs=1e-6)


def test_stop_ends_the_run_with_what_it_has(micro, tmp_path, monkeypatch):
    at_step(monkeypatch, {3}, lambda step: request_move(tmp_path / "a", "training", "stop"))
    stopped = run(micro, tmp_path / "a")
    assert len(stopped.steps) == 4 and "stopped by hand after step 4 of 8" in stopped.notes[-1]
    assert stopped.load_model().fingerprint != micro.model.fingerprint


def test_save_writes_a_checkpoint_at_once(micro, tmp_path, monkeypatch):
    seen = []

    def act(step):
        if step == 4:
            request_move(tmp_path / "a", "training", "save")
        else:
            seen.extend(path.name for path in (tmp_path / "a.part" / "checkpoints").glob("checkpoint-*"))

    at_step(monkeypatch, {4, 6}, act)
    run(micro, tmp_path / "a", checkpoint_every=0)
    assert seen == ["checkpoint-5"]


def test_pause_holds_the_training_until_go(micro, tmp_path, monkeypatch):
    seen = []

    def go():
        seen.append("go")
        request_move(tmp_path / "a", "training", "go")

    def act(step):
        seen.append(step)
        if step == 2:
            request_move(tmp_path / "a", "training", "pause")
            threading.Timer(1.0, go).start()

    with monkeypatch.context() as patch:
        at_step(patch, set(range(1, 9)), act)
        paused = run(micro, tmp_path / "a")
    assert seen[:4] == [1, 2, "go", 3], "it went on before it was told to"
    assert [(m.name, m.value) for m in paused.moves] == [("training", "pause"), ("training", "go")]
    assert again(micro, replay, paused, out=tmp_path / "b").same, "a replay does not wait"


def test_wrong_turns_are_named(micro, tmp_path, monkeypatch, dialled):
    with pytest.raises(RunError, match="is finished"):
        request_move(dialled.folder, "anchor", "0.5")
    with pytest.raises(RunError, match="is no run"):
        request_move(tmp_path / "nowhere", "anchor", "0.5")
    errors = []

    def act(step):
        for name, value in (
            ("anker", "1"),
            ("anchor", "much"),
            ("anchor", "-1"),
            ("anchor", "stop"),
            ("training", "off"),
        ):
            try:
                request_move(tmp_path / "b", name, value)
            except ConfigError as error:
                errors.append(str(error))
        part = tmp_path / "b.part" / "dial_requests.jsonl"
        part.write_text(json.dumps({"name": "nothing", "value": 1}) + "\n" + '{"name": "half')

    at_step(monkeypatch, {2}, act)
    assert run(micro, tmp_path / "b").moves == ()
    assert len(errors) == 5 and "anchor, training" in errors[0] and "no value" in errors[1]
    assert read_moves(tmp_path / "nowhere") == []


def test_a_control_without_a_dial_is_refused_at_once(micro, tmp_path, monkeypatch):
    errors = []

    def act(step):
        for name in ("inoculation", "freezing"):
            with pytest.raises(
                ConfigError, match=rf"has no dial '{name}'. Next: use one of anchor, training"
            ) as found:
                request_move(tmp_path / "a", name, "0.5")
            errors.append(found)

    at_step(monkeypatch, {2}, act)
    kept = run(micro, tmp_path / "a", controls=["inoculation", "freezing", "anchor"])
    assert kept.moves == () and len(errors) == 2
    with pytest.raises(ConfigError, match="no dial 'inoculation'"):
        run(
            micro,
            tmp_path / "b",
            controls=["inoculation"],
            moves=(DialMove(step=1, name="inoculation", value=1.0),),
        )


def test_a_branch_of_a_stopped_run_goes_on(micro, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, {3}, lambda step: request_move(tmp_path / "a", "training", "stop"))
        stopped = run(micro, tmp_path / "a")
    assert len(stopped.steps) == 4, "it stops after the step under way"
    for at in (2, 5):
        other = again(micro, branch, stopped, at=at, out=tmp_path / f"b{at}")
        assert len(other.steps) == 8 and losses(other)[:3] == losses(stopped)[:3]


def test_changed_data_are_noticed(micro, tmp_path, dialled):
    fewer = micro.data.rows[:-1]
    from fairlead.data import ChatData

    with pytest.raises(RunError, match=r"data rows .* have changed"):
        replay(dialled, out=tmp_path / "b", model=micro.model, data=ChatData(fewer), neutral=micro.neutral)
