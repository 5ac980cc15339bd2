"""Plotly figures made from records: pure functions, reused by the page, the documents and notebooks.

Each returns a `plotly.graph_objects.Figure` in the light palette on a transparent ground, or None where the records hold
nothing to show. Labels are untrusted and pass `text.plot_text`. Positions are numeric with tick texts, so that two
concepts with the same label stay two bars.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison, Prediction
from fairlead.core.stats import spearman
from fairlead.reports.findings import is_stable
from fairlead.reports.numbers import Arm, Cell, Goals, Summary, names_of, summarize
from fairlead.reports.palette import BASE, GOAL, GRID, GROUND, LINE, MUTED, TEXT, VERDICTS, arm_style
from fairlead.reports.text import number, percent, plot_text, shorten, wrap_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


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
                "color": MUTED,
                "thickness": 1.4,
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
            align="left",
        )
    _style(figure, height=92 + 40 * len(lines), legend=False)
    figure.update_layout(
        xaxis={"domain": [0, 0.66], "title": {"text": "uptake (nats per token)"}, "nticks": 5},
        xaxis2={
            "domain": [0.72, 1],
            "anchor": "y",
            "title": {"text": "surprise"},
            "nticks": 4,
            **_axis(zero=True),
        },
        yaxis={
            "range": [len(lines) - 0.5, -0.62],
            "showticklabels": False,
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
    _style(figure, height=92 + 26 * len(lines), legend=False)
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


def pressure_series(
    comparison: Comparison, plan: Plan | None = None
) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Summed pressure per kind ("avoid", "keep", "other") and arm: steps and mean over seeds, not smoothed.

    A key is a concept id (its verdict comes from the plan) or a clause id ("avoid.1").
    """
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}

    def kind_of(key: str) -> str:
        word = verdicts.get(key) or key.partition(".")[0]
        return word if word in ("avoid", "keep") else "other"

    table: dict[str, dict[str, dict[int, list[float]]]] = {}
    for result in comparison.arms:
        for record in result.steps:
            sums: dict[str, float] = {}
            for key, value in record.pressure.items():
                if np.isfinite(value):
                    sums[kind_of(key)] = sums.get(kind_of(key), 0.0) + value
            for kind, value in sums.items():
                table.setdefault(kind, {}).setdefault(result.arm, {}).setdefault(record.step, []).append(
                    value
                )
    return {
        kind: {
            arm: (sorted(steps), [float(np.mean(steps[s])) for s in sorted(steps)])
            for arm, steps in arms.items()
        }
        for kind, arms in table.items()
    }


def smooth(values: list[float], *, half_life: float) -> list[float]:
    """Exponential moving average with the start-up bias divided out (Kingma and Ba 2015, section 3)."""
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def pressure_figure(
    comparison: Comparison, plan: Plan | None = None, *, kind: str = "avoid"
) -> go.Figure | None:
    """Smoothed pressure over steps, one line per arm."""
    import plotly.graph_objects as go

    series = pressure_series(comparison, plan).get(kind, {})
    if not series:
        return None
    figure = go.Figure()
    for index, arm in enumerate(comparison.arm_names()):
        if arm not in series:
            continue
        steps, values = series[arm]
        colour, _, dash = arm_style(index)
        figure.add_scatter(
            x=steps,
            y=smooth(values, half_life=max(1.0, len(values) / 30)),
            mode="lines" if len(steps) > 1 else "markers",
            name=plot_text(arm, 30),
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate=f"{plot_text(arm, 30)}, step %{{x}}: %{{y:.3g}}<extra></extra>",
        )
    _style(figure, height=300, legend=False)
    figure.update_layout(
        xaxis={"title": {"text": "training step"}}, yaxis={"title": {"text": "pressure"}, "nticks": 6}
    )
    figure.update_yaxes(zeroline=True, zerolinecolor=LINE)
    return figure


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
            error_x=_error(arm.leak, colour),
            error_y=_error(arm.skill, colour),
            hovertemplate=f"<b>{name}</b>, mean of {len(arm.leak.values)}<br>skill {_band(arm.skill)}<br>leak {_band(arm.leak)}<extra></extra>",
        )
    if summary.base and summary.base.skill and summary.base.leak:
        figure.add_scatter(
            x=[summary.base.leak.value],
            y=[summary.base.skill.value],
            mode="markers",
            name="start model",
            marker={"color": BASE, "symbol": "circle-open", "size": 14, "line": {"width": 2}},
            hovertemplate=f"<b>start model</b><br>skill {percent(summary.base.skill.value)}, leak {percent(summary.base.leak.value)}<extra></extra>",
        )
    _style(figure, height=460, legend=False)
    ticks = {"tickformat": ".0%", "range": [-0.03, 1.03], "dtick": 0.25}
    figure.update_layout(
        xaxis={**ticks, "title": {"text": "leak: share of answers with the trait unasked"}},
        yaxis={**ticks, "title": {"text": "skill: right and plain"}},
    )
    return figure


def goal_floor(summary: Summary, goals: Goals) -> float | None:
    """The skill at which `goals.kept` of the reference arm's gain is reached (mean over skills); None without a reference."""
    if summary.reference is None or summary.base is None:
        return None
    floors = []
    for name in names_of(summary, "skill"):
        plain, right = f"skill.{name}.plain", f"skill.{name}"
        base, ref = summary.base.measures, summary.reference.measures
        if right in base and right in ref:
            start = base.get(plain, base[right]).value
            floors.append(start + goals.kept * (ref[right].value - base[right].value))
    return min(1.0, float(np.mean(floors))) if floors else None


def prediction_figure(predictions: tuple[Prediction, ...], *, top_labels: int = 4) -> go.Figure | None:
    """Uptake on the menu against the measured change, one point per concept; both axes in signed square roots."""
    import plotly.graph_objects as go

    good = [p for p in predictions if np.isfinite(p.predicted) and np.isfinite(p.measured)]
    if not good:
        return None
    xs, ys = _root([p.predicted for p in good]), _root([p.measured for p in good])
    figure = go.Figure()
    symbols = {"keep": "circle", "avoid": "diamond", "ignore": "circle-open", "undecided": "square-open"}
    for verdict, colour in VERDICTS.items():
        picked = [
            i for i, p in enumerate(good) if (p.verdict if p.verdict in VERDICTS else "undecided") == verdict
        ]
        if picked:
            figure.add_scatter(
                x=[xs[i] for i in picked],
                y=[ys[i] for i in picked],
                mode="markers",
                name=verdict,
                marker={
                    "color": colour,
                    "symbol": symbols[verdict],
                    "size": 10 if verdict in ("keep", "avoid") else 7,
                },
                hovertemplate=[
                    f"<b>{wrap_text(good[i].label)}</b><br>{verdict}; predicted {number(good[i].predicted)}, "
                    f"measured {number(good[i].measured)}<extra></extra>"
                    for i in picked
                ],
            )
    marked = sorted(
        (i for i, p in enumerate(good) if p.verdict in ("keep", "avoid")), key=lambda i: -abs(xs[i])
    )[:top_labels]
    wide = max(xs) - min(xs) or 1.0
    for i in marked:
        right = xs[i] - min(xs) > 0.55 * wide
        figure.add_annotation(
            x=xs[i],
            y=ys[i],
            text=plot_text(good[i].label, 22),
            showarrow=False,
            xanchor="right" if right else "left",
            xshift=-9 if right else 9,
            font={"size": 11, "color": MUTED},
        )
    _style(figure, height=340, legend=False)
    figure.update_layout(
        xaxis={
            "title": {"text": "predicted: uptake on the menu"},
            **_root_ticks([p.predicted for p in good]),
        },
        yaxis={"title": {"text": "measured change"}, **_root_ticks([p.measured for p in good])},
    )
    figure.update_xaxes(zeroline=True, zerolinecolor=LINE)
    figure.update_yaxes(zeroline=True, zerolinecolor=LINE)
    return figure


def mean_predictions(comparison: Comparison, arm: str) -> tuple[tuple[Prediction, ...], float]:
    """Predictions of an arm averaged over its seeds by concept, and the Spearman correlation of those means (nan below 3)."""
    found: dict[str, list[Prediction]] = {}
    for result in comparison.arms:
        if result.arm == arm:
            for p in result.verification.predictions:
                found.setdefault(p.concept, []).append(p)
    merged = tuple(
        ps[0].model_copy(
            update={
                "predicted": float(np.mean([p.predicted for p in ps])),
                "measured": float(np.mean([p.measured for p in ps])),
            }
        )
        for ps in found.values()
    )
    return merged, spearman([p.predicted for p in merged], [p.measured for p in merged])


def monitor_figure(comparison: Comparison | Summary, trait: str) -> go.Figure | None:
    """Grouped bars per arm: AUROC of the old probe, of a retrained one, and of the text alone."""
    import plotly.graph_objects as go

    summary = comparison if isinstance(comparison, Summary) else summarize(comparison)
    if summary is None:
        return None
    columns = [a for a in (summary.base, *summary.arms) if a is not None]
    figure = go.Figure()
    kinds = (
        ("old_probe", "old probe", "#1f62c4", ""),
        ("new_probe", "retrained probe", "#0b7a6b", "."),
        ("text_only", "text only", BASE, "/"),
    )
    for place, (kind, word, colour, pattern) in enumerate(kinds):
        cells = [a.measures.get(f"monitor.{trait}.{kind}") for a in columns]
        if not any(cells):
            continue
        figure.add_bar(
            x=[i + 0.27 * (place - 1) for i in range(len(columns))],
            y=[c.value if c else None for c in cells],
            width=0.24,
            name=word,
            marker={"color": colour, "pattern": {"shape": pattern, "fgopacity": 0.6, "size": 6}},
            error_y=_errors(cells),
            hovertemplate=[
                f"{plot_text(a.name, 30)}, {word}: {_band(c, share=False)}<extra></extra>"
                for a, c in zip(columns, cells, strict=True)
            ],
        )
    if not figure.data:
        return None
    _style(figure, height=330, legend=False)
    figure.add_hline(y=0.5, line={"color": MUTED, "dash": "dot", "width": 1})
    figure.update_layout(
        xaxis={**_arm_ticks(columns), "showgrid": False},
        yaxis={"title": {"text": "AUROC"}, "range": [0, 1.04], "dtick": 0.25},
    )
    return figure


def dictionary_figure(comparison: Comparison | Summary) -> go.Figure | None:
    """Share of variance that the start model's dictionary leaves unexplained, per arm (lower is better)."""
    import plotly.graph_objects as go

    summary = comparison if isinstance(comparison, Summary) else summarize(comparison)
    if summary is None:
        return None
    columns = [a for a in (summary.base, *summary.arms) if a and "monitor.dictionary.fvu" in a.measures]
    if not columns:
        return None
    cells = [a.measures["monitor.dictionary.fvu"] for a in columns]
    recovered = [a.measures.get("monitor.dictionary.ce_recovered") for a in columns]
    figure = go.Figure()
    figure.add_bar(
        x=list(range(len(columns))),
        y=[c.value for c in cells],
        width=0.55,
        marker={"color": "#7b3fb0"},
        error_y=_errors(cells),
        hovertemplate=[
            f"{plot_text(a.name, 30)}: FVU {_band(c, share=False)}"
            + (f"<br>cross-entropy recovered {percent(r.value)}" if r else "")
            + "<extra></extra>"
            for a, c, r in zip(columns, cells, recovered, strict=True)
        ],
    )
    _style(figure, height=330, legend=False)
    top = max([c.value for c in cells] + [c.high for c in cells if np.isfinite(c.high)])
    figure.update_layout(
        xaxis={**_arm_ticks(columns), "showgrid": False},
        yaxis={
            "title": {"text": "variance unexplained (FVU)"},
            "range": [0, max(0.1, 1.12 * top)],
            "nticks": 6,
        },
    )
    return figure


def _arm_ticks(columns: list[Arm]) -> dict:
    return {
        "tickvals": list(range(len(columns))),
        "ticktext": [plot_text(shorten(a.name.replace("_", " "), 20), 20) for a in columns],
        "range": [-0.6, len(columns) - 0.4],
        "automargin": True,
    }


def _error(cell: Cell, colour: str) -> dict | None:
    if not (np.isfinite(cell.low) and np.isfinite(cell.high)):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [cell.high - cell.value],
        "arrayminus": [cell.value - cell.low],
        "color": colour,
        "thickness": 1.4,
        "width": 4,
    }


def _errors(cells: list[Cell | None]) -> dict:
    def side(cell: Cell | None, name: str) -> float:
        edge = getattr(cell, name, float("nan")) if cell else float("nan")
        return abs(edge - cell.value) if cell and np.isfinite(edge) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [side(c, "high") for c in cells],
        "arrayminus": [side(c, "low") for c in cells],
        "color": MUTED,
        "thickness": 1.4,
        "width": 3,
    }


def _band(cell: Cell | None, *, share: bool = True) -> str:
    if cell is None:
        return "not measured"
    form = percent if share else number
    span = (
        f" [{form(cell.low)}, {form(cell.high)}]" if np.isfinite(cell.low) and np.isfinite(cell.high) else ""
    )
    return form(cell.value) + span


def _root(values: list[float]) -> list[float]:
    return [float(np.sign(v) * np.sqrt(abs(v))) for v in values]


def _root_ticks(values: list[float]) -> dict:
    """Ticks at round values for an axis that shows signed square roots."""
    top = max(abs(v) for v in values) or 1.0
    step = 10.0 ** np.floor(np.log10(top))
    step *= next(m for m in (1, 2, 5, 10) if m * step * 1.01 >= top / 2)
    ticks = [
        t * step
        for t in (-2, -1, -0.25, 0, 0.25, 1, 2)
        if min(values) - 0.3 * step <= t * step <= max(values) + 0.3 * step
    ]
    return {"tickvals": _root(ticks), "ticktext": [f"{t:.4g}".replace("-", "\u2212") for t in ticks]}


def _axis(*, zero: bool = False) -> dict:
    return {
        "gridcolor": GRID,
        "zeroline": zero,
        "zerolinecolor": LINE,
        "linecolor": LINE,
        "tickcolor": LINE,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"font": {"size": 12, "color": MUTED}, "standoff": 8},
        "fixedrange": True,
    }


def _style(figure: go.Figure, *, height: int, legend: bool) -> None:
    import plotly.graph_objects as go

    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        autosize=True,
        showlegend=legend,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 12, "color": TEXT},
        margin={"l": 56, "r": 14, "t": 12, "b": 48},
        hoverlabel={
            "bgcolor": GROUND,
            "bordercolor": LINE,
            "font": {"color": TEXT, "size": 12},
            "align": "left",
        },
        hovermode="closest",
        dragmode=False,
        xaxis=_axis(),
        yaxis=_axis(),
    )
