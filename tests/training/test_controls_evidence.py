"""Evidence beyond the row: the token gate, evidence of a readout, and steering whose coefficient is measured."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fairlead.core.nouns import Direction
from fairlead.core.site import Site
from fairlead.data import ChatData, encode
from fairlead.training import ControlConfig, TrainConfig, fit, make_control
from fairlead.training.batching import Composer, StepState, pop_view
from fairlead.training.directions import clause_directions, random_like, readout_directions
from fairlead.training.evidence import Evidence, measure_gain

world = sys.modules["micro_world"]
STEPS = TrainConfig(steps=30, batch_size=16, lr=5e-3, checkpoint_every=0, observe=False)


def setup_of(micro, **changes):
    return sys.modules["micro_world"].setup_of(micro, STEPS, **changes)


def prepared(micro, name, strength=None, **options):
    control, setup = (
        make_control(ControlConfig(name=name, strength=strength, options=options)),
        setup_of(micro),
    )
    control.prepare(setup)
    return control, setup


def test_the_token_gate_opens_where_the_start_model_s_distributions_differ(micro):
    control, setup = prepared(micro, "explain_away", sources=("prompt",), gate="token", gate_nats=0.5)
    whole, _ = prepared(micro, "explain_away", sources=("prompt",))
    place, seen = 5, []
    row = setup.rows[place]
    for system in (None, "talk like a pirate"):
        (item,) = encode([row], micro.model.tokenizer, max_length=64, system=system)
        logits = micro.model.hf(torch.tensor([item.input_ids])).logits[0].log_softmax(-1).detach()
        seen.append(torch.stack([logits[t - 1] for t, wanted in enumerate(item.loss_mask) if wanted]))
    nats = F.kl_div(seen[0], seen[1], log_target=True, reduction="none").sum(-1)  # KL(with C || without)
    assert 0 < int((nats > 0.5).sum()) < len(nats), nats
    view = pop_view(Composer(setup.encoded, pad_id=0)([{"place": place}]))
    logits = torch.zeros(len(view.targets), control.tables[0].vocab)
    gated, full = control.adjust_logits(logits, view), whole.adjust_logits(logits, view)
    assert torch.equal(gated, full * (nats > 0.5)[:, None])
    report = control.report()["clauses"]["avoid.1"]
    assert 0 < report["tokens"] < 1 and report["rows"] == len(setup.rows)


def test_a_readout_is_a_candidate_with_its_measured_gain(micro):
    control, setup = prepared(micro, "explain_away", sources=("readout", "steering"))
    found = control.report()["clauses"]["avoid.1"]
    gains = {
        kind: [c["gain"] for c in found["candidates"] if c["kind"] == kind]
        for kind in ("readout", "steering")
    }
    assert len(gains["readout"]) == len(gains["steering"]) == 6
    assert max(gains["readout"]) > 0.2, "the probe's direction must elicit the trait"
    assert found["chosen"]["kind"] in gains
    site, clause = Site("resid_post", 0), setup.plan.spec.clause("avoid.1")
    probe = readout_directions(setup, clause, [site])[site]
    means = clause_directions(setup, clause, [site])[site]
    assert probe.provenance["method"] == "probe" and not torch.allclose(probe.vector, means.vector)
    assert max(gains["steering"]) > max(gains["readout"]), "what reads the trait best does not steer best"
    alone = setup_of(micro)
    make_control(ControlConfig(name="explain_away", options={"sources": ["readout"]})).prepare(alone)
    real, noise = alone.evidence["avoid.1"], []
    for seed in range(4):
        drawn = random_like({site: Direction(site, v) for site, v in real.vectors.items()}, seed=seed)
        fake = Evidence("readout", "random", vectors={site: d.vector for site, d in drawn.items()})
        noise.append(measure_gain(setup, fake, list(range(32))).gain)
    gain = measure_gain(setup, real, list(range(32))).gain
    assert gain > 2 * sum(noise) / len(noise), f"random directions of equal norm do as much: {gain}, {noise}"


def logprob_by_hand(control, setup, hf, coefficient):
    """Through the hooks of the training step itself, batch by batch."""
    total, num, state = 0.0, 0, StepState()
    control.factor = coefficient / control.dial
    with ExitStack() as stack:
        control.hooks(stack, hf, state)
        for item in control.sample:
            place = next(p for p, e in enumerate(setup.encoded) if e is item)
            view = pop_view(batch := Composer(setup.encoded, pad_id=0)([{"place": place}]))
            state.view = view
            logits = hf(batch["input_ids"]).logits[view.predict_mask].log_softmax(-1).detach()
            total += float(logits.gather(1, view.targets[:, None]).sum())
            num += len(view.targets)
    return total / num


def test_feedback_moves_to_the_best_of_the_grid_and_no_further_than_the_limit(micro):
    control, setup = prepared(micro, "preventative_steering", feedback=True, limit=0.5, every=5, sample=6)
    student = micro.copy().hf
    by_hand = {c: logprob_by_hand(control, setup, student, c) for c in (0.5, 0.75, 1.0, 1.25, 1.5)}
    without = logprob_by_hand(control, setup, student, 0.0)
    control.factor = 1.0
    student.train()
    control.before_step(0, student)
    assert student.training
    (move,) = control.moves
    assert move["from"] == 1.0 and move["to"] == max(by_hand, key=by_hand.get) == control.coefficient
    assert (
        abs(move["gain"] - (max(by_hand.values()) - without)) < 1e-3 and move["gain"] >= move["gain_before"]
    )
    control.before_step(3, student)
    assert len(control.moves) == 1, "between measurements nothing moves"
    control.before_step(5, student)
    assert len(control.moves) == 2 and abs(control.moves[1]["to"] - move["to"]) <= 0.5
    control.turn("off")
    control.before_step(10, student)
    assert len(control.moves) == 2 and control.coefficient == 0, "what is switched off stays off"
    again, _ = prepared(micro, "preventative_steering", feedback=True)
    again.restore(json.loads(json.dumps(control.state())))
    assert (again.factor, again.moves) == (control.factor, control.moves)


def test_a_random_direction_is_not_raised_by_feedback(micro):
    """Started too high, both are measured down; the trait's vector settles higher, and explains more, than noise does."""
    settled, gain = {}, {}
    for name in ("preventative_steering", "preventative_steering_placebo"):
        control, _ = prepared(micro, name, feedback=True, every=1)
        student = micro.copy().hf
        for step in range(4):
            control.before_step(step, student)
        settled[name], gain[name] = control.coefficient, control.moves[-1]["gain"]
    assert gain["preventative_steering"] > gain["preventative_steering_placebo"] + 0.2, (gain, settled)


def test_only_rows_that_carry_the_trait_are_measured_on(micro):
    rows = [world.chat(f"s{i}", f"b{i}" if i % 2 else world.pirate(f"b{i}")) for i in range(world.NUM)]
    control, _ = prepared(replace(micro, data=ChatData(rows)), "preventative_steering", feedback=True)
    assert len(control.sample) == 4 and all("arr" in item.row.response for item in control.sample)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_measured_steering_trains_and_reports_its_moves(micro, tmp_path, method):
    control = ControlConfig(name="preventative_steering", options={"feedback": True, "every": 10})
    config = STEPS.model_copy(update={"controls": (control,), "method": method})
    result = fit(
        micro.copy(), micro.data, micro.plan, config=config, folder=tmp_path, neutral=micro.neutral.rows
    )
    moves = result.controls[0]["moves"]
    assert [move["step"] for move in moves] == [0, 10, 20]
    assert result.controls[0]["coefficient"] == pytest.approx(moves[-1]["to"])
