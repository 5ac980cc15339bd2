"""SVG pictures: well-formed, deterministic, escaped, true to the numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from fairlead.core.errors import ConfigError
from fairlead.core.results import Checkup
from fairlead.reports import arms_svg, curves_svg, menu_svg, render_report, save_svg
from fairlead.reports.curves import curves
from fairlead.reports.numbers import summarize

NS = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script>&\x00"


def test_the_arms_picture_holds_every_arm_and_seed(make):
    text = arms_svg(make.comparison(), title="A & B")
    root = ElementTree.fromstring(text)
    words = {t.text for t in root.iter(f"{NS}text")}
    assert {"A & B", "start model", *make.arms} <= words
    assert len([p for p in root.iter(f"{NS}path") if "seed" in p.get("class", "")]) == 15
    assert text == arms_svg(make.comparison(), title="A & B")


def test_the_menu_picture_places_bars_by_uptake(make):
    menu = make.menu()
    root = ElementTree.fromstring(menu_svg(menu, make.plan(), top=6))
    bars = [r for r in root.iter(f"{NS}rect") if r.get("height") == "17"]
    widths = [float(b.get("width")) for b in bars]
    scale = widths[0] / menu.lines[0].uptake
    assert widths == pytest.approx([abs(x.uptake) * scale for x in menu.lines[:6]], abs=0.15)
    assert [b.get("class").split()[0] for b in bars] == [v for _, v in make.labels[:6]]


def test_hostile_labels_stay_text(make, tmp_path):
    labels = ((HOSTILE, "keep"), ("b", "avoid"))
    root = ElementTree.fromstring(menu_svg(make.menu(labels=labels), make.plan(labels=labels), title=HOSTILE))
    assert not list(root.iter(f"{NS}script")) and not list(root.iter("script"))
    results = tuple(r.model_copy(update={"arm": HOSTILE}) for r in make.comparison(arms=("plain",)).arms)
    path = save_svg(tmp_path / "a.svg", arms_svg(make.comparison().model_copy(update={"arms": results})))
    assert not [e for e in ElementTree.parse(path).iter() if e.tag.endswith("script")]


def test_single_seed_and_empty_input(make):
    assert "no interval" in arms_svg(make.comparison(seeds=(0,), arms=("plain",)))
    with pytest.raises(ConfigError, match="no lines"):
        menu_svg(make.menu(lines=()))
    with pytest.raises(ConfigError, match="no arm"):
        arms_svg(make.comparison(arms=()))


def with_checkups(comparison, steps=(100, 300, 1000)):
    """Checkups that rise to the final measures."""

    def checkup(arm, step):
        part = step / steps[-1]
        measures = {
            name: m.model_copy(update={"value": m.value * (1 if name.startswith("loss") else part)})
            for name, m in arm.verification.measures.items()
        }
        return Checkup(step=step, measures=measures)

    arms = tuple(
        a.model_copy(update={"checkups": tuple(checkup(a, s) for s in steps)}) for a in comparison.arms
    )
    return comparison.model_copy(update={"arms": arms})


def test_learning_curves_end_where_the_table_does(make):
    found = with_checkups(make.comparison())
    final = {arm.name: arm for arm in summarize(make.comparison()).arms}
    lines = curves(found)
    for name in ("skill", "leak", "neutral"):
        for arm, line in lines[name].items():
            assert [step for step, _ in line] == [100, 300, 1000]
            assert line[-1][1].value == pytest.approx(getattr(final[arm], name).value)
    assert lines["skill"]["plain"][0][1].value == pytest.approx(0.1 * final["plain"].skill.value)
    root = ElementTree.fromstring(curves_svg(found, title="A & B", names={"plain": "plain fine-tuning"}))
    words = {t.text for t in root.iter(f"{NS}text")}
    assert {"A & B", "plain fine-tuning", "1,000", *set(make.arms) - {"plain"}} <= words
    assert len(list(root.iter(f"{NS}polyline"))) == 3 * len(make.arms)
    assert 'id="curves"' in render_report(comparison=found)
    assert 'id="curves"' not in render_report(comparison=make.comparison())
    with pytest.raises(ConfigError, match="--verify-at"):
        curves_svg(make.comparison())
