"""A step of the recipe does not depend on how its batch is cut, padded or ordered, nor on how many processes share it.

What is held fixed is the list of the step's data rows in the sampler's order: the controls' rows are drawn by it (a hash), for the
whole step. For another order other rows are drawn; given the same ones, the order within a batch does not matter.
"""

from __future__ import annotations

import copy

import pytest
import torch
from micro_world import make_dictionary

from fairlead.core.errors import TrainingError
from fairlead.data import collate
from fairlead.studies.train import train
from fairlead.training import TrainConfig, make_control, resolve
from fairlead.training.batching import IGNORE, Composer, StepPart, check_packing
from fairlead.training.fit import prepare
from fairlead.training.session import Session

PLACES = (12, 1, 25, 6, 19, 30, 9, 10)
KEPT = {"state": {"kept": {"1": "b1", "5": "b5 arr", "9": "b2"}, "asked": []}}
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def recipe(micro):
    """Session of the recipe with all controls at work, and the encoded data."""
    config = TrainConfig(controls=resolve("recipe").controls, steps=10)
    setup = prepare(micro.model, micro.data, micro.plan, config=config, neutral=micro.neutral.rows)
    # rows of different lengths, so that padding is at stake
    setup.rows = [micro.neutral.rows[i % 8] if i % 3 == 0 else row for i, row in enumerate(setup.rows)]
    setup.encoded = [
        type(item)(item.input_ids, item.loss_mask, i, item.row)
        for i, item in enumerate(setup.encode(setup.rows))
    ]
    controls = [make_control(item) for item in config.controls]
    for control in controls:
        control.prepare(setup)
    controls[-1].restore(KEPT["state"])
    return Session(controls, pad_id=micro.model.pad_id, seed=3), setup.encoded


def inputs_of(encoded, places, part, *, padding_side="right", extra=0):
    """A batch as the composer makes it, padded in another way."""
    batch = collate([encoded[place] for place in places], pad_id=0, padding_side=padding_side)
    pad = (extra, 0) if padding_side == "left" else (0, extra)
    ids, seen, wanted = (
        torch.nn.functional.pad(x, pad) for x in (batch.input_ids, batch.attention_mask, batch.loss_mask)
    )
    labels = ids.masked_fill(~wanted, IGNORE)
    return {
        "input_ids": ids, "attention_mask": seen, "labels": labels,
        "fl_places": torch.tensor(places), "fl_targets": wanted, "fl_part": part,
    }  # fmt: skip


def packed_inputs(encoded, places, part):
    """A batch as the composer makes it, packed."""
    made = Composer(encoded, pad_id=0, packing=True)([{"place": place} for place in places])
    return {**made, "fl_part": part}


def gradients(micro, recipe, cuts, *, processes=1, packing=False, **padding):
    """Loss of the step and gradients of all parameters, with the batch cut in parts (micro-batch by micro-batch, process by process)."""
    session, encoded = recipe
    session.compose.packing = packing
    student = copy.deepcopy(micro.model.hf)
    tokens = torch.tensor(sum(encoded[place].num_loss_tokens for place in PLACES))
    num, loss, parts = len(cuts) // processes, 0.0, {}
    for process in range(processes):
        for number in range(num):
            part = StepPart(PLACES, number, process, num, processes)
            places = cuts[number * processes + process]
            inputs = (
                packed_inputs(encoded, places, part)
                if packing
                else inputs_of(encoded, places, part, **padding)
            )
            value = session.loss(
                student, inputs, num_items=tokens, plain=None, accumulate=num, processes=processes
            )
            (value / processes).backward()  # several processes average their gradients
        loss += session.state.loss / processes
        parts = {k: parts.get(k, 0) + v / processes for k, v in session.state.parts.items()}
    return loss, parts, torch.cat([p.grad.flatten() for p in student.parameters()])


def cut(size):
    return [list(PLACES[start : start + size]) for start in range(0, len(PLACES), size)]


VARIANTS = {
    "4 x 2": {"cuts": cut(4)},
    "2 x 4": {"cuts": cut(2)},
    "1 x 8": {"cuts": cut(1)},
    "2 processes": {"cuts": cut(4), "processes": 2},
    "2 processes, 2 micro-batches each": {"cuts": cut(2), "processes": 2},
    "8 processes": {"cuts": cut(1), "processes": 8},
    "padding on the left": {"cuts": cut(8), "padding_side": "left"},
    "7 more columns of padding": {"cuts": cut(8), "extra": 7},
    "7 more on the left, 2 x 4": {"cuts": cut(2), "padding_side": "left", "extra": 7},
    "packed": {"cuts": cut(8), "packing": True},
    "packed, 2 x 4": {"cuts": cut(2), "packing": True},
    "another order of the rows": {"cuts": [[9, 30, 12, 10, 6, 1, 19, 25]]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_of_a_step_do_not_depend_on(micro, recipe, name):
    loss, parts, grad = gradients(micro, recipe, cut(8))
    assert set(parts) == {"data", "anchor", "spec_examples", "own_counterparts"}
    other, other_parts, other_grad = gradients(micro, recipe, **VARIANTS[name])
    assert other == pytest.approx(loss, abs=TOLERANCE)
    assert other_parts == pytest.approx(parts, abs=TOLERANCE)
    gap = float((grad - other_grad).abs().max())
    assert gap < TOLERANCE * max(1.0, float(grad.abs().max())), f"{name}: gradients differ by {gap:.2g}"


def test_the_parts_of_a_step_share_its_pool_rows(recipe):
    session, _ = recipe
    whole = [sorted(picks) for picks in session.compose(PLACES).rows]
    views = [
        session.compose(PLACES, part=StepPart(PLACES, micro, process, 2, 2))
        for micro in range(2)
        for process in range(2)
    ]
    assert [sorted(r for view in views for r in view.rows[pool]) for pool in range(len(whole))] == whole
    assert [sum(view.weights[pool] for view in views) for pool in range(len(whole))] == pytest.approx(
        [1.0] * len(whole)
    )


def test_a_part_without_rows_joins_the_others_with_weight_0(recipe):
    session, _ = recipe
    num = 64  # more parts than rows in any pool
    assert session.compose(PLACES, part=StepPart(PLACES, num - 1, 0, num, 1)) is None
    view = session.compose(PLACES, part=StepPart(PLACES, num // 2 - 1, 1, num // 2, 2))
    assert view is not None and view.weights == [0.0] * len(view.rows)


def test_a_training_does_not_depend_on_its_micro_batches(micro, tmp_path):
    runs = [
        train(
            micro.model, micro.data, micro.plan, out=tmp_path / str(size), neutral=micro.neutral, steps=4, lr=3e-3,
            batch_size=size, accumulate=8 // size, observe=False, checkpoint_every=0, precision="float32",
        )
        for size in (8, 4, 2)
    ]  # fmt: skip
    for other in runs[1:]:
        assert [s.loss for s in other.steps] == pytest.approx([s.loss for s in runs[0].steps], abs=1e-5)
        one, two = (run.load_model().hf.state_dict() for run in (runs[0], other))
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


def test_bfloat16_stays_near_float32_and_corrects_in_float32(micro, tmp_path, monkeypatch):
    from fairlead.training.controls.anchor import Anchor
    from fairlead.training.controls.explain_away import ExplainAway

    seen = []
    adjust, pool_loss = ExplainAway.adjust_logits, Anchor.pool_loss

    def spied(self, logits, view):
        seen.append((logits.dtype, adjust(self, logits, view).dtype))
        return adjust(self, logits, view)

    def spied_loss(self, logits, targets, rows):
        loss = pool_loss(self, logits, targets, rows)
        seen.append((logits.dtype, loss.dtype))
        return loss

    monkeypatch.setattr(ExplainAway, "adjust_logits", spied)
    monkeypatch.setattr(Anchor, "pool_loss", spied_loss)
    runs = [
        train(
            micro.model, micro.data, micro.plan, out=tmp_path / precision, neutral=micro.neutral, steps=5, lr=3e-3,
            batch_size=8, observe=False, checkpoint_every=0, precision=precision,
        )
        for precision in ("float32", "bfloat16")
    ]  # fmt: skip
    assert len(seen) == 20 and set(seen) == {(torch.float32, torch.float32)}
    one, two = ([step.loss for step in run.steps] for run in runs)
    assert one != two, "bfloat16 was not used"
    assert two == pytest.approx(one, rel=0.02, abs=0.02)


@pytest.mark.parametrize("controls", ["recipe", "plain", "preventative_steering"])
def test_a_packed_training_is_the_padded_one(micro, tmp_path, controls):
    dictionary = make_dictionary(micro.model)
    runs = [
        train(
            micro.model, micro.data, micro.plan, out=tmp_path / str(packing), neutral=micro.neutral, steps=4, lr=3e-3, batch_size=8,
            controls=controls, dictionary=dictionary, checkpoint_every=0, packing=packing,
        )
        for packing in (False, True)
    ]  # fmt: skip
    padded, packed = (run.steps for run in runs)
    assert [s.loss for s in packed] == pytest.approx([s.loss for s in padded], abs=1e-5)
    assert all(s.pressure for s in padded)
    for one, two in zip(padded, packed, strict=True):
        assert two.pressure == pytest.approx(one.pressure, abs=1e-5)
    one, two = (run.load_model().hf.state_dict() for run in runs)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4


def test_a_model_that_cannot_keep_packed_rows_apart_is_refused(micro, recipe):
    from transformers import MambaConfig, MambaForCausalLM

    _, encoded = recipe
    check_packing(micro.model.hf, encoded, name="llama", pad_id=0)
    vocab = micro.model.hf.config.vocab_size
    torch.manual_seed(0)
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=vocab, hidden_size=16, num_hidden_layers=2, state_size=4)
    ).eval()
    with pytest.raises(TrainingError, match="does not keep packed rows apart"):
        check_packing(mamba, encoded, name="mamba", pad_id=0)
