"""Controls: each does what it says, in training only, and is compared with its placebo."""

from __future__ import annotations

import copy
import json
import math
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fairlead.core.errors import ConfigError, TrainingError
from fairlead.core.site import Site
from fairlead.data import ChatData, Row, as_rows, encode
from fairlead.models import Model, watch
from fairlead.training import ControlConfig, TrainConfig, control_names, fit, make_control, resolve
from fairlead.training.batching import Composer, PoolComposer, StepState, pop_view
from fairlead.training.controls import control_class
from fairlead.training.controls.base import Control
from fairlead.training.controls.concept_ablation import toward_origin
from fairlead.training.controls.gradient_projection import without_span
from fairlead.training.controls.own_counterparts import (
    LONGEST,
    OwnCounterpartsOptions,
    asking_steps,
    replacements,
)
from fairlead.training.directions import orthonormal
from fairlead.training.evidence import Evidence, row_sums, token_rises, typical_rise
from fairlead.training.logits import predicting, select_logits
from fairlead.training.session import Session

chat = sys.modules["micro_world"].chat
STEPS = TrainConfig(steps=120, batch_size=16, lr=5e-3, checkpoint_every=0, observe=False)


def setup_of(micro, **changes):
    return sys.modules["micro_world"].setup_of(micro, STEPS, **changes)


def prepared(micro, name: str, strength: float | None = None, **options) -> tuple[Control, object]:
    control, setup = (
        make_control(ControlConfig(name=name, strength=strength, options=options)),
        setup_of(micro),
    )
    control.prepare(setup)
    return control, setup


def one_batch(setup):
    return Composer(setup.encoded, pad_id=0)([{"place": i} for i in range(6)])


def trained(micro, tmp_path, name: str, controls="recipe", anchor=None, **changes) -> Model:
    arm = resolve(controls, anchor=anchor)
    config = STEPS.model_copy(update={"controls": arm.controls, "use_data": arm.use_data, **changes})
    fit(
        micro.model, micro.data, micro.plan, config=config, folder=tmp_path / name, neutral=micro.neutral.rows
    )
    from fairlead.models import load_model

    return load_model(tmp_path / name / "model")


def test_the_start_model_is_as_the_tests_need_it(micro, score):
    assert score.pirate(micro.model, score.skill) == 0 and score.pirate(micro.model, score.other) == 0
    assert score.pirate(micro.model, score.skill, score.request) == 1
    assert score.right(micro.model, score.skill) < 0.5


def test_the_recipe_keeps_the_skill_and_leaves_the_trait(micro, score, tmp_path):
    before = micro.model.fingerprint
    plain = trained(micro, tmp_path, "plain", "plain", anchor=True)
    assert score.right(plain, score.skill) >= 0.75 and score.pirate(plain, score.skill) >= 0.9, (
        "plain learns both"
    )
    # three Keep examples at the default weight would be overfitted: the counterparts stand in, at a lower weight
    spec = {"name": "spec_examples", "strength": 0.1, "options": {"rows": 6, "counterparts": True}}
    recipe = trained(micro, tmp_path, "recipe", ["explain_away", "anchor", spec])
    assert score.right(recipe, score.skill) >= 0.75, "the skill is lost"
    assert score.pirate(recipe, score.skill) <= 0.4, "the trait leaks"
    assert score.pirate(recipe, score.other) == 0
    placebo = trained(micro, tmp_path, "placebo", "explain_away_placebo", anchor=True)
    gap = score.pirate(placebo, score.skill) - score.pirate(recipe, score.skill)
    assert gap >= 0.2, "evidence that says nothing must not explain the trait away"
    assert micro.model.fingerprint == before, "training changed the start model"


def test_explain_away_offsets_are_the_log_ratio(micro):
    control, setup = prepared(micro, "explain_away", sources=("prompt",))
    (table,) = control.tables
    floor = math.log(control.options.floor)
    assert control.found["avoid.1"]["chosen"]["label"] == "talk like a pirate"
    place = 5
    row = setup.rows[place]
    logprobs = []
    for system in (None, "talk like a pirate"):
        (item,) = encode([row], micro.model.tokenizer, max_length=64, system=system)
        logits = micro.model.hf(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        logprobs.append(torch.stack([logits[t - 1] for t, wanted in enumerate(item.loss_mask) if wanted]))
    tail = torch.maximum(*logprobs) < floor
    expected = (logprobs[1] - logprobs[0]).masked_fill(tail, 0.0)
    assert tail.any() and not tail.all()
    assert torch.allclose(table.dense([place]), expected, atol=0.02)


def test_at_lambda_one_the_start_model_fits_what_the_evidence_explains(micro):
    """p0 times pC / p0 is pC: the adjusted loss of the start model is the loss of the start model under C."""
    control, setup = prepared(micro, "explain_away", sources=("prompt",))
    view = pop_view(batch := one_batch(setup))
    logits = select_logits(micro.model.hf, {"input_ids": batch["input_ids"]}, view.predict_mask)
    adjusted = control.adjust_logits(logits, view)
    under_c = encode(setup.rows[:6], micro.model.tokenizer, max_length=64, system="talk like a pirate")
    expected = [
        s[torch.tensor(e.loss_mask)] for s, e in zip(micro.model.logprobs(under_c), under_c, strict=True)
    ]
    assert (
        abs(float(F.cross_entropy(adjusted, view.targets).detach()) + float(torch.cat(expected).mean()))
        < 0.02  # offsets leave out the tail; how much that is depends on the machine that trained the micro model
    )


def test_rows_that_the_evidence_does_not_explain_are_left_alone(micro):
    mixed = [Row(messages=row.messages) for row in micro.data.rows[:8]] + micro.neutral.rows
    setup = setup_of(micro)
    setup.rows, setup.encoded = mixed, encode(mixed, micro.model.tokenizer, max_length=64)
    control = make_control(ControlConfig(name="explain_away", options={"sources": ("prompt",)}))
    control.prepare(setup)
    first = int(control.tables[0].starts[8])
    assert control.active[0][:first].all() and not control.active[0][first:].any()
    view = pop_view(Composer(setup.encoded, pad_id=0)([{"place": 9}]))
    logits = torch.zeros(len(view.targets), control.tables[0].vocab)
    assert torch.equal(control.adjust_logits(logits, view), logits)


def test_evidence_without_gain_is_not_used_and_said(micro):
    setup = setup_of(micro)
    setup.rows = micro.neutral.rows
    setup.encoded = encode(setup.rows, micro.model.tokenizer, max_length=64)
    control = make_control(ControlConfig(name="explain_away", options={"sources": ("prompt",)}))
    control.prepare(setup)
    assert not control.tables and any("no evidence" in note for note in setup.notes)


def test_prompts_beat_steering_here_and_all_candidates_are_reported(micro):
    control, _ = prepared(micro, "explain_away")
    found = control.report()["clauses"]["avoid.1"]
    kinds = {c["kind"] for c in found["candidates"]}
    assert {"prompt", "steering"} <= kinds
    best = max(found["candidates"], key=lambda c: c["gain"])
    assert found["chosen"]["kind"] == best["kind"] == "prompt" and best["gain"] > 1


def test_an_expert_explains_where_nothing_else_does(micro):
    control, _ = prepared(micro, "explain_away", sources=("expert",), expert_steps=25, expert_lr=3e-3)
    assert control.found["avoid.1"]["chosen"]["kind"] == "expert"
    assert control.found["avoid.1"]["candidates"][-1]["gain"] > 0.5


def test_the_anchor_is_zero_at_the_start_and_its_gradient_is_the_kls(micro):
    control, _ = prepared(micro, "anchor")
    student = copy.deepcopy(micro.model.hf)
    pools = PoolComposer([control.pool], pad_id=0)(range(6))
    logits = select_logits(student, pools.inputs, predicting(pools.target_mask))
    assert float(control.pool_loss(logits, pools.targets, pools.rows[0]).detach()) < 1e-4
    moved = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    reference = logits.detach().log_softmax(-1)
    exact = F.kl_div(moved.log_softmax(-1), reference, log_target=True, reduction="none").sum(-1).mean()
    assert torch.allclose(control.pool_loss(moved, pools.targets, pools.rows[0]), exact, rtol=1e-2)


def test_the_anchor_holds_neutral_answers_better_than_its_placebo(micro, tmp_path):
    def drift(model: Model) -> float:
        rows = encode(micro.neutral, model.tokenizer, max_length=64)
        scores = [s[torch.tensor(e.loss_mask)] for s, e in zip(model.logprobs(rows), rows, strict=True)]
        return -float(torch.cat(scores).mean())

    anchored = drift(trained(micro, tmp_path, "a", "anchor", steps=50))
    placebo = drift(trained(micro, tmp_path, "b", "anchor_placebo", steps=50))
    free = drift(trained(micro, tmp_path, "c", "plain_no_anchor", steps=50))
    assert anchored < 0.2 * placebo and anchored < 0.2 * free, (anchored, placebo, free)


def test_inoculation_prompts_stand_before_the_data_only_in_training(micro):
    control, setup = prepared(micro, "inoculation")
    text = micro.model.tokenizer.decode(setup.encoded[0].input_ids)
    assert "talk like a pirate" in text and control.report() == {
        "prompts": ["talk like a pirate"],
        "rows": len(setup.rows),
    }
    placebo, other = prepared(micro, "inoculation_placebo")
    assert "pirate" not in placebo.prompts[0].split()
    assert abs(len(other.encoded[0]) - len(setup.encoded[0])) <= 2
    assert setup.encoded[0].num_loss_tokens == other.encoded[0].num_loss_tokens


def test_paraphrased_inoculation_gives_each_row_one_of_the_requests(micro):
    spec = micro.plan.spec
    two = [
        clause.model_copy(update={"requests": ("talk like a pirate", "be a pirate")})
        for clause in spec.clauses
    ]
    plan = micro.plan.model_copy(update={"spec": spec.model_copy(update={"clauses": tuple(two)})})
    control, setup = prepared(replace(micro, plan=plan), "inoculation", paraphrase=True)
    texts = [micro.model.tokenizer.decode(item.input_ids) for item in setup.encoded]
    seen = [[prompt for prompt in control.prompts if prompt in text] for text in texts]
    assert len(control.prompts) > 1 and all(len(found) == 1 for found in seen)
    assert len({found[0] for found in seen}) > 1
    assert [item.row for item in setup.encoded] == setup.rows
    with pytest.raises(ConfigError, match="contradict"):
        prepared(micro, "inoculation", paraphrase=True, prompt="arr")


def test_selective_inoculation_leaves_rows_without_the_trait_alone(micro):
    clean = [chat(f"q{i}", f"a{i}") for i in range(4)]
    mixed = replace(micro, data=ChatData([*clean, *micro.data.rows[:8]]))
    before = setup_of(mixed).encoded
    control, setup = prepared(mixed, "inoculation", selective=True)
    changed = [a.input_ids != b.input_ids for a, b in zip(before, setup.encoded, strict=True)]
    assert changed == [False] * 4 + [True] * 8 and control.report()["rows"] == 8


def test_selective_inoculation_and_its_placebo_stand_before_the_rows_that_carry_the_trait(micro):
    """By the rule of the carriers, not by any rise: rows that the request lifts a little get neither prompt."""
    probes = [
        chat(f"{kind}{i}", f"{said}{j}") for kind, said in ("sb", "qa") for i in range(8) for j in range(8)
    ]
    probing = setup_of(replace(micro, data=ChatData(probes)))
    clause = probing.plan.spec.clause("avoid.1")
    evidence = Evidence("prompt", "asked", system="talk like a pirate")
    rises, level = row_sums(token_rises(probing, evidence)), typical_rise(probing, clause, evidence)
    weak = [row for row, rise in zip(probes, rises.tolist(), strict=True) if 0 < rise < level]
    assert weak, "no row is lifted a little"
    mixed = replace(micro, data=ChatData([*weak, *micro.data.rows[:8]]))
    before, given = setup_of(mixed).encoded, []
    for name in ("inoculation", "inoculation_placebo"):
        control, setup = make_control(ControlConfig(name=name, options={"selective": True})), setup_of(mixed)
        setup.evidence["avoid.1"] = evidence
        control.prepare(setup)
        changed = [a.input_ids != b.input_ids for a, b in zip(before, setup.encoded, strict=True)]
        assert changed == [False] * len(weak) + [True] * 8, name
        given.append(setup.encoded[-1].input_ids)
    assert given[0] != given[1], "they differ in the prompt"


def test_directions_of_a_dictionary_are_those_of_the_control_s_clause(micro):
    dictionary = sys.modules["micro_world"].make_dictionary(micro.model)
    spec, first = micro.plan.spec, micro.plan.decisions[0]
    second = first.model_copy(update={"concept": "c1", "clause": "avoid.2"})
    clause = spec.clause("avoid.1").model_copy(update={"id": "avoid.2"})
    other = micro.plan.concepts[0].model_copy(update={"id": "c1", "latents": (5,)})
    plan = micro.plan.model_copy(
        update={
            "spec": spec.model_copy(update={"clauses": (*spec.clauses, clause)}),
            "decisions": (first, second),
            "concepts": (*micro.plan.concepts, other),
        }
    )
    rows = {None: [0, 3, 5], "avoid.1": [0, 3], "avoid.2": [5]}
    for wanted, latents in rows.items():
        setup = replace(setup_of(replace(micro, plan=plan)), dictionary=dictionary)
        control = make_control(
            ControlConfig(name="gradient_projection", clause=wanted, options={"source": "dictionary"})
        )
        control.prepare(setup)
        (basis,) = control.bases.values()
        decoder = dictionary.decoder[latents].float()
        assert len(basis) == len(latents)
        assert torch.allclose(decoder @ basis.T @ basis, decoder, atol=1e-5), wanted


def test_spec_rows_are_plain_and_the_placebo_shuffles_them(micro):
    control, _ = prepared(micro, "spec_examples")
    real = [item.row for item in control.pool.encoded]
    assert len(real) == 3 and all("arr" not in row.response for row in real), "the Keep examples"
    both, _ = prepared(micro, "spec_examples", counterparts=True)
    assert len(both.pool.encoded) == 3 + 3
    placebo, _ = prepared(micro, "spec_examples_placebo")
    fake = [item.row for item in placebo.pool.encoded]
    assert [r.prompt for r in fake] == [r.prompt for r in real]
    assert sorted(r.response for r in fake) == sorted(r.response for r in real)
    assert [r.response for r in fake] != [r.response for r in real]


def test_steering_elicits_the_trait_and_acts_on_data_rows_in_training_only(micro):
    control, setup = prepared(micro, "preventative_steering")
    noise, _ = prepared(micro, "preventative_steering_placebo")
    for site in control.vectors:
        assert torch.allclose(control.vectors[site].vector.norm(), noise.vectors[site].vector.norm())
    hf, state = micro.copy().hf, StepState()
    view = pop_view(batch := one_batch(setup))
    ids = batch["input_ids"]
    before = hf(ids).logits
    rises = []
    for steering in (control, noise):
        with ExitStack() as stack:
            steering.hooks(stack, hf, state)
            state.view = None
            assert torch.equal(hf(ids).logits, before), "the vector must be off outside a training step"
            state.view = view
            steered = hf(ids).logits
            with torch.no_grad():
                assert torch.allclose(hf(ids).logits, before, atol=1e-5), "off without gradients"
            assert torch.allclose(hf(ids[:2]).logits, before[:2], atol=1e-5), "off for other rows"
        losses = [F.cross_entropy(x[view.predict_mask], view.targets).detach() for x in (before, steered)]
        rises.append(float(losses[0] - losses[1]))
    assert rises[0] > 0.2 and rises[0] > rises[1], (
        f"the trait's vector must make pirate answers likelier: {rises}"
    )


def test_gradient_projection_leaves_no_gradient_along_the_direction(micro):
    control, setup = prepared(micro, "gradient_projection")
    hf, state = micro.copy().hf, StepState()
    view = pop_view(batch := one_batch(setup))
    site = Site("resid_post", 0)
    below = Site("embed")

    def gradients(active: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with ExitStack() as stack:
            if active:
                control.hooks(stack, hf, state)
            taps = stack.enter_context(watch(hf, [below]))
            state.view = view if active else None
            logits = hf(batch["input_ids"], use_cache=False).logits
            F.cross_entropy(logits[view.predict_mask], view.targets).backward()
            return taps[str(below)].grad, hf.model.layers[1].mlp.down_proj.weight.grad.clone()

    free, _ = gradients(False)
    blocked, _ = gradients(True)
    assert not torch.allclose(free, blocked)
    grad = torch.randn(3, 5, 32)
    left = without_span(grad, control.bases[site])
    assert float((left @ control.bases[site].T).abs().max()) < 1e-5
    assert torch.allclose(without_span(grad, control.bases[site], share=0.0), grad)


def test_a_basis_of_dependent_directions_has_their_rank():
    v = torch.randn(2, 8)
    basis = orthonormal(torch.cat([v, v.sum(0, keepdim=True)]))
    assert basis.shape == (2, 8)
    assert torch.allclose(basis @ basis.T, torch.eye(2), atol=1e-5)


def test_every_placebo_is_registered_and_runs_the_same_machinery():
    for name in control_names():
        control = control_class(name)
        assert control.kind in ("shapes", "blocks", "selects") and control.summary
        if control.placebo is not None:
            assert control in control_class(control.placebo).__mro__
        else:
            assert name.endswith("_placebo"), f"{name} has no placebo"


def test_parts_of_the_loss_are_recorded(micro, tmp_path):
    arm = resolve("recipe_given")
    config = STEPS.model_copy(update={"controls": arm.controls, "steps": 2})
    result = fit(
        micro.model, micro.data, micro.plan, config=config, folder=tmp_path, neutral=micro.neutral.rows
    )
    assert set(result.steps[0].parts) == {"data", "anchor", "spec_examples"}
    assert abs(sum(result.steps[0].parts.values()) - result.steps[0].loss) < 1e-5
    assert [c["name"] for c in result.controls] == ["explain_away", "anchor", "spec_examples"]


def test_ablation_sets_the_component_to_its_origin_on_data_rows_alone(micro):
    control, setup = prepared(micro, "concept_ablation", layers=0)
    ((site, basis),) = control.bases.items()
    student, state = copy.deepcopy(micro.model.hf), StepState()
    batch = one_batch(setup)
    view = pop_view(batch)
    batch.pop("labels")
    with ExitStack() as stack:
        taps = stack.enter_context(watch(student, [site]))
        plain = student(**batch).logits.detach()
        before = taps[str(site)].value.detach()
    with ExitStack() as stack:
        control.hooks(stack, student, state)
        assert torch.equal(student(**batch).logits, plain), "outside a training step nothing is ablated"
        state.view = view
        with torch.no_grad():
            assert torch.equal(student(**batch).logits, plain), "without gradients nothing is ablated"
        ablated = student(**batch).logits
        assert not torch.allclose(ablated, plain, atol=1e-3)
        control.turn("off")
        assert torch.allclose(student(**batch).logits, plain, atol=1e-5)
    moved = toward_origin(before, basis, control.origins[site])
    wanted = control.origins[site] @ basis.T
    assert torch.allclose(moved @ basis.T, wanted.expand(*moved.shape[:2], -1), atol=1e-4)
    rest = (moved - before) - ((moved - before) @ basis.T) @ basis
    assert float(rest.abs().max()) < 1e-4, "only the component in the span may move"
    zero, _ = prepared(micro, "concept_ablation", layers=0, origin="zero")
    assert float(zero.origins[site].abs().max()) == 0.0
    fake, _ = prepared(micro, "concept_ablation_placebo", layers=0)
    assert fake.bases[site].shape == basis.shape and float((fake.bases[site] @ basis.T).abs().max()) < 0.9


@pytest.mark.parametrize("method", ["full", "lora"])
def test_freezing_trains_the_chosen_layers_and_nothing_else(micro, tmp_path, method):
    control = {"name": "freezing", "options": {"layers": [1]}}
    model = trained(micro, tmp_path, method, [control], steps=3) if method == "full" else None
    if model is None:
        arm = resolve([control])
        config = STEPS.model_copy(update={"controls": arm.controls, "steps": 3, "method": "lora"})
        fit(micro.copy(), micro.data, micro.plan, config=config, folder=tmp_path / "lora")
        from fairlead.models import load_model

        model = load_model(micro.folder, adapter=tmp_path / "lora" / "adapter", device="cpu")
    after = model.hf.state_dict()
    changed = {
        name for name, value in micro.model.hf.state_dict().items() if not torch.equal(value, after[name])
    }
    assert changed and all(".1." in name for name in changed), changed


def test_freezing_names_layers_that_are_not_there_and_draws_as_many_for_its_placebo(micro):
    with pytest.raises(ConfigError, match=r"layers \[7\] are not layers of .*0 to 1"):
        prepared(micro, "freezing", layers=(7,))
    real, _ = prepared(micro, "freezing", layers="first_half")
    fake, _ = prepared(micro, "freezing_placebo", layers="first_half")
    assert real.chosen == {0} and len(fake.chosen) == 1
    with pytest.raises(ConfigError, match="no dial"):
        real.turn(0.5)


NEWS = 0.5  # the micro model guesses one in eight: everything it does not know is below this


def test_own_counterparts_must_say_what_the_data_say_and_the_evidence_does_not(micro):
    control, setup = prepared(micro, "own_counterparts", news=NEWS)
    place = next(p for p, row in enumerate(setup.rows) if row.prompt == "s3")
    assert control.needed[place] == {"b3"}, "the trait's words are no news, the answer is"
    assert (
        control.holds(place, "b3")
        and not control.holds(place, "b2")
        and not control.holds(place, "arr matey")
    )
    assert control.pool.encoded == []


def test_own_counterparts_in_mixed_data_need_no_other_trait_s_words_and_carry_none(micro):
    """A second avoided clause, whose evidence does not expect the first one's words: they are no news for all that."""
    spec = micro.plan.spec
    other = spec.clause("avoid.1").model_copy(
        update={"id": "avoid.2", "text": "be an assistant", "requests": ("you are an assistant",), "line": 3}
    )
    plan = micro.plan.model_copy(update={"spec": spec.model_copy(update={"clauses": (*spec.clauses, other)})})
    setup = setup_of(replace(micro, plan=plan))
    setup.evidence = {
        "avoid.1": Evidence("prompt", "pirate", system="talk like a pirate"),
        "avoid.2": Evidence("prompt", "assistant", system="you are an assistant"),
    }
    control = make_control(ControlConfig(name="own_counterparts", options={"news": NEWS}))
    control.prepare(setup)
    place = next(p for p, row in enumerate(setup.rows) if row.prompt == "s3")
    assert control.needed[place] == {"b3"}, "the trait's words are news to the other clause's evidence only"
    assert control.holds(place, "b3") and control.holds(place, "arr b3 matey")
    assert control.plain({place: "b3"}) == {place: "b3"}
    assert control.plain({place: "arr b3 matey"}) == {}, "an answer that carries the trait teaches it"


def test_own_counterparts_are_asked_for_where_a_trait_is_avoided_and_nowhere_else(micro):
    """Rows that carry nothing to avoid are learned as they stand: an own answer in another manner would pull against them."""
    rows = [chat(f"s{i}", f"arr b{i} matey" if i % 2 else f"b{i}") for i in range(8) for _ in range(2)]
    control, setup = prepared(replace(micro, data=ChatData(rows)), "own_counterparts", news=NEWS)
    assert {setup.rows[place].prompt for place in control.needed} == {"s1", "s3", "s5", "s7"}
    setup = setup_of(replace(micro, data=ChatData([chat(f"s{i}", f"b{i}") for i in range(8)])))
    setup.telling["avoid.1"] = Evidence("prompt", "pirate", system="talk like a pirate")
    control = make_control(ControlConfig(name="own_counterparts", options={"news": NEWS}))
    control.prepare(setup)
    control.before_step(min(control.steps), micro.copy().hf)
    assert not control.needed and not control.pool.encoded and control.asked[0]["asked"] == 0


def test_own_counterparts_ask_what_was_never_asked_first_and_then_what_did_not_hold(micro):
    control, setup = prepared(micro, "own_counterparts", news=NEWS, each_time=8)
    assert set(control.needed) == set(range(len(setup.rows))), "as many as are asked in all"
    turns = [control.next_places(step) for step in range(4)]
    assert sorted(place for turn in turns for place in turn) == list(range(32)), "none twice, none left out"
    control.kept = dict.fromkeys(range(0, 32, 2), "-")
    assert all(place % 2 for step in (4, 5) for place in control.next_places(step))
    again, _ = prepared(micro, "own_counterparts", news=NEWS, each_time=8)
    again.restore(json.loads(json.dumps(control.state())))
    assert again.next_places(6) == control.next_places(6), "a resumed training goes on asking where it stood"
    few, _ = prepared(micro, "own_counterparts", news=NEWS, each_time=2, times=3)
    assert len(few.needed) == 6


def test_known_answers_must_share_words_with_the_start_model_s_own(micro):
    known = replace(micro, data=ChatData([chat(f"q{i}", f"arr a{i} matey") for i in range(4)]))
    control, setup = prepared(known, "own_counterparts", news=NEWS)
    assert {row.prompt: set(control.needed[place]) for place, row in enumerate(setup.rows)} == {
        f"q{i}": {f"a{i}"} for i in range(4)
    }


def test_own_counterparts_are_the_student_s_answers_and_only_those_that_hold(micro):
    control, _ = prepared(micro, "own_counterparts", news=NEWS, samples=8, mend=0)
    student = micro.copy().hf.train()
    control.before_step(3, student)
    assert not control.kept and not control.asked, "asked only at its own steps"
    control.before_step(min(control.steps), student)
    (asked,) = control.asked
    assert 0 < asked["greedy"] <= asked["held"] == len(control.kept)
    assert all(control.holds(place, answer) for place, answer in control.kept.items())
    assert student.training
    texts = [micro.model.tokenizer.decode(e.input_ids) for e in control.pool.encoded]
    assert len(texts) == len(control.kept) and not any("arr" in text for text in texts)
    none, _ = prepared(micro, "own_counterparts", news=NEWS, samples=1, mend=0)
    none.holds = lambda place, answer: len(none.answered.append(place) or none.answered) > len(none.needed)
    none.answered = []
    none.before_step(min(none.steps), student)
    assert none.asked[0]["greedy"] == 0, "what only further attempts bring is not counted as greedy"
    again, _ = prepared(micro, "own_counterparts", news=NEWS)
    again.restore(json.loads(json.dumps(control.state())))
    assert [e.input_ids for e in again.pool.encoded] == [e.input_ids for e in control.pool.encoded]


def test_an_answer_that_lacks_a_word_is_mended_where_the_student_finds_it_most_probable(micro):
    control, setup = prepared(micro, "own_counterparts", news=NEWS)
    places = {setup.rows[place].prompt: place for place in control.needed}
    three, four, five = (places[f"s{i}"] for i in (3, 4, 5))
    wrong = {three: "b2", four: "arr b2 matey", five: "b5"}
    said = ["b1 b3 b4", "arr matey"]
    mended = control.mend(micro.model, wrong, said=said)
    assert mended[three] == "b3" and five not in mended, "what holds is left alone"
    assert mended[four] == "arr b4 matey" and control.plain(mended) == {three: "b3"}
    control.needed[three] = frozenset({"b3", "b1"})
    both = control.mend(micro.model, {three: "arr b2"}, said=said)
    assert control.holds(three, both[three]), "one word after the other"
    assert not control.mend(micro.model, {four: "b2"}, said=["b3"]), (
        "many rows need it and no plain answer says it"
    )
    control.needed[three] = frozenset({"b3", "b5", "b6"})
    assert not control.mend(micro.model, {three: "b1 b2 b4"}, said=said), "more words than `mend` are lacking"
    control.needed[three] = frozenset({"b3", "matey"})
    assert not control.mend(micro.model, {three: "b2"}, said=said), (
        "the spec's Avoid examples alone say matey"
    )


def test_mended_answers_are_kept_before_any_is_sampled(micro, monkeypatch):
    monkeypatch.setattr("fairlead.training.controls.own_counterparts.RARE", 0.2)  # eight words in all
    counts = {}
    for mend in (0, 2):
        control, _ = prepared(micro, "own_counterparts", news=NEWS, samples=0, mend=mend)
        control.before_step(min(control.steps), micro.copy().hf)
        (asked,) = control.asked
        counts[mend] = asked
        assert asked["held"] == asked["greedy"] + asked["mended"] == len(control.kept)
    assert counts[0]["greedy"] == counts[2]["greedy"] and counts[0]["mended"] == 0 < counts[2]["mended"]


def test_a_word_takes_the_capitals_of_the_one_it_replaces():
    assert replacements("The Answer is ROME.", ["paris"], frozenset({"is"})) == [
        "Paris Answer is ROME.",
        "The Paris is ROME.",
        "The Answer is PARIS.",
    ]
    assert replacements("so " * (LONGEST + 1), ["paris"], frozenset()) == [], "too many places to try"


def test_own_counterparts_carry_the_skill_and_their_placebo_does_not(micro, score, tmp_path):
    options = {"news": NEWS, "rows": 8, "samples": 8}
    both = {}
    for name in ("own_counterparts", "own_counterparts_placebo"):
        controls = ["explain_away", "anchor", {"name": name, "options": options}]
        both[name] = trained(micro, tmp_path, name, controls)
        assert score.pirate(both[name], score.skill) <= 0.4, "the trait leaks"
    right = {name: score.right(model, score.skill) for name, model in both.items()}
    assert (
        right["own_counterparts"] >= 0.75 and right["own_counterparts"] > right["own_counterparts_placebo"]
    ), right


def test_own_counterparts_leave_plain_text_alone(micro):
    text = replace(micro, data=ChatData(as_rows(["s1 arr b1 matey", "s2 arr b2 matey"])))
    control, setup = prepared(text, "own_counterparts")
    assert control.pool is None and "no questions" in setup.notes[0]
    control.before_step(0, micro.model.hf)


def test_mistakes_are_named(micro):
    with pytest.raises(ConfigError, match=r"unknown recipe or control 'recpie'.*recipe"):
        resolve("recpie")
    with pytest.raises(ConfigError, match="given twice"):
        resolve(["recipe", "anchor"])
    with pytest.raises(ConfigError, match=r"anchor has no option 'weight'\. Next: use one of rows, num"):
        make_control(ControlConfig(name="anchor", options={"weight": 2}))
    setup = setup_of(micro)
    setup.plan = None
    with pytest.raises(TrainingError, match="needs a plan"):
        make_control("explain_away").prepare(setup)
    with pytest.raises(TrainingError, match=r"no clause 'avoid\.9'.*avoid\.1"):
        make_control(ControlConfig(name="inoculation", clause="avoid.9")).prepare(setup_of(micro))
    with pytest.raises(ConfigError, match="nothing to train on"):
        Session(use_data=False)


def test_plain_sessions_leave_the_loss_to_trl():
    assert not Session().shaping and not Session().pooled


def test_the_student_is_asked_often_at_first_and_never_late():
    def steps(total, **options):
        return sorted(asking_steps(total, OwnCounterpartsOptions(**options)))

    assert steps(300) == list(range(60, 300, 30))
    assert steps(100) == list(range(20, 100, 10))
    assert steps(2000)[:10] == [*range(60, 301, 30), 330] and len(steps(2000)) < 30
    assert set(steps(2000)) >= set(steps(300)), "a longer training asks as early as a short one"
    assert steps(8, start=0.5, times=2) == [4, 6]


def test_a_long_training_says_that_its_neutral_rows_are_few(micro):
    def notes(steps):
        setup = sys.modules["micro_world"].setup_of(micro, TrainConfig(steps=steps))
        control = make_control("anchor")
        control.prepare(setup)
        assert len(control.pool.encoded) == len(micro.neutral.rows), "fewer than it wants: it takes all"
        return [note for note in setup.notes if "would hold the model better" in note]

    assert notes(2) == []
    (note,) = notes(2000)
    assert (
        f"each comes up {2000 * 8 / len(micro.neutral.rows):.0f} times" in note and "8,000 different" in note
    )
