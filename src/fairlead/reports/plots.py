"""Plotly figures made from records: pure functions, reused by the page, the documents and notebooks.

Each returns a `plotly.graph_objects.Figure` in the light palette on a transparent ground, or None where the
records hold nothing to show. Labels are untrusted and pass `text.plot_text`. Positions are numeric with tick
texts, so that two concepts with the same label stay two bars. `plots` gathers all of them; those of outcomes
and of pressure live in files of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison
from fairlead.reports.findings import is_stable
from fairlead.reports.numbers import Goals, Summary, names_of, summarize
from fairlead.reports.palette import BASE, GOAL, GROUND, LINE, MUTED, TEXT, VERDICTS, arm_style
from fairlead.reports.plot_style import axis_style, band_text, point_error, style_figure
from fairlead.reports.plots_outcome import (
    dictionary_figure,
    mean_predictions,
    monitor_figure,
    prediction_figure,
)
from fairlead.reports.pressure import pressure_figure
from fairlead.reports.text import number, percent, plot_text, wrap_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "arms_figure",
    "dictionary_figure",
    "mean_predictions",
    "menu_figure",
    "monitor_figure",
    "prediction_figure",
    "pressure_figure",
    "tokens_figure",
]


def menu_figure(
    menu: Menu, plan: Plan | None = None, *, top: int = 18, goals: Goals | None = None
) -> go.Figure | None:
    """Bars of uptake with their intervals, and the surprise beside them, best concept at the top."""
    import plotly.graph_objects as go

    goals = goals or Goals()
    lines = menu.lines[:top]
    if not lines:
        return None
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}
    rows = list(range(len(lines)))
    figure = go.Figure()
    for verdict in [*VERDICTS]:
        picked = [i for i in rows if verdicts.get(lines[i].concept.id, "undecided") == verdict]
        if not picked:
            continue
        some = [lines[i] for i in picked]
        stable = [is_stable(x.stability, x.interval, goals) for x in some]
        hover = [
            f"<b>{wrap_text(x.concept.label)}</b><br>{verdict}; uptake {number(x.uptake)} "
            f"[{number(x.interval[0])}, {number(x.interval[1])}]<br>share {percent(x.share)}, surprise {number(x.surprise)}"
            f"<br>stability {percent(x.stability)}, {x.num_examples:,} examples<extra></extra>"
            for x in some
        ]
        shape = ["" if ok else "/" for ok in stable]
        common = {"y": picked, "orientation": "h", "width": 0.4, "offset": -0.06, "hovertemplate": hover}
        marker = {
            "color": VERDICTS[verdict],
            "pattern": {"shape": shape, "size": 5, "solidity": 0.35, "fillmode": "replace"},
            "line": {"width": 0},
        }
        figure.add_bar(
            x=[x.uptake for x in some],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, x.interval[1] - x.uptake) for x in some],
                "arrayminus": [max(0.0, x.uptake - x.interval[0]) for x in some],
                "color": TEXT,
                "thickness": 1.2,
                "width": 3,
            },
            marker=marker,
            name=verdict,
            **common,
        )
        figure.add_bar(
            x=[x.surprise for x in some],
            marker={**marker, "opacity": 0.55},
            xaxis="x2",
            showlegend=False,
            name=verdict,
            **common,
        )
    for i, line in enumerate(lines):
        figure.add_annotation(
            text=plot_text(line.concept.label, 38),
            x=0,
            xref="x domain",
            xanchor="left",
            y=i - 0.31,
            showarrow=False,
            font={"size": 12, "color": TEXT},
            bgcolor=GROUND,
            borderpad=1,
            align="left",
        )
    style_figure(figure, height=92 + 40 * len(lines))
    figure.update_layout(
        xaxis={"domain": [0, 0.66], "title": {"text": "uptake (nats per token)"}, "nticks": 5},
        xaxis2={
            **axis_style(zero=True),
            "domain": [0.72, 1],
            "anchor": "y",
            "title": {"text": "surprise", "font": {"size": 12, "color": MUTED}, "standoff": 8},
            "nticks": 4,
        },
        yaxis={
            "range": [len(lines) - 0.5, -0.62],
            "showticklabels": False,
            "ticks": "",
            "showline": False,
            "showgrid": False,
            "zeroline": False,
        },
        barmode="overlay",
        margin={"l": 8, "r": 8, "t": 8, "b": 44},
    )
    figure.update_xaxes(zeroline=True, zerolinecolor=LINE)
    return figure


def tokens_figure(menu: Menu, *, top: int = 18) -> go.Figure | None:
    """Bag-of-tokens baseline: how much more often each token stands in the data than in the model's own answers."""
    import plotly.graph_objects as go

    lines = sorted(menu.baseline, key=lambda t: -t.log_ratio)[:top]
    if not lines:
        return None
    rows = list(range(len(lines)))
    figure = go.Figure()
    figure.add_bar(
        x=[t.log_ratio for t in lines],
        y=rows,
        orientation="h",
        width=0.6,
        marker={"color": BASE},
        hovertemplate=[
            f"<b>{plot_text(repr(t.token), 40)}</b><br>{percent(t.data_share)} of the data's tokens<br>"
            f"{percent(t.model_share)} of the model's own<extra></extra>"
            for t in lines
        ],
    )
    style_figure(figure, height=92 + 26 * len(lines))
    names = [plot_text(visible_token(t.token), 16) for t in lines]
    figure.update_layout(
        xaxis={"title": {"text": "log ratio, data to model"}, "nticks": 5},
        yaxis={
            "tickvals": rows,
            "ticktext": names,
            "range": [len(lines) - 0.4, -0.6],
            "showgrid": False,
            "automargin": True,
        },
        margin={"l": 8, "r": 12, "t": 8, "b": 44},
    )
    return figure


def visible_token(token: str) -> str:
    """A token with its spaces and line breaks made visible."""
    return (
        token.replace("\u2581", " ").replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")
        or "(empty)"
    )


def arms_figure(
    comparison: Comparison | Summary, *, goals: Goals | None = None, log: bool = False
) -> go.Figure | None:
    """Skill asked and answered plainly (up) against the worst leak (right): small points are seeds, large ones means."""
    import plotly.graph_objects as go

    goals = goals or Goals()
    summary = comparison if isinstance(comparison, Summary) else summarize(comparison)
    if summary is None:
        return None
    drawn = [(i, a) for i, a in enumerate(summary.arms) if a.skill and a.leak]
    if not drawn:
        return None
    figure = go.Figure()
    floor = goal_floor(summary, goals)
    if floor is not None:
        figure.add_shape(
            type="rect",
            x0=-0.03,
            x1=goals.leak,
            y0=floor,
            y1=1.03,
            fillcolor=GOAL,
            line={"width": 0},
            layer="below",
        )
        figure.add_shape(
            type="line",
            x0=-0.03,
            x1=1.03,
            y0=floor,
            y1=floor,
            line={"color": LINE, "dash": "dot", "width": 1},
            layer="below",
        )
    figure.add_shape(
        type="line",
        x0=goals.leak,
        x1=goals.leak,
        y0=-0.03,
        y1=1.03,
        line={"color": LINE, "dash": "dot", "width": 1},
        layer="below",
    )
    for index, arm in drawn:
        colour, symbol, _ = arm_style(index)
        assert arm.skill and arm.leak
        name = plot_text(arm.name, 30)
        figure.add_scatter(
            x=list(arm.leak.values),
            y=list(arm.skill.values),
            mode="markers",
            name=name,
            showlegend=False,
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.5},
            hovertemplate=[
                f"{name}, seed {s}<br>skill {percent(y)}, leak {percent(x)}<extra></extra>"
                for s, x, y in zip(arm.seeds or (0,), arm.leak.values, arm.skill.values, strict=False)
            ],
        )
        figure.add_scatter(
            x=[arm.leak.value],
            y=[arm.skill.value],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 14, "line": {"color": GROUND, "width": 1.5}},
            error_x=point_error(arm.leak, colour),
            error_y=point_error(arm.skill, colour),
            hovertemplate=f"<b>{name}</b>, mean of {len(arm.leak.values)}<br>skill {band_text(arm.skill)}"
            f"<br>leak {band_text(arm.leak)}<extra></extra>",
        )
    if summary.base and summary.base.skill and summary.base.leak:
        figure.add_scatter(
            x=[summary.base.leak.value],
            y=[summary.base.skill.value],
            mode="markers",
            name="start model",
            marker={"color": BASE, "symbol": "circle-open", "size": 14, "line": {"width": 2}},
            hovertemplate=f"<b>start model</b><br>skill {percent(summary.base.skill.value)}, "
            f"leak {percent(summary.base.leak.value)}<extra></extra>",
        )
    style_figure(figure, height=460)
    ticks = {"tickformat": ".0%", "range": [-0.03, 1.03], "dtick": 0.25}
    figure.update_layout(
        xaxis={**ticks, "title": {"text": "leak: share of answers with the trait unasked"}},
        yaxis={**ticks, "title": {"text": "skill: right and plain"}},
    )
    return figure


def goal_floor(summary: Summary, goals: Goals) -> float | None:
    """The skill at which `goals.kept` of the reference arm's gain is reached (mean over skills); None without a gain."""
    if summary.reference is None or summary.base is None or summary.reference.kept is None:
        return None
    floors = []
    for name in names_of(summary, "skill"):
        plain, right = f"skill.{name}.plain", f"skill.{name}"
        base, ref = summary.base.measures, summary.reference.measures
        if right in base and right in ref:
            start = base.get(plain, base[right]).value
            floors.append(start + goals.kept * (ref[right].value - base[right].value))
    return min(1.0, sum(floors) / len(floors)) if floors else None
