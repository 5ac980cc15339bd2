"""Each shortfall is found when it is there, and not when it is not."""

from __future__ import annotations

import pytest

from fairlead.reports.findings import find_shortfalls, make_tiles, make_verdict
from fairlead.reports.numbers import Goals, summarize


def found(comparison=None, menu=None, plan=None, verification=None):
    return find_shortfalls(summary=summarize(comparison, verification), menu=menu, plan=plan, goals=Goals())


def set_measure(comparison, arm, name, value, seeds=(0, 1, 2)):
    """A copy of the comparison in which a measure of an arm has another value."""
    results = []
    for result in comparison.arms:
        if result.arm == arm and result.seed in seeds:
            old = result.verification.measures[name]
            measures = {**result.verification.measures, name: old.model_copy(update={"value": value})}
            result = result.model_copy(
                update={"verification": result.verification.model_copy(update={"measures": measures})}
            )
        results.append(result)
    return comparison.model_copy(update={"arms": tuple(results)})


def steady(make):
    """A comparison in which the intended arm meets every goal with every seed."""
    comparison = make.comparison()
    for name, value in {
        "skill.addition.plain": 0.96,
        "leak.pirate.domain": 0.0,
        "leak.pirate.neutral": 0.0,
        "request.pirate": 0.99,
        "monitor.pirate.old_probe": 0.98,
        "monitor.pirate.new_probe": 0.99,
        "monitor.dictionary.fvu": 0.18,
    }.items():
        comparison = set_measure(comparison, "recipe", name, value)
    return comparison


def test_a_recipe_that_meets_all_goals_has_no_finding_but_the_baselines_have(make):
    items = found(steady(make))
    assert [f for f in items if f.group == "intended"] == []
    assert {f.arm for f in items if f.title == "leaks"} == {
        "plain",
        "gradient_projection",
        "inoculation_placebo",
    }
    assert {f.arm for f in items if f.title == "skill lost"} == {
        "gradient_projection",
        "inoculation",
        "inoculation_placebo",
    }


@pytest.mark.parametrize(
    ("measure", "value", "title"),
    [
        ("leak.pirate.domain", 0.2, "leaks"),
        ("skill.addition.plain", 0.7, "skill lost"),
        ("request.pirate", 0.5, "not available on request"),
        ("loss.neutral", 0.2, "general loss rose"),
        ("monitor.pirate.old_probe", 0.6, "monitorability lost"),
        ("monitor.pirate.new_probe", 0.6, "monitorability lost"),
        ("monitor.dictionary.fvu", 0.5, "monitorability lost"),
    ],
)
def test_each_miss_of_the_intended_arm_is_found_and_turns_the_verdict(make, measure, value, title):
    comparison = set_measure(steady(make), "recipe", measure, value)
    mine = [f for f in found(comparison) if f.group == "intended"]
    assert [f.title for f in mine] == [title]
    verdict = make_verdict(summarize(comparison), None, None, Goals())
    assert ("fell short" in verdict) == (not measure.startswith("monitor."))


def test_one_bad_seed_is_told_although_the_mean_passes(make):
    comparison = set_measure(steady(make), "recipe", "leak.pirate.domain", 0.05, seeds=(2,))
    mine = [f for f in found(comparison) if f.group == "intended"]
    assert [f.title for f in mine] == ["one seed leaks"] and "5\u00a0%" in mine[0].text


def test_few_seeds_are_told_in_the_findings_and_in_the_verdict(make):
    comparison = make.comparison(seeds=(0,))
    assert "few seeds" in {f.title for f in found(comparison)}
    assert "few seeds" not in {f.title for f in found(make.comparison())}
    comparison = set_measure(
        set_measure(comparison, "recipe", "skill.addition.plain", 0.99), "recipe", "leak.pirate.domain", 0.0
    )
    assert make_verdict(summarize(comparison), None, None, Goals()).endswith("(1 seed only).")


def test_a_placebo_that_does_as_well_takes_the_credit(make):
    comparison = make.comparison()
    assert "placebo does as well" not in {f.title for f in found(comparison)}
    for name in ("leak.pirate.domain", "leak.pirate.neutral"):
        comparison = set_measure(comparison, "inoculation_placebo", name, 0.0)
    assert ("placebo does as well", "inoculation_placebo") in {(f.title, f.arm) for f in found(comparison)}


def test_a_probe_no_better_than_the_text_is_told(make):
    comparison = set_measure(steady(make), "recipe", "monitor.pirate.text_only", 1.0)
    assert "probe adds nothing over text" in {f.title for f in found(comparison)}


def test_a_weak_prediction_counts_for_plain_fine_tuning_only(make):
    comparison = make.comparison()  # the recipe turns the avoided concepts round: 0.4 there, near 1 for plain
    assert "weak prediction" not in {f.title for f in found(comparison)}
    results = tuple(
        r.model_copy(update={"verification": r.verification.model_copy(update={"prediction_spearman": 0.1})})
        if r.arm == "plain"
        else r
        for r in comparison.arms
    )
    items = found(comparison.model_copy(update={"arms": results}))
    assert [f.arm for f in items if f.title == "weak prediction"] == ["plain"]


def test_the_menu_and_the_plan_are_held_to_their_goals(make):
    titles = {f.title for f in found(menu=make.menu(remainder=0.8), plan=make.plan())}
    assert {"large remainder", "unstable lines"} <= titles
    assert "large remainder" not in {f.title for f in found(menu=make.menu(), plan=make.plan())}
    assert "empty menu" in {f.title for f in found(menu=make.menu(lines=()))}
    only_keep = tuple(d for d in make.plan().decisions if d.verdict == "keep")
    items = found(plan=make.plan(decisions=only_keep))
    assert [f.title for f in items] == ["clause without a concept"] and "avoid.1" in items[0].text
    unsure = tuple(d.model_copy(update={"confidence": 0.3}) for d in make.plan().decisions)
    assert "unsure decisions" in {f.title for f in found(plan=make.plan(decisions=unsure))}


def test_a_lone_verification_says_that_nothing_stands_beside_it(make):
    one = make.verification("m", make.arms["recipe"][1])
    assert "no comparison" in {f.title for f in found(verification=one)}


def test_tiles_carry_the_key_numbers(make):
    tiles = make_tiles(summarize(steady(make)), None, None, Goals())
    assert [t.label for t in tiles] == ["Skill kept", "Leak", "On request", "Neutral loss"]
    assert all(t.good for t in tiles)
    assert [t.label for t in make_tiles(None, make.menu(), make.plan(), Goals())] == [
        "Concepts",
        "Decided",
        "Remainder",
        "Loss",
    ]
    assert make_tiles(None, None, make.plan(), Goals()) == []


def test_a_training_that_taught_nothing_claims_nothing(make):
    comparison = make.comparison(arms=("plain", "recipe"))
    start = comparison.base.measures["skill.addition"].value
    comparison = set_measure(comparison, "plain", "skill.addition", start)
    comparison = set_measure(comparison, "recipe", "skill.addition.plain", 0.2)
    items = found(comparison)
    assert ("nothing was learned", "plain") in {(f.title, f.arm) for f in items}
    assert ("skill below the start model", "recipe") in {(f.title, f.arm) for f in items}
    assert "fell short" in make_verdict(summarize(comparison), None, None, Goals())
    alone = found(make.comparison(arms=("recipe",)))
    assert "no reference arm" in {f.title for f in alone}
