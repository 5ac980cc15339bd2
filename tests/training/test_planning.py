"""The plan's own choice of controls: calibration against a curve of known answer, and the choices on the micro world."""

from __future__ import annotations

import sys

import pytest
import torch

from fairlead.core.errors import ConfigError, TrainingError
from fairlead.core.records import Plan
from fairlead.data import ChatData, Message, Row, encode
from fairlead.gradients.uptake import measure_uptake
from fairlead.studies.plan import plan_controls
from fairlead.studies.train import train
from fairlead.training import resolve
from fairlead.training.batching import Composer, StepState, pop_view
from fairlead.training.calibration import Point, pressure_curve, zero_crossing
from fairlead.training.config import ControlConfig, TrainConfig
from fairlead.training.controls import make_control
from fairlead.training.evidence import EvidenceChoice
from fairlead.training.evidence_search import EvidenceOptions, evidence_gains, make_evidence
from fairlead.training.fit import prepare
from fairlead.training.logits import select_logits
from fairlead.training.observe import PressureObserver
from fairlead.training.planning import without_crossing


@pytest.fixture(scope="module")
def world(micro):
    dictionary = sys.modules["micro_world"].writer(micro.model, ("arr",))
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    concept = micro.plan.concepts[0].model_copy(update={"latents": (0,)})
    uptake = float(measure_uptake(micro.model, dictionary, encoded).of((0,)))
    plan = micro.plan.model_copy(update={"concepts": (concept,), "uptakes": {"c0": uptake}})
    return dictionary, plan, uptake


def test_the_crossing_is_where_the_line_between_two_points_meets_zero():
    points = [Point(0, 1, 1), Point(0.5, 0.3, 1), Point(1, -0.1, 1), Point(1.5, -0.4, 1)]
    assert zero_crossing(points) == pytest.approx(0.875)
    assert zero_crossing(points[:2]) is None


def test_a_pressure_curve_begins_at_the_uptake_of_the_preview(micro, world):
    """Off, the control changes nothing: the pressure is what `measure_uptake` reads, up to weighting rows instead of tokens."""
    dictionary, plan, uptake = world
    config = TrainConfig()
    setup = prepare(micro.model, micro.data, plan, config=config, dictionary=dictionary)
    control = make_control(ControlConfig(name="explain_away", clause="avoid.1"))
    control.prepare(setup)
    observer = PressureObserver(dictionary, plan.concepts)
    weights = {name: p.clone() for name, p in micro.model.hf.named_parameters()}
    points = pressure_curve(setup, control, observer)
    assert points[0].avoided == 1 and [point.dial for point in points] == [0, 0.5, 1, 1.5]
    assert points[2].avoided < 0.5 * points[0].avoided, "explain-away takes the pressure off"
    assert control.dial == 1.0, "the dial stands where it stood"
    for name, parameter in micro.model.hf.named_parameters():
        assert torch.equal(parameter, weights[name]) and parameter.grad is None
    with pytest.raises(TrainingError, match="start with 0"):
        pressure_curve(setup, control, observer, dials=(0.5, 1.0))
    assert uptake > 0


def test_the_plan_chooses_explain_away_where_evidence_elicits_the_trait(micro, world, tmp_path):
    dictionary, plan, _ = world
    planned = plan_controls(
        micro.model, micro.data, plan, neutral=micro.neutral, dictionary=dictionary, out=tmp_path / "plan"
    )
    chosen = {control.name: control for control in planned.controls}
    assert set(chosen) == {"explain_away", "anchor", "own_counterparts", "feedback"}
    explain = chosen["explain_away"]
    assert explain.clause == "avoid.1" and 0.5 <= explain.strength <= 1.5
    assert "nats per token" in explain.reason and "strength" in explain.reason
    assert explain.measured["avoided@1"] < explain.measured["avoided@0"] == 1
    kept = Plan.model_validate_json((tmp_path / "plan" / "plan.json").read_text())
    assert kept == planned
    run = train(
        micro.model, micro.data, kept, out=tmp_path / "run", controls="auto", neutral=micro.neutral,
        dictionary=dictionary, steps=4, batch_size=8,
    )  # fmt: skip
    assert run.arm == "auto"
    assert [control["name"] for control in run.controls] == [control.name for control in planned.controls]
    assert run.controls[0]["clauses"]["avoid.1"]["chosen"]["kind"] == "prompt"


def test_what_the_data_do_not_show_is_said_and_left_alone(micro, world):
    """Clean data: the evidence for the trait accounts for nothing, and nothing pushes its concept."""
    dictionary, plan, _ = world
    rows = [
        Row(messages=(*row.prompt_messages, Message("assistant", row.response.split()[1])))
        for row in micro.data.rows
    ]
    planned = plan_controls(
        micro.model, ChatData(rows, source="clean"), plan, neutral=micro.neutral, dictionary=dictionary
    )
    assert [control.name for control in planned.controls] == ["anchor", "spec_examples"]
    assert any("avoid.1" in note and "examples or requests" in note for note in planned.notes)


def test_auto_needs_a_plan_with_controls(micro):
    with pytest.raises(ConfigError, match="fairlead plan"):
        resolve("auto", plan=micro.plan)


@pytest.mark.parametrize("packing", [False, True])
def test_pressure_is_read_in_the_rows_that_the_dial_reaches(micro, world, packing):
    """Oracle: each row as a batch of its own, weighted by its share of the tokens."""
    dictionary, plan, _ = world
    data = ChatData([*micro.data.rows[:5], *micro.neutral.rows[:4]])
    setup = prepare(micro.model, data, plan, config=TrainConfig(), dictionary=dictionary)
    control = make_control(ControlConfig(name="explain_away", clause="avoid.1"))
    control.prepare(setup)
    compose = Composer(setup.encoded, pad_id=setup.pad_id, packing=packing)

    def read(places):
        observer = PressureObserver(dictionary, plan.concepts)
        observer.reaches[control.key] = control.reach
        inputs = compose([{"place": place} for place in places])
        state = StepState(last=pop_view(inputs))
        inputs.pop("labels")
        with observer.attached(micro.model.hf), torch.enable_grad():
            logits = select_logits(micro.model.hf, {**inputs, "use_cache": False}, state.last.predict_mask)
            torch.nn.functional.cross_entropy(logits, state.last.targets).backward()
            observer.read(state, 0)
        micro.model.hf.zero_grad(set_to_none=True)
        return observer.latest["c0"], observer.latest_reached[control.key]["c0"]

    places = [6, 1, 8, 0, 3, 5, 4]
    tokens = {place: setup.encoded[place].num_loss_tokens for place in places}
    alone = {place: read([place])[0] * tokens[place] / sum(tokens.values()) for place in places}
    total, reached = read(places)
    assert total == pytest.approx(sum(alone.values()), rel=1e-3, abs=1e-6)
    assert reached == pytest.approx(sum(alone[place] for place in places if place < 5), rel=1e-3, abs=1e-6)
    assert abs(reached - total) > 1e-4


def test_a_process_that_read_nothing_asks_as_often_as_the_others(micro, world, monkeypatch):
    dictionary, plan, _ = world
    observer, asked = PressureObserver(dictionary, plan.concepts), []
    observer.reaches = {"explain_away:avoid.1": lambda view: None, "explain_away:avoid.2": lambda view: None}
    monkeypatch.setattr("fairlead.training.observe.num_processes", lambda: 2)
    monkeypatch.setattr(
        "fairlead.training.observe.mean", lambda found: asked.append(dict(found)) or {"c0": 0.5}
    )
    observer.bring_together()
    assert asked == [{}] * 4 and set(observer.latest_reached) == set(observer.reaches)


def test_where_no_strength_takes_all_pressure_off_the_highest_must_be_worth_it():
    flat = [Point(0, 1, 1), Point(0.5, 0.9, 1), Point(1, 0.83, 1), Point(1.5, 0.79, 1)]
    falling = [Point(0, 1, 1), Point(0.5, 0.8, 1), Point(1, 0.6, 1), Point(1.5, 0.4, 1)]
    assert without_crossing(flat, 1.0) == 1.0 and without_crossing(falling, 1.0) == 1.5


def test_the_evidence_of_a_plan_is_the_evidence_of_the_training(micro, world, tmp_path):
    """Not the best of another sample: another prompt in the plan is used although the requests gain more."""
    dictionary, plan, _ = world
    planned = plan_controls(micro.model, micro.data, plan, neutral=micro.neutral, dictionary=dictionary)
    explain = planned.controls[0]
    assert explain.options["evidence"] == {"kind": "prompt", "prompt": "talk like a pirate"}
    other = explain.model_copy(update={"options": {"evidence": {"kind": "prompt", "prompt": "be a pirate"}}})
    edited = planned.model_copy(update={"controls": (other, *planned.controls[1:])})
    run = train(
        micro.model, micro.data, edited, out=tmp_path / "run", controls="auto", neutral=micro.neutral,
        dictionary=dictionary, steps=2, batch_size=8,
    )  # fmt: skip
    found = run.controls[0]["clauses"]["avoid.1"]
    assert found["chosen"]["label"] == "be a pirate" and len(found["candidates"]) == 1
    two = micro.plan.spec.clause("avoid.1").model_copy(update={"id": "avoid.2"})
    spec = planned.spec.model_copy(update={"clauses": (*planned.spec.clauses, two)})
    decisions = (*planned.decisions, planned.decisions[0].model_copy(update={"clause": "avoid.2"}))
    both = planned.model_copy(update={"spec": spec, "decisions": decisions})
    control = make_control(ControlConfig(name="explain_away", options=explain.options))
    with pytest.raises(ConfigError, match=r"evidence serves one clause, and avoid.1, avoid.2"):
        control.prepare(prepare(micro.model, micro.data, both, config=TrainConfig()))


def test_every_kind_of_evidence_is_made_again_from_its_choice(micro):
    setup = prepare(micro.model, micro.data, micro.plan, config=TrainConfig(seed=3))
    clause = micro.plan.spec.clause("avoid.1")
    options = EvidenceOptions(
        sources=("prompt", "steering", "readout", "expert"), coefficients=(0.5, 2.0), expert_steps=2
    )
    gains = evidence_gains(setup, clause, options)
    assert {gain.evidence.kind for gain in gains} == {"prompt", "steering", "readout", "expert"}
    for gain in gains:
        stored = gain.evidence.choice.model_dump(mode="json", exclude_none=True)
        again = make_evidence(setup, clause, EvidenceChoice.make(stored))
        assert again.identity() == gain.evidence.identity(), gain.evidence.label
    with pytest.raises(ConfigError, match="kind 'steering' needs layers and a coefficient"):
        make_evidence(setup, clause, EvidenceChoice(kind="steering"))


def test_the_placebo_of_auto_is_the_plan_with_each_control_as_its_placebo(micro, world, tmp_path):
    """Two clauses: same clauses, strengths, dials and rows; the push that feedback scales by is the plan's."""
    dictionary, plan, _ = world
    planned = plan_controls(micro.model, micro.data, plan, neutral=micro.neutral, dictionary=dictionary)
    clause = planned.spec.clause("avoid.1")
    second = clause.model_copy(update={"id": "avoid.2", "requests": ("answer the question",)})
    explain = planned.controls[0]
    also = explain.model_copy(
        update={
            "clause": "avoid.2",
            "options": {"evidence": {"kind": "prompt", "prompt": "answer the question"}},
        }
    )
    decisions = (*planned.decisions, planned.decisions[0].model_copy(update={"clause": "avoid.2"}))
    update = {
        "spec": planned.spec.model_copy(update={"clauses": (*planned.spec.clauses, second)}),
        "controls": (explain, also, *planned.controls[1:]),
        "decisions": decisions,
    }
    planned = planned.model_copy(update=update)
    data = ChatData([*micro.data.rows[:8], *micro.neutral.rows])
    real, placebo = (resolve(name, plan=planned) for name in ("auto", "auto_placebo"))
    names = [config.name for config in placebo.controls]
    assert names == [
        "explain_away_placebo",
        "explain_away_placebo",
        "anchor",
        "own_counterparts_placebo",
        "feedback_placebo",
    ]
    for one, other in zip(real.controls, placebo.controls, strict=True):
        assert one.model_copy(update={"name": other.name}) == other
    runs = {
        arm: train(
            micro.model, data, planned, out=tmp_path / arm, controls=arm, neutral=micro.neutral,
            dictionary=dictionary, steps=2, batch_size=8,
        )
        for arm in ("auto", "auto_placebo")
    }  # fmt: skip
    for place in (0, 1):
        one, other = (next(iter(run.controls[place]["clauses"].values())) for run in runs.values())
        assert one["rows"] == other["rows"] and one["chosen"] != other["chosen"]
    scales = []
    for arm in (real, placebo):
        setup = prepare(micro.model, data, planned, config=TrainConfig(), dictionary=dictionary)
        setup.controls = [make_control(config) for config in arm.controls]
        setup.observer = PressureObserver(dictionary, planned.concepts)
        feedback = setup.controls[-1]
        feedback.prepare(setup)
        scales.append([(loop.control.config.clause, loop.scale) for loop in feedback.loops])
    assert scales[0] == scales[1] and scales[0][0][1] == explain.measured["push"]
