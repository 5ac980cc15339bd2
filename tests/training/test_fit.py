"""A training from start to saved model: runs, resumption, LoRA, observation, and what can go wrong."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from micro_world import make_dictionary

from fairlead.core.errors import RunError, TrainingError
from fairlead.core.run import read_run
from fairlead.data import encode, iter_batches
from fairlead.models import load_model
from fairlead.studies.train import train
from fairlead.training import TrainConfig, fit, load_run, read_metrics, resolve
from fairlead.training.observe import MetricsFile, PressureObserver

FAST = {"steps": 6, "batch_size": 8, "lr": 3e-3, "observe": False}


def weights_of(folder) -> dict[str, torch.Tensor]:
    return load_model(folder).hf.state_dict()


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_is_replayable_and_loads(micro, tmp_path):
    run = train(micro.model, micro.data, micro.plan, out=tmp_path / "a", neutral=micro.neutral, **FAST)
    again = train(micro.model, micro.data, micro.plan, out=tmp_path / "b", neutral=micro.neutral, **FAST)
    assert same(weights_of(run.model_folder), weights_of(again.model_folder)), "the same seed, other weights"
    about = read_run(run.folder)
    assert about["config"]["arm"] == "recipe" and about["inputs"]["data"] == micro.data.sha256
    loaded = load_run(run.folder)
    assert loaded.plan == micro.plan and len(loaded.steps) == 6 and loaded.arm == "recipe"
    assert loaded.load_base().fingerprint == micro.model.fingerprint
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "metrics.jsonl",
        "model",
        "plan.json",
        "run.json",
        "training.json",
    ]
    assert json.loads((run.folder / "training.json").read_text())["controls"][0]["name"] == "explain_away"


OWN = {"name": "own_counterparts", "options": {"news": 0.5, "start": 0.1, "times": 4, "each_time": 6}}


HEADS = {"name": "freezing", "options": {"what": "heads"}}


@pytest.mark.parametrize(
    "controls",
    ["recipe", ["explain_away", OWN], ["preventative_steering", HEADS]],
    ids=["recipe", "own counterparts", "steering and held heads"],
)
def test_an_interrupted_training_goes_on_and_ends_at_the_same_weights(micro, tmp_path, monkeypatch, controls):
    settings = {**FAST, "steps": 8, "checkpoint_every": 3, "controls": controls}
    whole = train(
        micro.model, micro.data, micro.plan, out=tmp_path / "whole", neutral=micro.neutral, **settings
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        sys.modules["micro_world"].interrupt_at(patch, 5)
        train(micro.model, micro.data, micro.plan, out=tmp_path / "cut", neutral=micro.neutral, **settings)
    assert (tmp_path / "cut.part").is_dir() and not (tmp_path / "cut").exists()
    resumed = train(
        micro.model, micro.data, micro.plan, out=tmp_path / "cut", neutral=micro.neutral, **settings
    )
    assert [r.step for r in resumed.steps] == list(range(1, 9))
    assert [r.loss for r in resumed.steps] == pytest.approx([r.loss for r in whole.steps], abs=1e-6)
    one, two = weights_of(whole.model_folder), weights_of(resumed.model_folder)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    assert resumed.controls == whole.controls, "moves and choices of controls must be those of the whole run"


def test_lora_trains_an_adapter_and_gives_the_start_model_back(micro, tmp_path):
    model = micro.copy()
    before = model.fingerprint
    run = train(
        model,
        micro.data,
        micro.plan,
        out=tmp_path / "l",
        neutral=micro.neutral,
        method="lora",
        lora_rank=4,
        **FAST,
    )
    assert model.fingerprint == before and not hasattr(model.hf, "peft_config")
    assert all(p.requires_grad for p in model.hf.parameters())
    assert not any("lora" in name for name, _ in model.hf.named_modules())
    assert (run.folder / "adapter" / "adapter_config.json").is_file()
    merged = run.load_model()
    assert merged.fingerprint != before
    again = train(
        model,
        micro.data,
        micro.plan,
        out=tmp_path / "l2",
        neutral=micro.neutral,
        method="lora",
        lora_rank=4,
        **FAST,
    )
    assert same(merged.hf.state_dict(), again.load_model().hf.state_dict())


def test_pressure_is_the_uptake_of_the_batch(micro, tmp_path):
    """The observer reads from a training step what the preview measures on the same rows."""
    from fairlead.gradients.uptake import measure_uptake
    from fairlead.training.adapter import make_trainer, run_trainer
    from fairlead.training.batching import Composer
    from fairlead.training.session import Session

    dictionary = make_dictionary(micro.model)
    observer = PressureObserver(dictionary, micro.plan.concepts)
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)[:6]
    session, found = Session(), []
    student = copy.deepcopy(micro.model.hf)
    config = TrainConfig(steps=1, batch_size=6, checkpoint_every=0)
    trainer = make_trainer(
        student, micro.model.tokenizer, Composer(encoded, pad_id=0), session, config=config, folder=tmp_path,
        on_pre_step=lambda step: observer.read(session.state, step), on_step=lambda *_: found.append(observer.latest) or "",
    )  # fmt: skip
    with observer.attached(trainer.model):
        run_trainer(trainer, session)
    expected = measure_uptake(micro.model, dictionary, encoded).of(micro.plan.concepts[0].latents)
    assert found[0]["c0"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert len(list(iter_batches(encoded, batch_size=6, pad_id=0))) == 1


def test_pressure_falls_when_the_trait_is_explained_away(micro, tmp_path):
    dictionary = make_dictionary(micro.model)
    settings = {**FAST, "steps": 2, "observe": True}
    common = {"neutral": micro.neutral, "dictionary": dictionary}
    plain = train(
        micro.model, micro.data, micro.plan, out=tmp_path / "p", controls="plain", **common, **settings
    )
    ours = train(
        micro.model, micro.data, micro.plan, out=tmp_path / "r", controls="explain_away", **common, **settings
    )
    first = [abs(run.steps[0].pressure["c0"]) for run in (plain, ours)]
    assert first[1] < 0.8 * first[0], first


def test_a_dictionary_of_another_model_is_refused(micro, tiny, tmp_path):
    with pytest.raises(TrainingError, match="cannot observe with this plan's dictionary"):
        train(
            micro.model, micro.data, micro.plan, out=tmp_path / "x", controls="plain",
            dictionary=make_dictionary(tiny), **{**FAST, "observe": True},
        )  # fmt: skip


def test_metrics_after_the_checkpoint_are_dropped(tmp_path):
    from fairlead.core.results import StepRecord

    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(1, 6):
        first.add(StepRecord(step=step, loss=step, seconds=0.1))
    first.close()
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')
    second = MetricsFile(path, keep_steps=3)
    second.close()
    assert [r.step for r in read_metrics(path)] == [1, 2, 3]


def test_a_full_disk_leaves_no_half_model(micro, tmp_path, monkeypatch):
    arm = resolve("plain")
    config = TrainConfig(controls=arm.controls, checkpoint_every=0, **{**FAST, "steps": 1})

    def full(self, folder, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(RunError, match=r"No space left on device.*free space"):
        fit(micro.model, micro.data, None, config=config, folder=tmp_path / "f")
    assert not (tmp_path / "f" / "model").exists()


def test_an_existing_run_is_not_written_over(micro, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="exists already"):
        train(micro.model, micro.data, out=tmp_path / "there", controls="plain", **FAST)
