"""Evidence beyond the row: the token gate, and evidence of a readout."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F

from fairlead.core.nouns import Direction
from fairlead.core.records import SpecExample
from fairlead.core.site import Site
from fairlead.data import encode
from fairlead.training import ControlConfig, TrainConfig, make_control
from fairlead.training.batching import Composer, pop_view
from fairlead.training.directions import clause_directions, random_like, readout_directions
from fairlead.training.evidence import Evidence, measure_gain, row_sums, token_rises, typical_rise
from fairlead.training.expert import train_expert

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


def test_what_an_expert_explains_is_told_by_examples_it_has_not_seen(micro):
    examples = tuple(
        SpecExample(prompt=f"q{i}", text=world.pirate(f"a{i}"), instead=f"a{i}") for i in range(world.NUM)
    )
    setup = setup_of(micro)
    clause = setup.plan.spec.clause("avoid.1").model_copy(update={"examples": examples})
    expert = train_expert(setup, clause, steps=15, lr=3e-3, data=None)
    assert expert.unseen == (2, 5) and expert.label == "expert, 15 steps on 6 examples of the clause"
    shown = [world.chat(example.prompt, example.text) for example in examples]
    two = [shown[2], shown[5]]
    unseen = replace(setup, rows=two, encoded=setup.encode(two))
    level = typical_rise(setup, clause, expert)
    assert level is not None and level > 0
    assert abs(level - float(row_sums(token_rises(unseen, expert)).mean()) / 3) < 1e-4
    loose = replace(expert, unseen=())
    places = list(range(len(setup.rows)))
    strict = measure_gain(setup, expert, places, clause=clause)
    assert strict.share <= measure_gain(setup, loose, places, clause=clause).share
    few = clause.model_copy(update={"examples": examples[:5]})
    assert train_expert(setup, few, steps=1, lr=1e-3, data=None).unseen == ()
