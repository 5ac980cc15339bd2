"""Which controls serve a plan: chosen per clause by measured gain and a short calibration, each choice with its reason.

For every avoided clause, on a sample of the data:

1. explain-away, where some evidence elicits the trait (gain in nats per token above `MIN_GAIN`); the strength is where the
   pressure on the clause's concepts crosses zero (`calibration`), theory's 1 where that leaves next to none, or, where it
   does not cross, the highest if that takes off clearly more than 1. The evidence is part of the plan: the training uses it and
   compares nothing again, as the strength was measured with it;
2. else preventative steering, where the clause has examples and some coefficient takes at least half of the pressure off;
3. else nothing that acts on the clause can be vouched for, and the plan says so.

For the training as a whole: the anchor; the spec's Keep examples where it has some; own counterparts, on chats with a trait
that is explained away; feedback where pressure can be observed and a dial relieves it.
"""

from __future__ import annotations

from fairlead.core.progress import say
from fairlead.core.records import Clause, PlannedControl
from fairlead.training.calibration import Point, pressure_curve, zero_crossing
from fairlead.training.config import ControlConfig
from fairlead.training.controls import make_control
from fairlead.training.controls.base import Control
from fairlead.training.controls.explain_away import ExplainAway
from fairlead.training.observe import PressureObserver
from fairlead.training.setup import Setup

LOW, HIGH = 0.5, 1.5  # limits of a starting strength, in units of the control's default
CLOSE = 0.05  # share of the pressure left, either way, at which the default need not be departed from
WORTH = 0.1  # share of the pressure that the highest strength must take off beyond the default's, to be taken
STEERING_DIALS = (0.0, 0.5, 1.0, 2.0, 4.0)
HALF = 0.5


def plan_controls(setup: Setup) -> tuple[PlannedControl, ...]:
    """The controls for a training on data like the setup's.

    Args:
        setup: A sample of the data, with plan and, for the calibration, dictionary.

    Raises:
        TrainingError: There is no plan, or it avoids nothing.
    """
    chosen: list[PlannedControl] = []
    for clause in setup.avoided():
        found = _for_clause(setup, clause)
        if found is None:
            note = (
                f"nothing measured here relieves clause {clause.id} ('{clause.text}'): no evidence elicits it on the data, and "
                "steering does not take its pressure off. Next: give it more examples or requests."
            )
            setup.notes.append(note)
            say(note)
        else:
            chosen.append(found)
            say(f"plan: {found.name} for {clause.id}: {found.reason}")
    return (*chosen, *_for_all(setup, chosen))


def _for_clause(setup: Setup, clause: Clause) -> PlannedControl | None:
    explain = ExplainAway(ControlConfig(name="explain_away", clause=clause.id))
    explain.prepare(setup)
    found = explain.report()["clauses"][clause.id]
    if "chosen" in found:
        best = max(found["candidates"], key=lambda record: record["gain"])
        says = (
            f"{best['kind']} '{best['label']}' accounts for {best['gain']:.2f} nats per token "
            f"on {found['rows']} of {found['of']} sampled rows"
        )
        strength, why, measured = _strength(setup, clause, explain)
        choice = explain.choices[clause.id]
        assert choice is not None
        return PlannedControl(
            name="explain_away",
            clause=clause.id,
            strength=strength,
            options={"evidence": choice.model_dump(mode="json", exclude_none=True)},
            reason=f"{says}; {why}",
            measured={"gain": best["gain"], "share": found["rows"] / found["of"], **measured},
        )
    observer = observer_of(setup, clause)
    if observer is None or not clause.examples:
        return None
    steering = make_control(ControlConfig(name="preventative_steering", clause=clause.id))
    steering.prepare(setup)
    points = pressure_curve(setup, steering, observer, dials=STEERING_DIALS)
    best_point = min(points, key=lambda point: abs(point.avoided), default=None)
    if best_point is None or abs(best_point.avoided) > HALF:
        return None
    return PlannedControl(
        name="preventative_steering",
        clause=clause.id,
        strength=best_point.dial,
        reason=f"no evidence elicits it; at coefficient {best_point.dial:g} {best_point.avoided:.0%} of the pressure is left",
        measured=_record([best_point]),
    )


def _strength(setup: Setup, clause: Clause, control: Control) -> tuple[float, str, dict[str, float]]:
    """Starting strength, the reason, what was measured."""
    assert control.start is not None
    observer = observer_of(setup, clause)
    if observer is None:
        return control.start, f"strength {control.start:g}, as theory has it: no concept to calibrate by", {}
    points = pressure_curve(setup, control, observer)
    if not points:
        return control.start, f"strength {control.start:g}: the data do not push its concepts", {}
    crossing = zero_crossing(points)
    if abs(_left_at(points, control.start)) <= CLOSE:
        wanted = control.start
    else:
        wanted = without_crossing(points, control.start) if crossing is None else crossing
    strength = round(min(max(wanted, LOW * control.start), HIGH * control.start), 2)
    curve = ", ".join(f"{point.avoided:.0%} at {point.dial:g}" for point in points)
    where = "crosses zero" if crossing is not None else "does not cross zero"
    why = f"of the pressure on its concepts is left {curve}: it {where}; strength {strength:g}"
    return strength, why, _record(points)


def without_crossing(points: list[Point], start: float) -> float:
    """The highest strength where it takes off clearly more than the default; else the default."""
    return HIGH * start if _left_at(points, start) - points[-1].avoided >= WORTH else start


def _left_at(points: list[Point], dial: float) -> float:
    """Pressure left at the measured position nearest to a dial."""
    return min(points, key=lambda point: abs(point.dial - dial)).avoided


def observer_of(setup: Setup, clause: Clause) -> PressureObserver | None:
    """An observer of one clause's avoided concepts and of the kept ones; None where there is nothing to read."""
    if setup.plan is None or setup.dictionary is None:
        return None
    known = {concept.id: concept for concept in setup.plan.concepts if concept.latents}
    avoided = [known[d.concept] for d in setup.plan.avoided() if d.clause == clause.id and d.concept in known]
    kept = [known[d.concept] for d in setup.plan.kept() if d.concept in known]
    return PressureObserver(setup.dictionary, avoided, kept=kept) if avoided else None


def _for_all(setup: Setup, chosen: list[PlannedControl]) -> list[PlannedControl]:
    plan = setup.plan
    assert plan is not None
    given = (
        f"{len(setup.neutral)} neutral rows" if setup.neutral else "generic prompts (no neutral rows given)"
    )
    made = [PlannedControl(name="anchor", reason=f"holds the model to itself on {given}")]
    keep = [example for clause in plan.spec.of_kind("keep") for example in clause.examples]
    explained = [control for control in chosen if control.name == "explain_away"]
    if explained and setup.is_chat:
        reason = "what is learned behind the explained words has to reach plain answers"
        made.append(PlannedControl(name="own_counterparts", reason=reason))
    elif keep:  # beside own counterparts so few rows, seen so often, cost more than they bring (lab notes)
        made.append(PlannedControl(name="spec_examples", reason=f"the spec shows {len(keep)} wanted answers"))
    if chosen and setup.dictionary is not None and _is_pushed(setup):
        dials = ", ".join(f"{control.name}:{control.clause}" for control in chosen)
        made.append(PlannedControl(name="feedback", reason=f"turns {dials} by the pressure that is left"))
    return made


def _is_pushed(setup: Setup) -> bool:
    assert setup.plan is not None
    return any(setup.plan.uptakes.get(d.concept, 0.0) > 0 for d in setup.plan.avoided())


def _record(points: list[Point]) -> dict[str, float]:
    made = {"push": round(points[0].push, 6)} if points and points[0].dial == 0 else {}
    for point in points:
        made[f"avoided@{point.dial:g}"] = round(point.avoided, 4)
        made[f"kept@{point.dial:g}"] = round(point.kept, 4)
    return made
