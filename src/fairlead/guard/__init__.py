"""The guard: a model that is read while it talks, and what is done when it makes things up."""

from fairlead.guard.answers import GuardedAnswer, Intervention
from fairlead.guard.calibration import Calibration, calibrate, calibrate_guard, find_threshold
from fairlead.guard.guard import Guard, Request
from fairlead.guard.policy import KINDS, Policy
from fairlead.guard.reading import read_answers
from fairlead.guard.readouts import TokenReadout, as_span_readout
from fairlead.guard.running import GuardedBatch
from fairlead.guard.segments import Segmenter, Sentences

__all__ = [
    "KINDS",
    "Calibration",
    "Guard",
    "GuardedAnswer",
    "GuardedBatch",
    "Intervention",
    "Policy",
    "Request",
    "Segmenter",
    "Sentences",
    "TokenReadout",
    "as_span_readout",
    "calibrate",
    "calibrate_guard",
    "find_threshold",
    "read_answers",
]
