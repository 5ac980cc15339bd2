"""Figures hold the numbers of the records, nothing else, and colours can be told from their ground."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fairlead.core.results import Prediction, StepRecord
from fairlead.reports import palette
from fairlead.reports.numbers import Goals, summarize
from fairlead.reports.plots import (
    arms_figure,
    dictionary_figure,
    goal_floor,
    mean_predictions,
    menu_figure,
    monitor_figure,
    prediction_figure,
    pressure_figure,
    tokens_figure,
)
from fairlead.reports.pressure import pressure_series, smooth


def test_menu_bars_are_the_uptakes_with_their_intervals_coloured_by_verdict(make):
    menu, plan = make.menu(), make.plan()
    figure = menu_figure(menu, plan, top=8)
    bars = [t for t in figure.data if t.xaxis != "x2"]
    found = {
        y: (x, x - low, x + high, t.name)
        for t in bars
        for x, y, low, high in zip(t.x, t.y, t.error_x.arrayminus, t.error_x.array, strict=True)
    }
    assert sorted(found) == list(range(8))
    for i, line in enumerate(menu.lines[:8]):
        assert found[i][:3] == pytest.approx((line.uptake, *line.interval))
        assert found[i][3] == plan.decisions[i].verdict
    surprise = {y: x for t in figure.data if t.xaxis == "x2" for x, y in zip(t.x, t.y, strict=True)}
    assert surprise == {i: line.surprise for i, line in enumerate(menu.lines[:8])}


def test_two_concepts_with_one_label_stay_two_bars(make):
    figure = menu_figure(make.menu(labels=(("same", "keep"), ("same", "keep"))))
    assert sum(len(t.x) for t in figure.data if t.xaxis != "x2") == 2


def test_unstable_lines_are_hatched(make):
    figure = menu_figure(make.menu())
    shapes = figure.data[0].marker.pattern.shape
    assert shapes[0] == "" and shapes[-1] == "/"


def test_nothing_to_show_gives_no_figure(make):
    assert menu_figure(make.menu(lines=())) is None
    assert tokens_figure(make.menu(baseline=())) is None
    assert prediction_figure(()) is None
    assert pressure_figure(make.comparison(steps=0)) is None
    bare = make.comparison(seeds=(0,))
    bare = bare.model_copy(
        update={
            "arms": tuple(
                r.model_copy(update={"verification": r.verification.model_copy(update={"measures": {}})})
                for r in bare.arms
            )
        }
    )
    assert arms_figure(bare) is None
    assert monitor_figure(make.comparison(), "no such trait") is None


def test_arms_are_means_of_their_seeds(make):
    comparison = make.comparison()
    figure = arms_figure(comparison)
    large = {t.name: (t.x[0], t.y[0]) for t in figure.data if t.marker.size == 14}
    for name in comparison.arm_names():
        leak = np.mean(
            [
                max(a, b)
                for a, b in zip(
                    comparison.values(name, "leak.pirate.domain"),
                    comparison.values(name, "leak.pirate.neutral"),
                    strict=True,
                )
            ]
        )
        assert large[name] == pytest.approx((leak, np.mean(comparison.values(name, "skill.addition.plain"))))
    assert "start model" in large
    seeds = [t for t in figure.data if t.marker.size == 7]
    assert [len(t.x) for t in seeds] == [3] * 5


def test_the_goal_corner_is_where_the_kept_share_is_reached(make):
    comparison = make.comparison()
    summary = summarize(comparison)
    start = comparison.base.measures
    gain = np.mean(comparison.values("plain", "skill.addition")) - start["skill.addition"].value
    assert goal_floor(summary, Goals()) == pytest.approx(start["skill.addition.plain"].value + 0.95 * gain)


def test_pressure_is_summed_over_concepts_of_a_kind_and_averaged_over_seeds(make):
    def steps(*values):
        return [StepRecord(step=i, loss=1.0, seconds=0.1, pressure=v) for i, v in enumerate(values)]

    runs = [
        ("a", steps({"c0": 1.0, "c3": 2.0, "c1": 5.0, "zz": 7.0}, {"c0": 1.0})),
        ("a", steps({"c0": 3.0, "c3": math.nan}, {"c0": 3.0, "avoid.1": 1.0})),
    ]
    series = pressure_series(runs, make.plan())
    assert series == {
        "avoid": {"a": ([0, 1], [3.0, 2.5])},
        "keep": {"a": ([0], [5.0])},
        "other": {"a": ([0], [7.0])},
    }


def test_smoothing_keeps_a_constant_and_forgets_by_half_lives():
    assert smooth([2.0] * 9, half_life=3) == pytest.approx([2.0] * 9)
    late = smooth([0.0] * 200 + [1.0] * 5, half_life=5)
    assert late[-1] == pytest.approx(0.5)


def test_mean_predictions_average_over_seeds(make):
    comparison = make.comparison(arms=("plain",))
    merged, correlation = mean_predictions(comparison, "plain")
    values = [r.verification.predictions[2].measured for r in comparison.arms]
    assert merged[2].measured == pytest.approx(np.mean(values)) and correlation > 0.9
    assert mean_predictions(comparison, "none")[0] == ()


def test_prediction_axes_label_true_values(make):
    points = tuple(
        Prediction(concept=str(i), label="x", predicted=p, measured=-p)
        for i, p in enumerate((-0.04, 0.0, 0.01, 0.09, math.nan))
    )
    figure = prediction_figure(points)
    assert sorted(figure.data[0].x) == pytest.approx([-0.2, 0.0, 0.1, 0.3])
    for place, shown in zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True):
        assert math.copysign(place * place, place) == pytest.approx(float(shown.replace("\u2212", "-")))


def test_monitor_bars_are_the_measures(make):
    comparison = make.comparison()
    figure = monitor_figure(comparison, "pirate")
    old = next(t for t in figure.data if t.name == "old probe")
    assert old.y[0] == comparison.base.measures["monitor.pirate.old_probe"].value
    assert old.y[1] == pytest.approx(np.mean(comparison.values("plain", "monitor.pirate.old_probe")))
    assert len(dictionary_figure(comparison).data[0].y) == 6


def test_hostile_labels_are_escaped_for_plotly(make):
    figure = menu_figure(make.menu(labels=(("<a href='javascript:x'>hi</a>", "keep"),)))
    assert "<a" not in figure.to_json().replace("\\u003c", "<")


@pytest.mark.parametrize("ground", ["light", "dark"])
def test_colours_stand_out_from_their_ground(ground):
    def shown(colour):
        return palette.DARK[colour] if ground == "dark" else colour

    back = shown(palette.GROUND)
    for colour in (palette.TEXT, palette.MUTED, *palette.VERDICTS.values(), *palette.ARMS):
        least = 3.0 if colour == palette.VERDICTS["ignore"] else 4.5  # "ignore" is never used for text
        assert palette.contrast(shown(colour), back) >= least, f"{shown(colour)} on {back}"
    styles = [palette.arm_style(i) for i in range(8)]
    assert all(a != b for pair in itertools.combinations(styles, 2) for a, b in zip(*pair, strict=True))
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_kept_concepts_have_a_line_of_their_own():
    steps = [
        StepRecord(step=i, loss=1.0, seconds=0.1, pressure={"avoid.1": 0.2}, kept={"c1": 0.1 * i, "c2": 0.3})
        for i in (1, 2)
    ]
    series = pressure_series([("arm", steps)])
    assert series["avoid"]["arm"] == ([1, 2], [0.2, 0.2])
    assert series["keep"]["arm"][1] == pytest.approx([0.4, 0.5])
