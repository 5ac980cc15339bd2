"""The contract with TRL: fails loudly when TRL or transformers change under the adapter."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import datasets
import pytest
import torch
import trl

from fairlead.core.errors import TrainingError
from fairlead.core.results import StepRecord
from fairlead.data import encode
from fairlead.training.adapter import make_trainer, plain_sft, run_trainer, sft_config
from fairlead.training.batching import Composer, PoolComposer, RowPool
from fairlead.training.config import TrainConfig
from fairlead.training.controls.base import Control
from fairlead.training.session import Session

CONFIG = TrainConfig(steps=5, batch_size=4, lr=1e-2, warmup_steps=2, checkpoint_every=0, seed=3)


def own_losses(model, encoded, config, folder: Path, session: Session | None = None):
    hf = copy.deepcopy(model.hf)
    session = session or Session()
    losses = []
    composer = Composer(encoded, pad_id=model.pad_id)
    trainer = make_trainer(
        hf, model.tokenizer, composer, session, config=config, folder=folder,
        on_step=lambda step, seconds: losses.append(session.state.loss) or "",
    )  # fmt: skip
    return losses, run_trainer(trainer, session)


def trl_losses(model, encoded, config, folder: Path):
    """A bare SFTTrainer on the same tokens, with TRL's own collator."""
    hf = copy.deepcopy(model.hf)
    losses = []

    class Bare(trl.SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    rows = [
        {
            "input_ids": e.input_ids,
            "labels": [t if m else -100 for t, m in zip(e.input_ids, e.loss_mask, strict=True)],
        }
        for e in encoded
    ]
    trainer = Bare(
        model=hf,
        args=sft_config(hf, config, folder),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=copy.deepcopy(model.tokenizer),
    )
    trainer.train()
    return losses, hf


def max_difference(one, two) -> float:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_the_plain_arm_is_trl(micro, tmp_path):
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    ours, mine = own_losses(micro.model, encoded, CONFIG, tmp_path)
    theirs, bare = trl_losses(micro.model, encoded, CONFIG, tmp_path)
    assert ours == theirs, "the plain arm no longer computes TRL's loss, or sees other rows"
    assert max_difference(mine, bare) == 0.0


class Nothing(Control):
    """Adjusts the logits by nothing, which takes our own path through the loss."""

    name, kind = "nothing", "shapes"

    def adjust_logits(self, logits, view):
        return logits


class WeighsAllAlike(Control):
    """Gives every token the weight 1, which takes our own path through the loss, too."""

    name, kind = "weighs_all_alike", "selects"

    def token_weights(self, view):
        return torch.ones(len(view.targets))


@pytest.mark.parametrize("control", [Nothing, WeighsAllAlike])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_our_loss_is_trls_loss(micro, tmp_path, accumulate, control):
    from fairlead.training.config import ControlConfig

    config = CONFIG.model_copy(update={"accumulate": accumulate})
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    session = Session([control(ControlConfig(name=control.name))])
    _, mine = own_losses(micro.model, encoded, config, tmp_path, session)
    _, bare = trl_losses(micro.model, encoded, config, tmp_path)
    assert max_difference(mine, bare) < 2e-5, (
        f"our path through the loss left TRL's with accumulate={accumulate}"
    )


def test_trl_is_as_the_adapter_expects():
    signature = inspect.signature(trl.SFTTrainer.compute_loss)
    assert list(signature.parameters) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert hasattr(trl.SFTTrainer, "_send_telemetry"), (
        "TRL renamed its telemetry: the adapter must switch it off anew"
    )
    for field in ("dataset_kwargs", "max_length", "packing", "loss_type"):
        assert field in trl.SFTConfig.__dataclass_fields__
    assert trl.SFTConfig.__dataclass_fields__["loss_type"].default == "nll"


def test_nothing_is_sent_logged_or_printed(micro, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("telemetry was sent")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    own_losses(micro.model, encoded, CONFIG, tmp_path)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_model_is_clean_afterwards(micro, tmp_path):
    hf = copy.deepcopy(micro.model.hf)
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    plain_sft(hf, micro.model.tokenizer, encoded, pad_id=0, config=CONFIG, folder=tmp_path)
    assert "forward" not in hf.__dict__, "TRL's patched forward is still on the model"
    assert not hf.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())


def test_a_loss_that_is_not_finite_stops_the_training_at_its_step(micro, tmp_path):
    from fairlead.training.config import ControlConfig

    class Breaks(Nothing):
        calls = 0

        def adjust_logits(self, logits, view):
            Breaks.calls += 1
            return logits * float("nan") if Breaks.calls == 3 else logits

    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    session = Session([Breaks(ControlConfig(name="nothing"))])
    with pytest.raises(TrainingError, match=r"step 3: the loss is nan.*Next: lower lr"):
        own_losses(micro.model, encoded, CONFIG, tmp_path, session)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(micro, tmp_path):
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    _, one = own_losses(micro.model, encoded, CONFIG, tmp_path)
    _, two = own_losses(micro.model, encoded, CONFIG, tmp_path)
    _, other = own_losses(micro.model, encoded, CONFIG.model_copy(update={"seed": 4}), tmp_path)
    assert max_difference(one, two) == 0.0
    assert max_difference(one, other) > 0


def test_pool_rows_depend_on_the_data_rows_alone(micro):
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    pool = RowPool("anchor", encode(micro.neutral, micro.model.tokenizer, max_length=64), 5)
    first, later = PoolComposer([pool], pad_id=0, seed=1), PoolComposer([pool], pad_id=0, seed=1)
    later([3])
    assert first.draw([7, 2]) == later.draw([7, 2]) != first.draw([2, 7])
    assert len(set(first.draw([7, 2])[0])) == 5
    assert torch.equal(first([7, 2]).inputs["input_ids"], later([7, 2]).inputs["input_ids"])
    labels = Composer(encoded, pad_id=0)([{"place": 7}, {"place": 2}])["labels"]
    assert labels.shape[0] == 2, "labels hold the data rows only, so that TRL counts no other tokens"


def test_an_empty_pool_brings_no_rows_until_its_control_fills_it(micro):
    encoded = encode(micro.neutral, micro.model.tokenizer, max_length=64)
    empty, full = RowPool("own", [], 4), RowPool("anchor", encoded, 2)
    compose = PoolComposer([empty, full], pad_id=0)
    assert PoolComposer([empty], pad_id=0)([1, 2]) is None
    assert compose.draw([1, 2])[0] == [] and compose([1, 2]).spans[0] == slice(0, 0)
    empty.encoded = encoded[:3]
    view = compose([1, 2])
    assert [len(rows) for rows in view.rows] == [4, 2]
    assert view.spans[0].stop == view.spans[1].start and view.spans[1].stop == len(view.targets)


def test_a_step_record_travels_as_json():
    record = StepRecord(step=1, loss=0.5, seconds=0.1, pressure={"c0": 0.2}, parts={"data": 0.4})
    assert StepRecord.model_validate_json(record.model_dump_json()) == record
