"""Pressure over training time: series from step records, smoothing, and their figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fairlead.core.records import Plan
from fairlead.core.results import Comparison, StepRecord
from fairlead.reports.palette import LINE, arm_style
from fairlead.reports.plot_style import style_figure
from fairlead.reports.text import plot_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

Series = dict[str, dict[str, tuple[list[int], list[float]]]]  # kind -> arm -> (steps, mean over seeds)


def pressure_series(
    runs: Comparison | Iterable[tuple[str, Sequence[StepRecord]]], plan: Plan | None = None
) -> Series:
    """Summed pressure per kind ("avoid", "keep", "other") and arm: steps and mean over seeds, not smoothed.

    A key of `StepRecord.pressure` is a concept id (the plan gives its verdict) or a clause id ("avoid.1"); `StepRecord.kept` holds the
    concepts to keep.

    Args:
        runs: A comparison, or (arm, steps) of each training run.
    """
    if isinstance(runs, Comparison):
        runs = [(result.arm, result.steps) for result in runs.arms]
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}

    def kind_of(key: str) -> str:
        word = verdicts.get(key) or key.partition(".")[0]
        return word if word in ("avoid", "keep") else "other"

    table: dict[str, dict[str, dict[int, list[float]]]] = {}
    for arm, steps in runs:
        for record in steps:
            sums: dict[str, float] = {}
            for key, value in record.pressure.items():
                if np.isfinite(value):
                    sums[kind_of(key)] = sums.get(kind_of(key), 0.0) + value
            kept = [value for value in record.kept.values() if np.isfinite(value)]
            if kept:
                sums["keep"] = sums.get("keep", 0.0) + sum(kept)
            for kind, value in sums.items():
                table.setdefault(kind, {}).setdefault(arm, {}).setdefault(record.step, []).append(value)
    return {
        kind: {
            arm: (sorted(at), [float(np.mean(at[step])) for step in sorted(at)]) for arm, at in arms.items()
        }
        for kind, arms in table.items()
    }


def smooth(values: Sequence[float], *, half_life: float) -> list[float]:
    """Exponential moving average with the start-up bias divided out (Kingma and Ba 2015, section 3).

    Args:
        half_life: Number of points after which a value has half its weight.
    """
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def half_life(num_points: int) -> float:
    """The smoothing of the figure: a thirtieth of the points, at least one."""
    return max(1.0, num_points / 30)


def pressure_figure(
    source: Comparison | Series, plan: Plan | None = None, *, kind: str = "avoid", arms: Sequence[str] = ()
) -> go.Figure | None:
    """Smoothed pressure over steps, one line per arm; None where none of that kind was observed.

    Args:
        source: A comparison, or series already made by `pressure_series`.
        arms: Order of the arms (it fixes their colours); the comparison's order by default.
    """
    import plotly.graph_objects as go

    if isinstance(source, Comparison):
        arms, source = arms or source.arm_names(), pressure_series(source, plan)
    lines = source.get(kind, {})
    if not lines:
        return None
    figure = go.Figure()
    for index, arm in enumerate(arms or list(lines)):
        if arm not in lines:
            continue
        steps, values = lines[arm]
        colour, symbol, dash = arm_style(index)
        figure.add_scatter(
            x=steps,
            y=smooth(values, half_life=half_life(len(values))),
            mode="lines+markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "maxdisplayed": 9},
            name=plot_text(arm, 30),
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate=f"{plot_text(arm, 30)}, step %{{x}}: %{{y:.3g}}<extra></extra>",
        )
    style_figure(figure, height=300)
    figure.update_layout(
        xaxis={"title": {"text": "training step"}}, yaxis={"title": {"text": "pressure"}, "nticks": 6}
    )
    figure.update_yaxes(zeroline=True, zerolinecolor=LINE)
    return figure
