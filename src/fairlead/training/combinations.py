"""Which controls go together: combinations that cannot mean what was asked are errors, those that are doubtful are remarked on.

Two controls collide only where they serve the same clause; one without a clause serves all that are avoided. A placebo counts as the
control that it stands in for. What a control owns alone it says itself (`Control.owns`), so that a plug-in's can collide, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from fairlead.core.errors import ConfigError
from fairlead.training.config import ControlConfig
from fairlead.training.controls import control_class
from fairlead.training.controls.base import ACCOUNT, Control
from fairlead.training.controls.concept_ablation import ConceptAblation
from fairlead.training.controls.explain_away import ExplainAway
from fairlead.training.controls.gradient_projection import GradientProjection
from fairlead.training.controls.preventative_steering import PreventativeSteering
from fairlead.training.controls.weighting import Filtering, Weighting


class _Chosen(NamedTuple):
    config: ControlConfig
    kind: type[Control]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def drops_rows(self) -> bool:
        options: Any = (
            self.kind.Options.make(self.config.options) if issubclass(self.kind, Filtering) else None
        )
        return options is not None and options.level == "row"


def check_combination(controls: Sequence[ControlConfig], *, use_data: bool = True) -> tuple[str, ...]:
    """Remarks on doubtful combinations.

    Raises:
        ConfigError: Two controls contradict each other, or one acts on data rows that are left out; names them and the next step.
    """
    chosen = [_Chosen(config, control_class(config)) for config in controls]
    for one in chosen:
        if one.kind.acts_on_data and not use_data:
            raise ConfigError(
                f"'{one.name}' acts on the data rows, which this arm leaves out of the loss. Next: take it out, or train on "
                "the data."
            )
    remarks = []
    for one, other in itertools.permutations(chosen, 2):
        if not _same_clause(one.config, other.config):
            continue
        _refuse(one, other)
        if (remark := _remark(one, other)) is not None:
            remarks.append(remark)
    return tuple(remarks)


def _refuse(one: _Chosen, other: _Chosen) -> None:
    names = f"'{one.name}' and '{other.name}'{_clause_text(one.config, other.config)}"
    if one.kind.owns is not None and one.kind.owns == other.kind.owns:
        if one.kind.owns == ACCOUNT:
            raise ConfigError(
                f"{names} both account for the trait in training; together they take it off twice, and the student is pushed the "
                "other way. Next: keep one of them, or give each a clause of its own."
            )
        raise ConfigError(
            f"{names} both own {one.kind.owns}. Next: keep one of them (several clauses: give each its own)."
        )
    if one.drops_rows and other.kind.owns == ACCOUNT:
        raise ConfigError(
            f"{names}: '{one.name}' drops the rows that '{other.name}' would act on. Next: keep one of them, or set level='token' "
            f"for '{one.name}'."
        )
    if issubclass(one.kind, ConceptAblation) and issubclass(other.kind, PreventativeSteering):
        raise ConfigError(
            f"{names}: '{one.name}' takes out of the activations what '{other.name}' adds. Next: keep one of them."
        )


def _remark(one: _Chosen, other: _Chosen) -> str | None:
    if issubclass(one.kind, Weighting) and other.kind.owns == ACCOUNT:
        return f"'{one.name}' weighs down what '{other.name}' accounts for: the data teach less than either alone would let them."
    if issubclass(one.kind, ConceptAblation) and issubclass(other.kind, ExplainAway):
        return f"'{one.name}' beside '{other.name}' cost skill and let the trait leak where it was measured (DESIGN 5.2)."
    if issubclass(one.kind, ConceptAblation) and issubclass(other.kind, GradientProjection):
        return f"'{one.name}' already stops the gradient along the directions that '{other.name}' removes from it."
    return None


def _same_clause(one: ControlConfig, other: ControlConfig) -> bool:
    return one.clause is None or other.clause is None or one.clause == other.clause


def _clause_text(one: ControlConfig, other: ControlConfig) -> str:
    clause = one.clause or other.clause
    return f" (clause {clause})" if clause is not None else ""
