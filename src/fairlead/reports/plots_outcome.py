"""Figures of what was measured after training: predictions against measured changes, and monitorability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fairlead.core.results import Comparison, Prediction
from fairlead.core.stats import spearman
from fairlead.reports.numbers import Summary, summarize
from fairlead.reports.palette import BASE, GROUND, LINE, MUTED, VERDICTS
from fairlead.reports.plot_style import (
    arm_ticks,
    band_text,
    bar_errors,
    root_ticks,
    signed_root,
    style_figure,
)
from fairlead.reports.text import number, percent, plot_text, wrap_text

if TYPE_CHECKING:
    import plotly.graph_objects as go


def prediction_figure(predictions: tuple[Prediction, ...], *, top_labels: int = 4) -> go.Figure | None:
    """Uptake on the menu against the measured change, one point per concept; both axes in signed square roots."""
    import plotly.graph_objects as go

    good = [p for p in predictions if np.isfinite(p.predicted) and np.isfinite(p.measured)]
    if not good:
        return None
    xs, ys = signed_root([p.predicted for p in good]), signed_root([p.measured for p in good])
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
    style_figure(figure, height=340)
    figure.update_layout(
        xaxis={
            "title": {"text": "predicted: uptake on the menu"},
            **root_ticks([p.predicted for p in good]),
        },
        yaxis={"title": {"text": "measured change"}, **root_ticks([p.measured for p in good])},
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
            marker={
                "color": colour,
                "pattern": {
                    "shape": pattern,
                    "fillmode": "overlay",
                    "fgcolor": GROUND,
                    "fgopacity": 0.6,
                    "size": 6,
                },
            },
            error_y=bar_errors(cells),
            hovertemplate=[
                f"{plot_text(a.name, 30)}, {word}: {band_text(c, share=False)}<extra></extra>"
                for a, c in zip(columns, cells, strict=True)
            ],
        )
    if not figure.data:
        return None
    style_figure(figure, height=330)
    figure.add_hline(y=0.5, line={"color": MUTED, "dash": "dot", "width": 1})
    figure.update_layout(
        xaxis={**arm_ticks(columns), "showgrid": False},
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
        error_y=bar_errors(cells),
        hovertemplate=[
            f"{plot_text(a.name, 30)}: FVU {band_text(c, share=False)}"
            + (f"<br>cross-entropy recovered {percent(r.value)}" if r else "")
            + "<extra></extra>"
            for a, c, r in zip(columns, cells, recovered, strict=True)
        ],
    )
    style_figure(figure, height=330)
    top = max([c.value for c in cells] + [c.high for c in cells if np.isfinite(c.high)])
    figure.update_layout(
        xaxis={**arm_ticks(columns), "showgrid": False},
        yaxis={
            "title": {"text": "variance unexplained (FVU)"},
            "range": [0, max(0.1, 1.12 * top)],
            "nticks": 6,
        },
    )
    return figure
