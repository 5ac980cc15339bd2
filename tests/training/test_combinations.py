"""Controls that do not go together are refused with both names and a next step; doubtful ones are remarked on."""

from __future__ import annotations

import pytest

from fairlead.core.errors import ConfigError
from fairlead.training import RECIPES, ControlConfig, TrainConfig, fit, recipe_names, resolve
from fairlead.training.combinations import check_combination
from fairlead.training.controls import control_class


def control(name, clause=None, **options):
    return ControlConfig(name=name, clause=clause, options=options)


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (control("explain_away"), control("inoculation"), "both account for the trait"),
        (control("inoculation_placebo"), control("explain_away"), "both account for the trait"),
        (control("preventative_steering"), control("explain_away"), "both account for the trait"),
        (control("explain_away"), control("explain_away_placebo"), "both account for the trait"),
        (control("filtering"), control("explain_away"), "drops the rows.*level='token'"),
        (control("filtering"), control("inoculation"), "drops the rows"),
        (control("filtering"), control("weighting"), "both own the weights of the data's tokens"),
        (control("freezing"), control("freezing_placebo"), "both own the choice of what is trained"),
        (control("anchor"), control("anchor_placebo"), "both own the anchor"),
        (control("concept_ablation"), control("preventative_steering"), "takes out of the activations"),
    ],
)
def test_contradictions_name_both_controls_and_the_next_step(one, other, why):
    for pair in ((one, other), (other, one)):
        with pytest.raises(ConfigError, match=why) as found:
            resolve(list(pair))
        assert f"'{one.name}'" in str(found.value) and f"'{other.name}'" in str(found.value)
        assert "Next: " in str(found.value)


def test_clauses_apart_do_not_collide_and_one_without_a_clause_meets_all():
    apart = [control("explain_away", "avoid.1"), control("inoculation", "avoid.2")]
    assert check_combination(apart) == ()
    with pytest.raises(ConfigError, match=r"\(clause avoid\.1\) both account"):
        check_combination([control("explain_away", "avoid.1"), control("inoculation")])


def test_controls_on_data_rows_need_them_in_the_loss():
    for name in ("weighting", "explain_away", "inoculation", "gradient_projection"):
        with pytest.raises(ConfigError, match=f"'{name}' acts on the data rows"):
            resolve(["spec_only", name])
    assert resolve(["spec_only", "own_counterparts"]).use_data is False


def test_doubtful_ones_are_remarked_on_and_the_run_keeps_the_remark(micro, tmp_path):
    pair = [control("weighting", level="token"), control("explain_away", sources=("prompt",))]
    (remark,) = check_combination(pair)
    assert "'weighting'" in remark and "'explain_away'" in remark
    config = TrainConfig(steps=1, batch_size=4, checkpoint_every=0, observe=False, controls=tuple(pair))
    result = fit(micro.model, micro.data, micro.plan, config=config, folder=tmp_path)
    assert remark in result.notes


def test_every_recipe_goes_together():
    for name in (name for name in recipe_names() if not RECIPES[name].from_plan):
        for anchor in (None, True):
            arm = resolve(name, anchor=anchor)
            assert check_combination(arm.controls, use_data=arm.use_data) == ()


def test_every_recipe_with_content_names_a_placebo_that_differs_in_the_content_alone():
    without = {"plain", "plain_no_anchor"}
    named = {recipe.placebo for recipe in RECIPES.values()}
    for name, recipe in RECIPES.items():
        if name in without or name in named or name == "loop_feedback_placebo":
            assert recipe.placebo is None
            continue
        assert recipe.placebo in RECIPES, f"{name} names no placebo"
        if recipe.from_plan:
            assert RECIPES[recipe.placebo].as_placebos
            continue
        real, placebo = (resolve(each, anchor=False) for each in (name, recipe.placebo))
        real, placebo = (real, placebo) if name != "anchor" else (resolve(name), resolve(recipe.placebo))
        assert real.use_data == placebo.use_data
        swapped = 0
        for one, other in zip(real.controls, placebo.controls, strict=True):
            assert one.model_copy(update={"name": other.name}) == other, "settings differ, too"
            assert other.name in (one.name, control_class(one.name).placebo)
            swapped += one.name != other.name
        assert swapped > 0


def test_the_placebos_of_the_loop_take_away_the_evidence_or_the_readings():
    parts = {
        name: {c.name for c in resolve(name).controls} for name in ("loop_placebo", "loop_feedback_placebo")
    }
    assert {"explain_away_placebo", "feedback_placebo"} <= parts["loop_placebo"]
    assert {"explain_away", "feedback_placebo"} <= parts["loop_feedback_placebo"]
