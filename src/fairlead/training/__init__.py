"""Training through TRL's SFTTrainer with controls, observation and cached evidence."""

from fairlead.training.batching import Composer, RowPool, StepState, StepView
from fairlead.training.config import ControlConfig, DialMove, TrainConfig
from fairlead.training.controls import Control, control_class, control_names, make_control
from fairlead.training.dials import Dials, dial_names, read_moves, request_move
from fairlead.training.fit import FitResult, fit, prepare
from fairlead.training.observe import PressureObserver, read_metrics
from fairlead.training.recipes import RECIPES, Arm, Recipe, recipe_names, resolve
from fairlead.training.trained import PLAN_FILE, TrainedRun, load_run

__all__ = [
    "PLAN_FILE",
    "RECIPES",
    "Arm",
    "Composer",
    "Control",
    "ControlConfig",
    "DialMove",
    "Dials",
    "FitResult",
    "PressureObserver",
    "Recipe",
    "RowPool",
    "StepState",
    "StepView",
    "TrainConfig",
    "TrainedRun",
    "control_class",
    "control_names",
    "dial_names",
    "fit",
    "load_run",
    "make_control",
    "prepare",
    "read_metrics",
    "read_moves",
    "recipe_names",
    "request_move",
    "resolve",
]
