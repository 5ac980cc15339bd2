"""Recipes: named sets of controls, the arms of a comparison.

Every name can be given to `train(controls=...)`, alone or in a list with control names and settings ("recipe", ["anchor", "inoculation"],
[{"name": "explain_away", "strength": 1.5}], "explain_away(strength=1.5)").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fairlead.core.errors import ConfigError
from fairlead.core.records import Plan
from fairlead.training.combinations import check_combination
from fairlead.training.config import ControlConfig
from fairlead.training.control_text import control_config, read_control
from fairlead.training.controls import control_class, control_names

ControlsLike = str | ControlConfig | Mapping[str, Any] | Sequence[str | ControlConfig | Mapping[str, Any]]


class Recipe(NamedTuple):
    """A named set of controls.

    Attributes:
        controls: Names of controls with default settings, or controls with settings.
        summary: One line for tables and help.
        placebo: The recipe that is the same without the content; None where it has none or is one.
        use_data: False trains on the controls' own rows alone.
        anchorable: False keeps the shared anchor of a comparison off.
        from_plan: The controls are those that the plan chose (`fairlead plan`).
        as_placebos: Of these, each stands as its placebo, with the same clause, strength and options; but for the anchor, which all
            arms of a comparison share.
    """

    controls: tuple[str | ControlConfig, ...]
    summary: str
    placebo: str | None = None
    use_data: bool = True
    anchorable: bool = True
    from_plan: bool = False
    as_placebos: bool = False


def _with(name: str, **options: Any) -> ControlConfig:
    return ControlConfig(name=name, options=options)


RECIPES: dict[str, Recipe] = {
    "plain": Recipe((), "plain fine-tuning"),
    "plain_no_anchor": Recipe((), "plain fine-tuning, TRL's loss and nothing else", anchorable=False),
    "recipe": Recipe(
        ("explain_away", "anchor", "spec_examples", "own_counterparts"),
        "explain-away + anchor + spec examples + own counterparts: the intended recipe",
        placebo="recipe_placebo",
    ),
    "recipe_placebo": Recipe(
        ("explain_away_placebo", "anchor", "spec_examples", "own_counterparts"),
        "the recipe with evidence that says nothing",
    ),
    "recipe_given": Recipe(
        ("explain_away", "anchor", "spec_examples"),
        "the recipe with the given spec examples alone, no own counterparts",
        placebo="recipe_given_placebo",
    ),
    "recipe_given_placebo": Recipe(
        ("explain_away_placebo", "anchor", "spec_examples"),
        "the same with evidence that says nothing",
    ),
    "auto": Recipe(
        (), "what `fairlead plan` chose for this data, in closed loop", placebo="auto_placebo", from_plan=True
    ),
    "auto_placebo": Recipe(
        (),
        "what `fairlead plan` chose, each control as its placebo (same clauses, strengths and rows)",
        from_plan=True,
        as_placebos=True,
    ),
    "loop": Recipe(
        ("explain_away", "anchor", "spec_examples", "own_counterparts", "feedback"),
        "the recipe in closed loop: feedback sets the strength of explain-away by the pressure on avoided concepts",
        placebo="loop_placebo",
    ),
    "loop_placebo": Recipe(
        ("explain_away_placebo", "anchor", "spec_examples", "own_counterparts", "feedback_placebo"),
        "the closed loop with evidence that says nothing and feedback from readings of random sign",
    ),
    "loop_feedback_placebo": Recipe(
        ("explain_away", "anchor", "spec_examples", "own_counterparts", "feedback_placebo"),
        "the recipe with feedback from readings of random sign: what the readings are worth",
    ),
    "explain_away": Recipe(("explain_away",), "explain-away alone", placebo="explain_away_placebo"),
    "explain_away_token": Recipe(
        (_with("explain_away", gate="token"),),
        "explain-away at tokens where the evidence differs",
        placebo="explain_away_token_placebo",
    ),
    "explain_away_token_placebo": Recipe(
        (_with("explain_away_placebo", gate="token"),),
        "explain-away at such tokens with evidence that says nothing",
    ),
    "explain_away_placebo": Recipe(("explain_away_placebo",), "explain-away with evidence that says nothing"),
    "plain_spec": Recipe(
        ("spec_examples",), "plain fine-tuning + spec examples", placebo="plain_spec_placebo"
    ),
    "plain_spec_placebo": Recipe(("spec_examples_placebo",), "plain fine-tuning + shuffled spec examples"),
    "spec_only": Recipe(
        ("spec_examples",),
        "the spec examples alone, without the data",
        placebo="spec_only_placebo",
        use_data=False,
    ),
    "spec_only_placebo": Recipe(
        ("spec_examples_placebo",), "shuffled spec examples alone, without the data", use_data=False
    ),
    "inoculation": Recipe(
        ("inoculation",), "inoculation: a prompt that requests the trait", placebo="inoculation_placebo"
    ),
    "inoculation_placebo": Recipe(("inoculation_placebo",), "a neutral prompt of like length"),
    "preventative_steering": Recipe(
        ("preventative_steering",),
        "preventative steering with the trait's direction",
        placebo="preventative_steering_placebo",
    ),
    "preventative_steering_placebo": Recipe(
        ("preventative_steering_placebo",), "steering with random directions of equal norm"
    ),
    "steering_feedback": Recipe(
        ("preventative_steering", "feedback"),
        "preventative steering, its coefficient turned by the pressure on avoided concepts",
        placebo="steering_feedback_placebo",
    ),
    "steering_feedback_placebo": Recipe(
        ("preventative_steering_placebo", "feedback"),
        "steering with random directions, their coefficient turned in the same way",
    ),
    "gradient_projection": Recipe(
        ("gradient_projection",),
        "gradient projection off the trait's directions (blocks)",
        placebo="gradient_projection_placebo",
    ),
    "gradient_projection_placebo": Recipe(
        ("gradient_projection_placebo",), "gradient projection off random directions (blocks)"
    ),
    "concept_ablation": Recipe(
        ("concept_ablation",),
        "the trait's directions ablated in training (CAFT; blocks)",
        placebo="concept_ablation_placebo",
    ),
    "concept_ablation_placebo": Recipe(
        ("concept_ablation_placebo",), "random directions ablated in training (blocks)"
    ),
    "filtering": Recipe(
        ("filtering",), "rows that carry the trait left out (selects)", placebo="filtering_placebo"
    ),
    "filtering_placebo": Recipe(("filtering_placebo",), "as many rows drawn at random left out (selects)"),
    "filtering_token": Recipe(
        (_with("filtering", level="token"),),
        "tokens that carry the trait left out (selects)",
        placebo="filtering_token_placebo",
    ),
    "filtering_token_placebo": Recipe(
        (_with("filtering_placebo", level="token"),), "as many tokens drawn at random left out (selects)"
    ),
    "weighting": Recipe(
        ("weighting",), "rows that carry the trait at half weight (selects)", placebo="weighting_placebo"
    ),
    "weighting_placebo": Recipe(
        ("weighting_placebo",), "as many rows drawn at random at half weight (selects)"
    ),
    "freezing": Recipe(
        ("freezing",), "only the last half of the layers is trained (selects)", placebo="freezing_placebo"
    ),
    "freezing_placebo": Recipe(("freezing_placebo",), "as many layers drawn at random are trained (selects)"),
    "freezing_heads": Recipe(
        (_with("freezing", what="heads"),),
        "all but the attention heads that tell the trait is trained (selects)",
        placebo="freezing_heads_placebo",
    ),
    "freezing_heads_placebo": Recipe(
        (_with("freezing_placebo", what="heads"),),
        "all but as many heads drawn at random is trained (selects)",
    ),
    "freezing_neurons": Recipe(
        (_with("freezing", what="neurons"),),
        "all but the neurons that tell the trait is trained (selects)",
        placebo="freezing_neurons_placebo",
    ),
    "freezing_neurons_placebo": Recipe(
        (_with("freezing_placebo", what="neurons"),),
        "all but as many neurons drawn at random is trained (selects)",
    ),
    "anchor": Recipe(("anchor",), "plain fine-tuning + anchor", placebo="anchor_placebo"),
    "anchor_placebo": Recipe(
        ("anchor_placebo",), "plain fine-tuning + anchor on random tokens", anchorable=False
    ),
}


class Arm(NamedTuple):
    """Controls as resolved."""

    name: str
    controls: tuple[ControlConfig, ...]
    use_data: bool = True

    def controls_text(self) -> str:
        """What it is made of, as one line."""
        parts = [] if self.use_data else ["without the data"]
        for config in self.controls:
            dial = "" if config.strength is None else f" ({config.strength:g})"
            parts.append(config.name + dial)
        return " + ".join(parts) or "TRL's loss, no control"


def recipe_names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(RECIPES)


def resolve(controls: ControlsLike, *, anchor: bool | None = None, plan: Plan | None = None) -> Arm:
    """Controls of a recipe, a control, or a list of these.

    Args:
        controls: A recipe's or control's name, settings, or a list of names and settings.
        anchor: True adds the anchor where the arm has none (and allows it), False removes it, None leaves it to the arm.
        plan: For "auto": where its controls stand.

    Raises:
        ConfigError: Unknown name (lists those there are), or controls that do not go together.
    """
    items = [controls] if isinstance(controls, str | Mapping | ControlConfig) else list(controls)
    chosen: list[ControlConfig] = []
    use_data, anchorable = True, True
    for item in items:
        if isinstance(item, str) and item in RECIPES:
            recipe = RECIPES[item]
            from_plan = planned(plan) if recipe.from_plan else []
            chosen += [as_placebo(c) for c in from_plan] if recipe.as_placebos else from_plan
            chosen += [ControlConfig(name=c) if isinstance(c, str) else c for c in recipe.controls]
            use_data, anchorable = use_data and recipe.use_data, anchorable and recipe.anchorable
        elif isinstance(item, str):
            chosen.append(_named(item))
        else:
            chosen.append(item if isinstance(item, ControlConfig) else control_config(item))
    for config in chosen:
        control_class(config).read_options(config.options)
    has_anchor = any(config.name.startswith("anchor") for config in chosen)
    if anchor is True and not has_anchor and anchorable:
        chosen.append(ControlConfig(name="anchor"))
    if anchor is False:
        chosen = [config for config in chosen if not config.name.startswith("anchor")]
    names = [config.name for config in chosen]
    for name in set(names):
        if names.count(name) > 1 and len({c.clause for c in chosen if c.name == name}) < names.count(name):
            raise ConfigError(f"control '{name}' is given twice. Next: give it once, or once per clause.")
    check_combination(chosen, use_data=use_data)
    label = controls if isinstance(controls, str) else "+".join(names) or "plain"
    return Arm(label, tuple(chosen), use_data)


def planned(plan: Plan | None) -> list[ControlConfig]:
    """The controls that a plan chose, as settings.

    Raises:
        ConfigError: It chose none yet.
    """
    if plan is None or not plan.controls:
        raise ConfigError(
            "'auto' takes the controls that the plan chose, and this plan has none. Next: `fairlead plan`, or "
            "plan_controls(model, data, plan)."
        )
    return [
        ControlConfig(name=c.name, clause=c.clause, strength=c.strength, options=c.options)
        for c in plan.controls
    ]


def as_placebo(config: ControlConfig) -> ControlConfig:
    """The same settings for a control's placebo; the anchor, which arms share, and what has no placebo stay."""
    placebo = control_class(config).placebo
    return (
        config if placebo is None or config.name == "anchor" else config.model_copy(update={"name": placebo})
    )


def _named(text: str) -> ControlConfig:
    config = read_control(text)
    if config.file is None and config.name not in control_names():
        known = sorted({*RECIPES, *control_names()})
        raise ConfigError(f"unknown recipe or control '{config.name}'. Next: use one of {', '.join(known)}.")
    return config
