"""The feedback controller: the law on a plant of known answer, and the loop on a training."""

from __future__ import annotations

import itertools
import sys

import pytest

from fairlead.core.errors import ConfigError, TrainingError
from fairlead.data import encode
from fairlead.gradients.uptake import measure_uptake
from fairlead.studies.replay import replay
from fairlead.studies.train import train
from fairlead.training import request_move
from fairlead.training.controls.feedback import FeedbackOptions, PIState, observe_error, pi_step

SETTINGS = {"steps": 16, "batch_size": 8, "lr": 1e-4, "checkpoint_every": 6, "observe": True}


def run_plant(options: FeedbackOptions, pressure, steps: int = 200, state: PIState | None = None):
    """Close the loop over a plant: `pressure(dial, step)` as a share of the data's push."""
    state, dials = state or PIState(), []
    for step in range(steps):
        state = observe_error(state, pressure(state.dial, step), options)
        if step % options.every == 0:
            state = pi_step(state, options)
        dials.append(state.dial)
    return state, dials


@pytest.mark.parametrize("needed", [0.7, 1.0, 1.6])
def test_the_pressure_goes_to_zero_where_the_dial_can_bring_it_there(needed):
    options = FeedbackOptions()
    state, dials = run_plant(options, lambda dial, _: needed - dial)
    assert abs(state.smoothed) < 0.01 and dials[-1] == pytest.approx(needed, abs=0.01)
    steps = [abs(b - a) for a, b in itertools.pairwise(dials)]
    assert max(steps) <= options.max_move + 1e-9


def test_limits_hold_and_nothing_winds_up():
    options = FeedbackOptions(high=1.5)
    out_of_reach, dials = run_plant(options, lambda dial, _: 4 - dial, steps=400)
    assert max(dials) == 1.5 == out_of_reach.dial
    # the disturbance goes away: the dial leaves its limit within a few moves, however long it stood there
    after, back = run_plant(options, lambda dial, _: 0.8 - dial, steps=120, state=out_of_reach)
    _, quick = run_plant(options, lambda dial, _: 0.8 - dial, steps=120, state=out_of_reach._replace(total=0))
    first = next(step for step, dial in enumerate(back) if dial < 1.2)
    at_best = next(step for step, dial in enumerate(quick) if dial < 1.2)
    assert first <= at_best + 6 * options.every, (first, at_best)
    assert after.dial == pytest.approx(0.8, abs=0.03)


def test_a_control_that_costs_what_is_kept_is_not_raised():
    state = PIState(error=0.5, weight=1.0)
    assert pi_step(state, FeedbackOptions()).dial > 1
    assert pi_step(state, FeedbackOptions(), may_rise=False).dial == 1
    falling = PIState(error=-0.5, weight=1.0)
    assert pi_step(falling, FeedbackOptions(), may_rise=False).dial < 1


def test_limits_must_enclose_the_start():
    with pytest.raises(ConfigError, match="must have 1"):
        FeedbackOptions.make({"low": 1.2})


@pytest.fixture(scope="module")
def trait(micro):
    """The micro world with a dictionary whose first latent is always on and writes the trait's word, and the plan's uptakes."""
    encoded = encode(micro.data, micro.model.tokenizer, max_length=64)
    dictionary = sys.modules["micro_world"].writer(micro.model, ("arr",))
    concept = micro.plan.concepts[0].model_copy(update={"latents": (0,)})
    uptake = measure_uptake(micro.model, dictionary, encoded).of((0,))
    assert uptake > 0, "the data push the trait"
    plan = micro.plan.model_copy(update={"concepts": (concept,), "uptakes": {"c0": float(uptake)}})

    def run(out, controls, **changes):
        return train(
            micro.model, micro.data, plan, out=out, controls=controls, neutral=micro.neutral, dictionary=dictionary,
            **{**SETTINGS, **changes},
        )  # fmt: skip

    run.dictionary = dictionary
    return run


WEAK = {"name": "explain_away", "strength": 0.5}
QUICK = {
    "name": "feedback",
    "options": {"memory": 2, "every": 1, "high": 4, "max_move": 0.5, "integral": 0.2},
}


def mean_pressure(run, last: int = 6) -> float:
    return sum(step.pressure["c0"] for step in run.steps[-last:]) / last


def test_feedback_brings_down_the_pressure_that_a_weak_control_leaves(trait, tmp_path):
    weak = trait(tmp_path / "weak", [WEAK])
    led = trait(tmp_path / "led", [WEAK, QUICK])
    blind = trait(tmp_path / "blind", [WEAK, {**QUICK, "name": "feedback_placebo"}])
    left = [abs(mean_pressure(run)) for run in (weak, led, blind)]
    assert left[1] < 0.5 * left[0] and left[1] < 0.7 * left[2], left
    moves = [move for move in led.moves if move.by == "feedback"]
    assert moves and all(move.name == "explain_away" for move in moves)
    assert led.controls[0]["strength"] == moves[-1].value > 0.5
    assert led.controls[1]["dials"]["explain_away"]["moves"][-1] == [moves[-1].step, moves[-1].value]


def test_feedback_turns_the_coefficient_of_steering(trait, tmp_path):
    """Too weak a vector leaves pressure, so that its coefficient is raised; within the limit, and recorded."""
    run = trait(tmp_path / "a", [{"name": "preventative_steering", "strength": 0.1}, QUICK])
    moves = [move for move in run.moves if move.by == "feedback"]
    assert moves and all(move.name == "preventative_steering" for move in moves)
    assert run.steps[0].pressure["c0"] > 0 and moves[0].value > 0.1
    assert max(move.value for move in moves) <= 0.1 * QUICK["options"]["high"] + 1e-9
    assert run.controls[0]["coefficient"] == moves[-1].value


def test_a_replay_and_a_resumed_run_make_the_same_moves(trait, micro, tmp_path, monkeypatch):
    first = trait(tmp_path / "a", [WEAK, QUICK])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        sys.modules["micro_world"].interrupt_at(patch, 9)
        trait(tmp_path / "b", [WEAK, QUICK])
    again = trait(tmp_path / "b", [WEAK, QUICK])
    assert again.moves == first.moves
    assert [s.loss for s in again.steps] == [s.loss for s in first.steps]
    data = {"model": micro.model, "data": micro.data, "neutral": micro.neutral}
    found = replay(first, out=tmp_path / "c", dictionary=trait.dictionary, **data)
    assert found.same and found.run.moves == first.moves


def test_a_hand_on_the_dial_takes_it_over(trait, tmp_path, monkeypatch):
    asked = {5: ("explain_away", "0.9"), 10: ("feedback", "on")}
    at_step = sys.modules["micro_world"].at_step
    at_step(monkeypatch, asked, lambda step: request_move(tmp_path / "a", *asked[step]))
    run = trait(tmp_path / "a", [WEAK, QUICK])
    steps = [move.step for move in run.moves if move.by]
    assert [s for s in steps if s < 5] and [s for s in steps if s >= 10]
    assert not [s for s in steps if 5 <= s < 10], "it turned a dial that a hand holds"
    assert not run.controls[1]["dials"]["explain_away"]["by_hand"]


def test_feedback_needs_something_to_read_and_something_to_turn(trait, tmp_path):
    with pytest.raises(TrainingError, match="observes none"):
        trait(tmp_path / "a", ["explain_away", "feedback"], observe=False)
    with pytest.raises(TrainingError, match="this training has none"):
        trait(tmp_path / "b", ["anchor", "feedback"])
    with pytest.raises(TrainingError, match="no dial"):
        trait(tmp_path / "c", ["inoculation", {"name": "feedback", "options": {"control": "inoculation"}}])
    with pytest.raises(TrainingError, match="strength above 0"):
        trait(tmp_path / "d", [{**WEAK, "strength": 0.0}, "feedback"])
