"""Small hand-made SVG pictures for README and documents: arms as skill against leak, and the menu.

Same numbers as the plots of the page, laid out here and drawn by a jinja2 template: no browser, no plotly, and the same
bytes for the same records. They follow the reader's light or dark preference where the viewer supports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.core.errors import ConfigError
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison
from fairlead.core.run import atomic_path
from fairlead.reports import palette
from fairlead.reports.curves import CURVES, curves
from fairlead.reports.findings import is_stable
from fairlead.reports.html import environment
from fairlead.reports.numbers import Cell, Goals, summarize
from fairlead.reports.plots import goal_floor
from fairlead.reports.text import number, percent, shorten


class Box(NamedTuple):
    """A plot area in pixels; `x` and `y` map values to places."""

    left: float
    top: float
    width: float
    height: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """Place of a value on the horizontal axis."""
        return round(self.left + self.width * (value - self.low) / (self.high - self.low), 1)

    def y(self, value: float) -> float:
        """Place of a value on the vertical axis (upwards)."""
        return round(self.top + self.height * (1 - (value - self.low) / (self.high - self.low)), 1)


def arms_svg(comparison: Comparison, *, title: str = "", goals: Goals | None = None) -> str:
    """SVG text of skill (up) against leak (right): small points are seeds, large ones means with 95 % intervals.

    Raises:
        ConfigError: No arm has both a skill and a leak measure.
    """
    goals = goals or Goals()
    summary = summarize(comparison)
    drawn = [(i, a) for i, a in enumerate(summary.arms) if a.skill and a.leak] if summary else []
    if summary is None or not drawn:
        raise ConfigError(
            "arms_svg: no arm has both a skill and a leak measure. Next: verify the arms with a suite that has both."
        )
    box = Box(74, 52 if title else 24, 420, 340, -0.04, 1.04)
    points: list[dict[str, Any]] = []
    for index, arm in drawn:
        assert arm.skill and arm.leak
        points.append(
            {
                "name": shorten(arm.name, 26),
                "detail": f"skill {percent(arm.skill.value)}, leak {percent(arm.leak.value)}",
                "style": index % len(palette.ARMS),
                "mark": mark_path(index, box.x(arm.leak.value), box.y(arm.skill.value), 8),
                "seeds": [
                    mark_path(index, box.x(x), box.y(y), 4)
                    for x, y in zip(arm.leak.values, arm.skill.values, strict=False)
                ],
                "across": _span(arm.leak, box.x),
                "up": _span(arm.skill, box.y),
                "x": box.x(arm.leak.value),
                "y": box.y(arm.skill.value),
                "intended": arm.role == "intended",
            }
        )
    base = None
    if summary.base and summary.base.skill and summary.base.leak:
        base = {
            "x": box.x(summary.base.leak.value),
            "y": box.y(summary.base.skill.value),
            "detail": f"skill {percent(summary.base.skill.value)}, leak {percent(summary.base.leak.value)}",
        }
    floor = goal_floor(summary, goals)
    rows = len(points) + (base is not None)
    return (
        environment()
        .get_template("arms.svg")
        .render(
            box=box,
            title=title,
            points=points,
            base=base,
            goal=(box.x(goals.leak), box.y(floor)) if floor is not None else None,
            ticks=[(box.x(t), box.y(t), f"{100 * t:.0f} %") for t in (0, 0.25, 0.5, 0.75, 1)],
            legend=[
                (i, mark_path(p["style"], box.left + box.width + 34, box.top + 12 + 40 * i, 7))
                for i, p in enumerate(points)
            ],
            width=box.left + box.width + 260,
            height=max(box.top + box.height + 58, box.top + 40 * rows + 10),
            num_seeds=max(len(set(a.seeds)) for _, a in drawn),
            palette=palette,
        )
    )


class Panel(NamedTuple):
    """One plot of a row of plots: lines over a logarithmic axis.

    Attributes:
        title: Above it.
        lines: Per name the points (place, value over seeds or repetitions).
        low: Lower end of the vertical axis.
        high: Upper end.
        ticks: Values marked on it.
        unit: How a value reads: a format with one place.
    """

    title: str
    lines: dict[str, list[tuple[float, Cell]]]
    low: float
    high: float
    ticks: Sequence[float]
    unit: str


def curves_svg(comparison: Comparison, *, title: str = "", names: dict[str, str] | None = None) -> str:
    """SVG text of the learning curves: skill, leak and rise of the neutral loss over steps, a line for each arm.

    Args:
        comparison: With checkups.
        title: Above it.
        names: What to call arms in the legend.

    Raises:
        ConfigError: No student was measured while it trained.
    """
    found = curves(comparison)
    if not found:
        raise ConfigError("curves_svg: no checkups. Next: compare with --verify-at.")
    panels = []
    for name, lines in found.items():
        edges = [e for line in lines.values() for _, cell in line for e in (cell.low, cell.high, cell.value)]
        edges = [edge for edge in edges if math.isfinite(edge)]
        low, high = (min(0.0, *edges), max(0.1, *edges)) if name == "neutral" else (-0.04, 1.04)
        ticks = even_ticks(low, high) if name == "neutral" else (0, 0.25, 0.5, 0.75, 1)
        panels.append(
            Panel(CURVES[name], {arm: list(line) for arm, line in lines.items()}, low, high, ticks, "{:.0%}")
        )
    seeds = len({arm.seed for arm in comparison.arms if arm.checkups})
    note = (
        f"training steps; lines: 95 % interval over {seeds} seeds"
        if seeds > 1
        else "training steps; one seed"
    )
    return panels_svg(panels, comparison.arm_names(), title=title, names=names, note=note)


def panels_svg(
    panels: Sequence[Panel],
    order: Sequence[str],
    *,
    title: str = "",
    names: dict[str, str] | None = None,
    note: str = "",
) -> str:
    """SVG text of plots side by side that share their lines' names and their logarithmic axis.

    Args:
        panels: The plots.
        order: Names of the lines; it fixes their colours.
        title: Above all.
        names: What to call lines in the legend.
        note: Below, on the right.
    """
    places = sorted({place for panel in panels for line in panel.lines.values() for place, _ in line})
    drawn = []
    for nth, panel in enumerate(panels):
        box = Box(64 + 310 * nth, 76 if title else 44, 236, 220, panel.low, panel.high)

        def across(place: float, box: Box = box) -> float:
            first, last = math.log(places[0]), math.log(max(places[-1], places[0] * 1.01))
            return round(box.left + 10 + (box.width - 20) * (math.log(place) - first) / (last - first), 1)

        drawn.append(
            {
                "box": box,
                "title": panel.title,
                "rows": [(box.y(tick), panel.unit.format(tick)) for tick in panel.ticks],
                "columns": [(across(place), _count(place)) for place in _spread(places)],
                "lines": [
                    {
                        "name": name,
                        "style": index % len(palette.ARMS),
                        "last": panel.unit.format(panel.lines[name][-1][1].value),
                        "points": " ".join(
                            f"{across(x)},{box.y(cell.value)}" for x, cell in panel.lines[name]
                        ),
                        "marks": [
                            mark_path(index, across(x), box.y(cell.value), 4) for x, cell in panel.lines[name]
                        ],
                        "spans": [
                            (across(x), box.y(cell.low), box.y(cell.high))
                            for x, cell in panel.lines[name]
                            if math.isfinite(cell.low) and math.isfinite(cell.high)
                        ],
                    }
                    for index, name in enumerate(order)
                    if name in panel.lines
                ],
            }
        )
    height, left, legend = drawn[0]["box"].top + 220 + 64, 30.0, []
    for index, name in enumerate(order):
        shown = (names or {}).get(name, name)
        legend.append((left, index % len(palette.ARMS), mark_path(index, left, height - 18, 6), shown))
        left += 40 + 7.2 * len(shown)
    return (
        environment()
        .get_template("curves.svg")
        .render(
            panels=drawn,
            title=title,
            legend=legend,
            width=max(drawn[-1]["box"].left + 236 + 30, left + 6.2 * len(note) + 40),
            height=height,
            note=note,
            palette=palette,
        )
    )


def _count(number: float) -> str:
    """A count as an axis says it: 2,000 or 32M."""
    return f"{number / 1e6:.2g}M" if number >= 1e5 else f"{number:,g}"


def even_ticks(low: float, high: float) -> list[float]:
    """Round values from low to high, some four of them."""
    step = next(
        s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if (high - low) / s <= 5 or s == 5.0
    )
    return [round(i * step, 2) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _spread(places: Sequence[float]) -> list[float]:
    """Places that are far enough apart on a logarithmic axis for a label each."""
    kept: list[float] = []
    for place in places:
        if not kept or place >= 1.9 * kept[-1]:
            kept.append(place)
    return kept


def menu_svg(
    menu: Menu, plan: Plan | None = None, *, top: int = 12, title: str = "", goals: Goals | None = None
) -> str:
    """SVG text of the first lines of a menu: bars of uptake with 95 % intervals, coloured by verdict.

    Raises:
        ConfigError: The menu is empty.
    """
    goals = goals or Goals()
    lines = menu.lines[:top]
    if not lines:
        raise ConfigError("menu_svg: the menu has no lines. Next: preview data that carries a gradient.")
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}
    edges = [v for x in lines for v in (*x.interval, x.uptake, 0.0) if math.isfinite(v)]
    low, high = min(edges), max(edges)
    pad = 0.04 * ((high - low) or 1.0)
    box = Box(300, 52 if title else 20, 380, 30 * len(lines), low - (pad if low < 0 else 0), high + pad)
    bars = []
    for i, line in enumerate(lines):
        start, end = sorted((box.x(0.0), box.x(line.uptake)))
        bars.append(
            {
                "label": shorten(line.concept.label, 36),
                "verdict": verdicts.get(line.concept.id, "undecided"),
                "y": box.top + 30 * i,
                "x": start,
                "width": round(max(end - start, 0.5), 1),
                "low": box.x(line.interval[0]),
                "high": box.x(line.interval[1]),
                "stable": is_stable(line.stability, line.interval, goals),
                "value": number(line.uptake, 2),
            }
        )
    return (
        environment()
        .get_template("menu.svg")
        .render(
            box=box,
            title=title,
            bars=bars,
            zero=box.x(0.0),
            verdicts=[v for v in palette.VERDICTS if any(b["verdict"] == v for b in bars)],
            width=box.left + box.width + 90,
            height=box.top + box.height + 62,
            palette=palette,
        )
    )


def save_svg(path: str | Path, svg: str) -> Path:
    """Write an SVG text to a file, atomically, and return the path.

    Raises:
        RunError: The file cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(svg, "utf-8")
    return path


def _span(cell: Cell, place: Any) -> tuple[float, float] | None:
    """Places of an interval's ends, cut at the possible values 0 and 1."""
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return None
    return place(min(1.0, max(0.0, cell.low))), place(min(1.0, max(0.0, cell.high)))


def mark_path(style: int, x: float, y: float, r: float) -> str:
    """Path of an arm's marker around a point."""
    style %= len(palette.ARMS)
    if style == 0:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if style == 4:  # cross
        s = r / 3
        steps = [
            (-s, -r),
            (s, -r),
            (s, -s),
            (r, -s),
            (r, s),
            (s, s),
            (s, r),
            (-s, r),
            (-s, s),
            (-r, s),
            (-r, -s),
            (-s, -s),
        ]
    elif style == 5:  # star
        steps = _ring(10, r * 1.15, start=-90, inner=0.45)
    else:
        corners, start = {1: (4, 45), 2: (4, 0), 3: (3, -90), 6: (3, 90), 7: (5, -90)}[style]
        steps = _ring(corners, r * (1.2 if corners <= 4 else 1.05), start=start)
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in steps) + "z"


def _ring(corners: int, r: float, *, start: float, inner: float = 1.0) -> list[tuple[float, float]]:
    out = []
    for i in range(corners):
        angle = math.radians(start + 360 * i / corners)
        size = r * (inner if i % 2 else 1.0)
        out.append((size * math.cos(angle), size * math.sin(angle)))
    return out
