"""Feedback: a PI controller that turns other controls' dials so that the pressure on avoided concepts goes to zero.

Before every step the error is the smoothed pressure on the avoided concepts (the observer's reading of the step before) in the rows
on which the control acts, as a share of what these push at the start without a control (measured by the plan; else the plan's
uptakes): 1 is the push of plain fine-tuning, 0 is none, below 0 the concept is pushed down. What other rows push, no turn of
this dial can relieve. The dial follows

    u = start + gain * error + integral * (sum of errors)

every few steps, within limits, by at most `max_move` at a time; the sum stands still while the dial is at a limit or at its
speed and the error pushes further (conditional integration: no windup). The dial is not raised while the data push the *kept*
concepts down by more than `guard`: then the control has begun to cost what is wanted.

Every move is made through the run's dials and recorded with its step. Whoever turns the same dial by hand takes it over; turning
`feedback on` gives it back. Its own strength scales both gains. The state travels in the checkpoints, so that a resumed run makes
the same moves.

Placebo: the same readings with random signs.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import TrainingError
from fairlead.core.records import Plan
from fairlead.training.controls.base import Control, Kind
from fairlead.training.setup import Setup


class FeedbackOptions(Config):
    """Settings of the controller.

    Attributes:
        control: Name of the control whose dial is turned; None for all whose strength relieves the avoided concepts.
        target: Wanted pressure, as a share of the data's push at the start.
        gain: Change of the dial, in units of its start, per unit of the error.
        integral: The same per unit of the error and step.
        memory: Steps over which readings are smoothed.
        every: Steps between two moves.
        low: Lower limit, in units of the start.
        high: Upper limit, likewise.
        max_move: Largest move, likewise.
        dead_band: Smaller moves are not made.
        guard: Push on the kept concepts below minus this share of theirs at the start: the dial is not raised.
    """

    control: str | None = None
    target: float = 0.0
    gain: float = Field(default=0.5, ge=0)
    integral: float = Field(default=0.04, ge=0)
    memory: float = Field(default=10.0, ge=1)
    every: int = Field(default=5, ge=1)
    low: float = Field(default=0.5, ge=0)
    high: float = Field(default=2.0, gt=0)
    max_move: float = Field(default=0.1, gt=0)
    dead_band: float = Field(default=0.01, ge=0)
    guard: float = Field(default=0.5, ge=0)

    @model_validator(mode="after")
    def _limits(self) -> FeedbackOptions:
        if not self.low <= 1 <= self.high:
            raise ValueError(
                f"low ({self.low:g}) and high ({self.high:g}) must have 1, the start, between them"
            )
        return self


class Loop(NamedTuple):
    """One dial under control.

    Attributes:
        control: Whose dial.
        start: Its strength at the start.
        scale: What the concepts it answers for are pushed without it.
    """

    control: Control
    start: float
    scale: float


class PIState(NamedTuple):
    """What the law remembers: the smoothed error, the weight behind it, the sum of errors, and the dial in units of its start."""

    error: float = 0.0
    weight: float = 0.0
    total: float = 0.0
    dial: float = 1.0

    @property
    def smoothed(self) -> float:
        """The error without the bias of the first readings."""
        return self.error / self.weight if self.weight else 0.0


def observe_error(state: PIState, error: float, options: FeedbackOptions) -> PIState:
    """Take in one reading: exponential smoothing, with the weight kept for its bias (as in Adam)."""
    rate = 1 / options.memory
    return state._replace(
        error=(1 - rate) * state.error + rate * error, weight=(1 - rate) * state.weight + rate
    )


def pi_step(
    state: PIState, options: FeedbackOptions, *, strength: float = 1.0, may_rise: bool = True
) -> PIState:
    """The next position of the dial: limits, limited speed and conditional integration; `strength` scales both gains."""
    error = strength * state.smoothed
    top = min(options.high, state.dial + options.max_move)
    if not may_rise:
        top = min(top, state.dial)
    bottom = max(options.low, state.dial - options.max_move)
    wanted = 1 + options.gain * error + options.integral * (state.total + error * options.every)
    at_top, at_bottom = wanted > top and error > 0, wanted < bottom and error < 0
    total = state.total if at_top or at_bottom else state.total + error * options.every
    dial = min(max(1 + options.gain * error + options.integral * total, bottom), top)
    return state._replace(total=total, dial=dial)


class Feedback(Control):
    """Turns the dials of other controls by the pressure on the avoided concepts."""

    name: ClassVar[str] = "feedback"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "feedback_placebo"
    summary: ClassVar[str] = (
        "turns other controls' dials so that the pressure on avoided concepts goes to zero"
    )
    Options: ClassVar[type[Config]] = FeedbackOptions
    default_strength: ClassVar[float | None] = 1.0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.loops: list[Loop] = []
        self.states: dict[str, PIState] = {}
        self.kept = PIState()
        self.by_hand: set[str] = set()
        self.moves: dict[str, list[tuple[int, float]]] = {}

    @override
    def prepare(self, setup: Setup) -> None:
        self.setup = setup
        if setup.plan is None or setup.observer is None:
            raise TrainingError(
                "feedback reads the pressure on avoided concepts, and this training observes none. Next: give a plan that "
                "avoids a concept, with its dictionary, and leave observe on."
            )
        wanted = self.options.control
        turned = [
            c for c in setup.controls if (c.relieves if wanted is None else wanted in (*_names(c), c.key))
        ]
        if not turned:
            what = "a control whose strength relieves avoided concepts" if wanted is None else f"'{wanted}'"
            raise TrainingError(
                f"feedback turns the dial of {what}, and this training has none. Next: add explain_away."
            )
        for control in turned:
            if control.start is None:
                raise TrainingError(
                    f"feedback cannot turn {control.key}: it has no dial. Next: name a control that has one."
                )
            if control.start <= 0:
                raise TrainingError(
                    f"feedback turns {control.key} in units of its start, which is 0. Next: give it a strength above 0."
                )
            self._add_loop(setup, control, control.start)
        kept = [d.concept for d in setup.plan.kept()]
        self.kept_scale = sum(abs(setup.plan.uptakes.get(concept, 0.0)) for concept in kept)

    def _add_loop(self, setup: Setup, control: Control, start: float) -> None:
        assert setup.plan is not None and setup.observer is not None
        avoided = self.avoided(control)
        scale = self.planned_push(setup.plan, control) or sum(
            max(setup.plan.uptakes.get(concept, 0.0), 0.0) for concept in avoided
        )
        if scale <= 0:
            note = f"feedback: the data do not push what {control.key} avoids (by the plan's uptakes); its dial is left alone."
            setup.notes.append(note)
            return
        setup.observer.reaches[control.key] = control.reach
        self.loops.append(Loop(control, start, scale))
        self.states[control.key] = PIState()
        self.moves[control.key] = []

    @staticmethod
    def planned_push(plan: Plan, control: Control) -> float | None:
        """What the plan measured with the control off; None where it did not plan this control."""
        for planned in plan.controls:
            if planned.name in _names(control) and planned.clause == control.config.clause:
                return planned.measured.get("push")
        return None

    def avoided(self, control: Control) -> list[str]:
        """Ids of the observed concepts that a control answers for; the judge in the loop may add some."""
        assert self.setup.plan is not None and self.setup.observer is not None
        watched = {concept.id for concept in self.setup.observer.concepts}
        clause = control.config.clause
        return [
            decision.concept
            for decision in self.setup.plan.avoided()
            if decision.concept in watched and (clause is None or decision.clause == clause)
        ]

    def read(self, pressure: dict[str, float], loop: Loop, step: int) -> float:
        """The error of one reading."""
        push = sum(pressure.get(concept, 0.0) for concept in self.avoided(loop.control))
        return push / loop.scale - self.options.target

    @override
    def before_step(self, step: int, student: nn.Module) -> None:
        observer = self.setup.observer
        assert observer is not None and self.setup.move is not None
        if not observer.latest:
            return
        if self.kept_scale:
            push = sum(observer.latest_kept.values()) / self.kept_scale
            self.kept = observe_error(self.kept, push, self.options)
        for loop in self.loops:
            key = loop.control.key
            reading = self.read(observer.latest_reached.get(key, observer.latest), loop, step)
            state = observe_error(self.states[key], reading, self.options)
            if self._taken_over(loop, state):
                self.by_hand.add(key)
            if step % self.options.every == 0 and self.dial > 0 and key not in self.by_hand:
                state = self._turn(step, loop, state)
            self.states[key] = state

    def _turn(self, step: int, loop: Loop, state: PIState) -> PIState:
        assert self.setup.move is not None
        may_rise = self.kept.smoothed >= -self.options.guard
        new = pi_step(state, self.options, strength=self.dial, may_rise=may_rise)
        if abs(new.dial - state.dial) < self.options.dead_band:
            return new._replace(dial=state.dial)
        value = round(new.dial * loop.start, 4)
        self.setup.move(step, loop.control.key, value, self.name)
        self.moves[loop.control.key].append((step, value))
        return new._replace(dial=value / loop.start)

    def _taken_over(self, loop: Loop, state: PIState) -> bool:
        return abs(loop.control.dial - state.dial * loop.start) > 1e-9

    @override
    def turn(self, value: float | str) -> None:
        """Off: the dials stay where they are. On: it takes them (back) over from where they are."""
        super().turn(value)
        if self.dial > 0:
            self.by_hand.clear()
            for loop in self.loops:
                key = loop.control.key
                self.states[key] = self.states[key]._replace(dial=loop.control.dial / loop.start)

    @override
    def state(self) -> dict[str, Any]:
        observer = self.setup.observer
        assert observer is not None
        return {
            # of the last step, for the next:
            "reading": [observer.latest, observer.latest_kept, observer.latest_reached],
            "states": {key: list(state) for key, state in self.states.items()},
            "kept": list(self.kept),
            "by_hand": sorted(self.by_hand),
            "moves": self.moves,
        }

    @override
    def restore(self, state: dict[str, Any]) -> None:
        assert self.setup.observer is not None
        observer = self.setup.observer
        observer.latest, observer.latest_kept, observer.latest_reached = state["reading"]
        self.states = {key: PIState(*values) for key, values in state["states"].items()}
        self.kept = PIState(*state["kept"])
        self.by_hand = set(state["by_hand"])
        self.moves = {key: [(step, value) for step, value in made] for key, made in state["moves"].items()}

    @override
    def report(self) -> dict[str, Any]:
        return {
            "dials": {
                loop.control.key: {
                    "start": loop.start,
                    "end": loop.control.strength,
                    "moves": self.moves[loop.control.key],
                    "error": round(self.states[loop.control.key].smoothed, 4),
                    "by_hand": loop.control.key in self.by_hand,
                }
                for loop in self.loops
            },
            "kept_push": round(self.kept.smoothed, 4),
        }


class FeedbackPlacebo(Feedback):
    """The same readings with random signs."""

    name: ClassVar[str] = "feedback_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "the same controller on readings with random signs"

    @override
    def read(self, pressure: dict[str, float], loop: Loop, step: int) -> float:
        error = super().read(pressure, loop, step)
        rng = random.Random(f"{self.setup.config.seed}:{self.name}:{loop.control.key}:{step}")
        return error if rng.random() < 0.5 else -error


def _names(control: Control) -> set[str]:
    """What a control goes by: its name, and that of the control whose placebo it is."""
    kinds = [kind for kind in type(control).__mro__ if getattr(kind, "placebo", None) == control.name]
    return {control.name, *(kind.name for kind in kinds)}
