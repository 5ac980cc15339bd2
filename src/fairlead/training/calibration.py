"""Calibration: which strength of a control takes the pressure off the avoided concepts, without a step of training.

The gradient of the data's loss at the start model is read at several positions of the control's dial, on a sample of rows. The
pressure on a clause's concepts, in the rows on which the control acts, as a share of what it is with the control off, is 1 at 0
and falls as the control takes over; the dial's start is where it crosses zero (linear between the measured positions). What
happens to the kept concepts, in all rows, is measured beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairlead.core.errors import TrainingError
from fairlead.training.batching import Composer
from fairlead.training.controls.base import Control
from fairlead.training.logits import select_logits
from fairlead.training.observe import PressureObserver
from fairlead.training.session import Session
from fairlead.training.setup import Setup

DIALS = (0.0, 0.5, 1.0, 1.5)
BATCH = 32


class Point(NamedTuple):
    """Pressure at one position of the dial.

    Attributes:
        dial: The strength.
        avoided: Pressure on the clause's avoided concepts, as a share of that at 0.
        kept: Pressure on the kept concepts, as a share of the size of that at 0.
        push: Pressure on the avoided concepts per loss token of all rows.
    """

    dial: float
    avoided: float
    kept: float
    push: float = 0.0


def pressure_curve(
    setup: Setup, control: Control, observer: PressureObserver, *, dials: Sequence[float] = DIALS
) -> list[Point]:
    """Pressure on the observed concepts at positions of a prepared control's dial, at the start model.

    Args:
        setup: The sample of rows on which the control was prepared.
        control: The control; its dial stands where it stood afterwards.
        observer: Watches the clause's avoided concepts and the kept ones.
        dials: Positions; the first must be 0.

    Returns:
        One point a position; empty where the data do not push the avoided concepts.
    """
    if not dials or dials[0] != 0:
        raise TrainingError("a pressure curve begins with the control off: dials must start with 0.")
    before, sums = control.dial, []
    observer.reaches[control.key] = control.reach
    for dial in dials:
        control.turn(dial)
        sums.append(_pressure(setup, control, observer))
    control.turn(before)
    base, kept = sums[0]
    if base <= 0:
        return []
    size = max(abs(kept), 1e-12)
    return [Point(dial, a / base, k / size, a) for dial, (a, k) in zip(dials, sums, strict=True)]


def zero_crossing(points: Sequence[Point]) -> float | None:
    """The dial at which the avoided pressure first crosses zero; None where it does not."""
    for one, two in itertools.pairwise(points):
        if one.avoided > 0 >= two.avoided:
            return one.dial + (two.dial - one.dial) * one.avoided / (one.avoided - two.avoided)
    return None


def _pressure(setup: Setup, control: Control, observer: PressureObserver) -> tuple[float, float]:
    """Pressure on avoided concepts over the rows on which the control acts, and on kept ones over all rows of the setup."""
    session = Session([control], pad_id=setup.pad_id, seed=setup.config.seed)
    compose = Composer(setup.encoded, pad_id=setup.pad_id)
    module = setup.model.hf
    order = sorted(range(len(setup.encoded)), key=lambda place: len(setup.encoded[place]))
    avoided = kept = 0.0

    def plain(inputs: dict[str, Any]) -> Tensor:
        view = session.state.view
        assert view is not None
        model_inputs = {name: value for name, value in inputs.items() if name != "labels"}
        logits = select_logits(module, {**model_inputs, "use_cache": False}, view.predict_mask)
        return F.cross_entropy(logits, view.targets.to(logits.device))

    with session.attached(module), observer.attached(module), torch.enable_grad():
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            batch = compose([{"place": place} for place in places])
            inputs = {name: value.to(setup.model.device) for name, value in batch.items()}
            session.loss(module, inputs, num_items=None, plain=plain).backward()
            observer.forget()
            observer.read(session.state, 0)
            weight = len(places) / len(order)
            avoided += weight * sum(observer.latest_reached[control.key].values())
            kept += weight * sum(observer.latest_kept.values())
            module.zero_grad(set_to_none=True)
    return avoided, kept
