"""Controls on training, by name; plug-ins register under the entry point group `fairlead.controls`, or are named by their file."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

from fairlead.core.errors import ConfigError
from fairlead.training.config import ControlConfig
from fairlead.training.controls.anchor import Anchor, AnchorPlacebo
from fairlead.training.controls.base import Control
from fairlead.training.controls.concept_ablation import ConceptAblation, ConceptAblationPlacebo
from fairlead.training.controls.explain_away import ExplainAway, ExplainAwayPlacebo
from fairlead.training.controls.feedback import Feedback, FeedbackPlacebo
from fairlead.training.controls.files import controls_of
from fairlead.training.controls.freezing import Freezing, FreezingPlacebo
from fairlead.training.controls.gradient_projection import GradientProjection, GradientProjectionPlacebo
from fairlead.training.controls.inoculation import Inoculation, InoculationPlacebo
from fairlead.training.controls.judging import Judge, JudgePlacebo
from fairlead.training.controls.own_counterparts import OwnCounterparts, OwnCounterpartsPlacebo
from fairlead.training.controls.preventative_steering import (
    PreventativeSteering,
    PreventativeSteeringPlacebo,
)
from fairlead.training.controls.spec_examples import SpecExamples, SpecExamplesPlacebo
from fairlead.training.controls.weighting import (
    Filtering,
    FilteringPlacebo,
    Weighting,
    WeightingPlacebo,
)

__all__ = ["Control", "ControlConfig", "control_class", "control_names", "make_control"]

_BUILT_IN: tuple[type[Control], ...] = (
    ExplainAway,
    ExplainAwayPlacebo,
    Anchor,
    AnchorPlacebo,
    SpecExamples,
    SpecExamplesPlacebo,
    OwnCounterparts,
    OwnCounterpartsPlacebo,
    Inoculation,
    InoculationPlacebo,
    PreventativeSteering,
    PreventativeSteeringPlacebo,
    GradientProjection,
    GradientProjectionPlacebo,
    ConceptAblation,
    ConceptAblationPlacebo,
    Filtering,
    FilteringPlacebo,
    Weighting,
    WeightingPlacebo,
    Freezing,
    FreezingPlacebo,
    Feedback,
    FeedbackPlacebo,
    Judge,
    JudgePlacebo,
)


@lru_cache(maxsize=1)
def _registry() -> dict[str, type[Control]]:
    found: dict[str, type[Control]] = {}
    for entry in metadata.entry_points(group="fairlead.controls"):
        control = entry.load()
        if not (isinstance(control, type) and issubclass(control, Control)):
            raise ConfigError(
                f"entry point '{entry.name}' ({entry.value}) is not a fairlead Control. Next: uninstall or mend it."
            )
        found[entry.name] = control
    return found | {control.name: control for control in _BUILT_IN}


def control_names() -> tuple[str, ...]:
    """Names of all registered controls."""
    return tuple(sorted(_registry()))


def control_class(name: str | ControlConfig) -> type[Control]:
    """The control of this name (or of these settings, which may name a file of the user's own).

    Raises:
        ConfigError: There is none; lists those there are.
    """
    file = None if isinstance(name, str) else name.file
    name = name if isinstance(name, str) else name.name
    known = _registry()
    if file is not None:
        own = controls_of(file)
        if taken := sorted(set(own) & set(known)):
            raise ConfigError(
                f"{file}: '{taken[0]}' is the name of another control. Next: choose another name."
            )
        known = known | own
    try:
        return known[name]
    except KeyError:
        raise ConfigError(f"unknown control '{name}'. Next: use one of {', '.join(sorted(known))}.") from None


def make_control(config: ControlConfig | str) -> Control:
    """A control from its settings, or from its name with default settings."""
    if isinstance(config, str):
        config = ControlConfig(name=config)
    return control_class(config)(config)
