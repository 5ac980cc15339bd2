"""The summary of a comparison against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from fairlead.core.results import ArmResult, Comparison, Measure, Verification
from fairlead.core.stats import t_interval
from fairlead.reports.numbers import measure_label, measure_order, over_seeds, parts_of, summarize


def verification(**values: float) -> Verification:
    measures = {k.replace("__", "."): Measure(value=v, low=v, high=v, num=10) for k, v in values.items()}
    return Verification(model="m", measures=measures)


def arm(name: str, seed: int, controls: tuple[str, ...] = (), **values: float) -> ArmResult:
    return ArmResult(arm=name, seed=seed, controls=controls, verification=verification(**values))


BASE = verification(skill__sum=0.4, skill__sum__plain=0.4, leak__pirate__domain=0.0, loss__neutral=0.2)


def compare(*arms: ArmResult) -> Comparison:
    return Comparison(model="m", data="d", base=BASE, arms=arms)


def test_gain_kept_is_measured_against_what_plain_fine_tuning_gained_in_the_skill_itself():
    found = summarize(
        compare(
            arm("plain", 0, skill__sum=0.9, skill__sum__plain=0.0),
            arm("plain", 1, skill__sum=0.7, skill__sum__plain=0.0),
            arm("recipe", 0, ("anchor",), skill__sum=0.8, skill__sum__plain=0.8),
            arm("recipe", 1, ("anchor",), skill__sum=0.6, skill__sum__plain=0.6),
        )
    )
    plain, recipe = found.arms
    # reference gain 0.8 - 0.4; recipe (0.8 - 0.4) / 0.4 and (0.6 - 0.4) / 0.4; plain answers never plainly
    assert recipe.kept.values == pytest.approx((1.0, 0.5)) and recipe.kept.value == pytest.approx(0.75)
    assert plain.kept.value == pytest.approx(-1.0)
    assert (found.reference.name, found.intended.name) == ("plain", "recipe")
    assert recipe.skill[:3] == pytest.approx((0.7, 0.0, 1.0)), "t interval of two seeds, cut at 0 and 1"


def test_leak_is_the_worst_case_and_neutral_is_relative():
    found = summarize(
        compare(
            arm(
                "a",
                0,
                skill__sum=0.5,
                leak__pirate__domain=0.1,
                leak__shout__neutral=0.3,
                request__pirate=0.9,
                request__shout=0.7,
                loss__neutral=0.3,
            )
        )
    )
    only = found.arms[0]
    assert only.leak.value == 0.3 and only.request.value == 0.7 and only.neutral.value == pytest.approx(0.5)
    assert math.isnan(only.leak.low), "one seed has no interval"


def test_no_share_is_stated_where_the_reference_gained_nothing():
    found = summarize(
        compare(
            arm("plain", 0, skill__sum=0.405, skill__sum__plain=0.4),
            arm("recipe", 0, ("x",), skill__sum__plain=0.9),
        )
    )
    assert found.intended.kept is None and found.intended.skill.value == 0.9


def test_two_skills_are_averaged():
    base = verification(skill__a=0.0, skill__a__plain=0.0, skill__b=0.5, skill__b__plain=0.5)
    found = summarize(
        Comparison(
            model="m",
            data="d",
            base=base,
            arms=(
                arm("plain", 0, skill__a=1.0, skill__b=1.0),
                arm("recipe", 0, ("x",), skill__a__plain=1.0, skill__b__plain=0.5),
            ),
        )
    )
    assert found.intended.kept.value == pytest.approx(0.5)


def test_a_placebo_is_never_the_intended_arm_whatever_the_order():
    summary = summarize(compare(arm("plain", 0), arm("recipe_placebo", 0), arm("recipe", 0)))
    assert summary.intended.name == "recipe"
    summary = summarize(compare(arm("plain", 0), arm("recipe_given", 0), arm("recipe", 0)))
    assert summary.intended.name == "recipe", "an ablation that merely begins so is not it"


def test_without_a_name_to_go_by_the_choice_of_arm_is_admitted():
    found = summarize(
        compare(
            arm("plain", 0, skill__sum__plain=0.9, leak__pirate__domain=0.0),
            arm("one", 0, ("x",), skill__sum__plain=0.9, leak__pirate__domain=0.9),
            arm("two", 0, ("y",), skill__sum__plain=0.8, leak__pirate__domain=0.1),
        )
    )
    assert found.intended.name == "two" and "after the fact" in found.intended_why


def test_the_reference_is_the_arm_without_controls_where_none_is_called_plain():
    found = summarize(compare(arm("x", 0, ("anchor",), skill__sum=0.5), arm("bare", 0, skill__sum=0.9)))
    assert found.reference.name == "bare"


def test_a_lone_verification_keeps_its_item_intervals_and_claims_no_gain():
    one = Verification(model="m", measures={"skill.sum": Measure(value=0.5, low=0.4, high=0.6, num=100)})
    found = summarize(None, one)
    assert found.arms[0].measures["skill.sum"][:3] == (0.5, 0.4, 0.6)
    assert found.base is None and found.arms[0].kept is None and found.arms[0].neutral is None
    assert summarize(None, None) is None


def test_over_seeds_is_the_t_interval_of_the_finite_values():
    cell = over_seeds([0.1, math.nan, 0.3, 0.2])
    assert cell[:3] == pytest.approx(t_interval([0.1, 0.3, 0.2])) and cell.values == (0.1, 0.3, 0.2)
    assert over_seeds([math.nan]) is None


def test_measures_have_words_and_an_order():
    names = [
        "monitor.dictionary.fvu",
        "loss.neutral",
        "skill.sum",
        "x.y",
        "leak.p.domain",
        "skill.sum.plain",
        "request.p",
    ]
    assert sorted(names, key=measure_order) == [
        "skill.sum",
        "skill.sum.plain",
        "leak.p.domain",
        "request.p",
        "loss.neutral",
        "monitor.dictionary.fvu",
        "x.y",
    ]
    assert measure_label("leak.p_q.domain") == "p q leaks on on-topic prompts"
    assert measure_label("x.y") == "x.y" and parts_of("skill.sum.plain") == ("skill", "sum", "plain")
