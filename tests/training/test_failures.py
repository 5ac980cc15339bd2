"""What can break under a training (disk, caches, files that change) is named with its next step, and nothing is lost."""

from __future__ import annotations

import json

import pytest
from micro_world import make_dictionary

from fairlead.core.errors import DictionaryError, FairleadError, RunError
from fairlead.data import load_data
from fairlead.studies.replay import replay
from fairlead.studies.train import train
from fairlead.training import tables
from fairlead.training.observe import MetricsFile

FAST = {"steps": 4, "batch_size": 8, "lr": 3e-3, "observe": False, "controls": ["explain_away", "anchor"]}


def write(path, data) -> str:
    path.write_text("".join(json.dumps(row.as_record()) + "\n" for row in data.rows))
    return str(path)


def interrupt(patch, at: int) -> None:
    add = MetricsFile.add

    def stop(self, record):
        add(self, record)
        if record.step == at:
            raise KeyboardInterrupt

    patch.setattr(MetricsFile, "add", stop)


def test_a_full_disk_at_a_checkpoint_is_told_and_the_run_goes_on_later(micro, tmp_path, monkeypatch):
    common = {"out": tmp_path / "a", "neutral": micro.neutral, "checkpoint_every": 2, **FAST}

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(RunError, match=r"checkpoints: cannot write.*No space left.*free space.*resumes"):
            train(micro.model, micro.data, micro.plan, **common)
    run = train(micro.model, micro.data, micro.plan, **common)
    assert len(run.steps) == 4


def test_broken_caches_are_made_anew(micro, tmp_path, monkeypatch):
    cache, said = tmp_path / "cache", []
    common = {"neutral": micro.neutral, "cache": cache, **FAST}
    first = train(micro.model, micro.data, micro.plan, out=tmp_path / "a", **common)
    files = [path for path in cache.iterdir() if path.suffix != ".lock"]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    kept = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(kept[path][: len(kept[path]) // 2])
    monkeypatch.setattr(tables, "say", said.append)
    monkeypatch.setattr("fairlead.training.neutral.say", said.append)
    second = train(micro.model, micro.data, micro.plan, out=tmp_path / "b", **common)
    assert {path: path.stat().st_size for path in files} == {path: len(kept[path]) for path in files}
    assert [step.loss for step in second.steps] == [step.loss for step in first.steps]
    assert len(said) == len(files) and all("made anew" in text for text in said)


@pytest.mark.parametrize("what", ["data", "dictionary"])
def test_what_changed_under_an_unfinished_run_is_named(micro, tmp_path, monkeypatch, what):
    data = write(tmp_path / "data.jsonl", micro.data)
    make_dictionary(micro.model).save(tmp_path / "dictionary")
    plan = micro.plan.model_copy(update={"dictionary": str(tmp_path / "dictionary")})
    common = {"out": tmp_path / "a", "neutral": micro.neutral, "checkpoint_every": 1, **FAST, "observe": True}
    with monkeypatch.context() as patch:
        interrupt(patch, at=2)
        with pytest.raises(KeyboardInterrupt):
            train(micro.model, data, plan, **common)
    if what == "data":
        write(tmp_path / "data.jsonl", micro.data.subset(range(30)))
    else:
        (tmp_path / "dictionary").rename(tmp_path / "elsewhere")
    told = rf"a\.part: .*other settings or inputs \(changed: {what}\)\. Next: "
    told = told if what == "data" else r"dictionary.* is not there, .*Next: restore its folder.*--no-observe"
    with pytest.raises(FairleadError, match=told):
        train(micro.model, data, plan, **common)
    if what == "data":
        write(tmp_path / "data.jsonl", micro.data)
    else:
        (tmp_path / "elsewhere").rename(tmp_path / "dictionary")
    assert len(train(micro.model, data, plan, **common).steps) == 4, "restored, it goes on"


def test_a_replay_of_a_changed_or_lost_file_says_so(micro, tmp_path):
    data = write(tmp_path / "data.jsonl", micro.data)
    run = train(micro.model, data, micro.plan, out=tmp_path / "a", neutral=micro.neutral, **FAST)
    common = {"model": micro.model, "neutral": micro.neutral}
    write(tmp_path / "data.jsonl", load_data(data).subset(range(30)))
    with pytest.raises(RunError, match=r"data\.jsonl.*have changed since.*Next: restore the file"):
        replay(run, out=tmp_path / "b", **common)
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(FairleadError, match=r"data\.jsonl.*Next: "):
        replay(run, out=tmp_path / "b", **common)


def test_a_dictionary_that_is_lost_before_the_first_run_is_an_error_unless_nothing_is_read_with_it(
    micro, tmp_path
):
    plan = micro.plan.model_copy(update={"dictionary": str(tmp_path / "gone")})
    common = {"neutral": micro.neutral, **FAST}
    with pytest.raises(DictionaryError, match=r"gone\) is not there.*--no-observe"):
        train(micro.model, micro.data, plan, out=tmp_path / "a", **{**common, "observe": True})
    assert not list(tmp_path.iterdir()), "nothing was begun"
    assert len(train(micro.model, micro.data, plan, out=tmp_path / "b", **common).steps) == 4


def test_a_replay_notices_another_dictionary(micro, tmp_path):
    make_dictionary(micro.model).save(tmp_path / "dictionary")
    plan = micro.plan.model_copy(update={"dictionary": str(tmp_path / "dictionary")})
    common = {"model": micro.model, "data": micro.data, "neutral": micro.neutral}
    settings = {**FAST, "observe": True}
    run = train(micro.model, micro.data, plan, out=tmp_path / "a", neutral=micro.neutral, **settings)
    assert replay(run, out=tmp_path / "b", **common).same
    make_dictionary(micro.model, seed=1).save(tmp_path / "dictionary")
    with pytest.raises(RunError, match=r"its dictionary \(.*dictionary\) has changed since"):
        replay(run, out=tmp_path / "c", **common)
