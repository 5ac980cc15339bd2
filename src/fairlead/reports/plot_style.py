"""Shared looks of the figures: axes, error bars, tick texts, hover bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.reports.numbers import Arm, Cell
from fairlead.reports.palette import GRID, GROUND, LINE, MUTED, TEXT
from fairlead.reports.text import number, percent, plot_text, shorten

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def style_figure(figure: go.Figure, *, height: int) -> None:
    """Apply the shared looks; call it before setting axes."""
    import plotly.graph_objects as go

    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        autosize=True,
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": TEXT},
        margin={"l": 56, "r": 14, "t": 12, "b": 48},
        hoverlabel={
            "bgcolor": GROUND,
            "bordercolor": LINE,
            "font": {"color": TEXT, "size": 12},
            "align": "left",
        },
        hovermode="closest",
        dragmode=False,
        xaxis=axis_style(),
        yaxis=axis_style(),
    )


def axis_style(*, zero: bool = False) -> dict[str, Any]:
    """Settings shared by all axes."""
    return {
        "gridcolor": GRID,
        "zeroline": zero,
        "zerolinecolor": LINE,
        "linecolor": LINE,
        "tickcolor": LINE,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"font": {"size": 12, "color": MUTED}, "standoff": 8},
        "fixedrange": True,
        "exponentformat": "power",
    }


def point_error(cell: Cell, colour: str) -> dict[str, Any] | None:
    """Error bar of one point; None where there is no interval."""
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


def bar_errors(cells: Sequence[Cell | None]) -> dict[str, Any]:
    """Error bars of a row of bars; none where there is no interval."""

    def side(cell: Cell | None, name: str) -> float:
        edge = getattr(cell, name, float("nan")) if cell else float("nan")
        return abs(edge - cell.value) if cell and np.isfinite(edge) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [side(c, "high") for c in cells],
        "arrayminus": [side(c, "low") for c in cells],
        "color": TEXT,
        "thickness": 1.2,
        "width": 3,
    }


def band_text(cell: Cell | None, *, share: bool = True) -> str:
    """A mean with its interval, for a hover box."""
    if cell is None:
        return "not measured"
    form = percent if share else number
    span = (
        f" [{form(cell.low)}, {form(cell.high)}]" if np.isfinite(cell.low) and np.isfinite(cell.high) else ""
    )
    return form(cell.value) + span


def arm_ticks(columns: list[Arm]) -> dict[str, Any]:
    """Tick texts for one place per arm."""
    return {
        "tickvals": list(range(len(columns))),
        "ticktext": [plot_text(shorten(a.name.replace("_", " "), 20), 20) for a in columns],
        "range": [-0.6, len(columns) - 0.4],
        "automargin": True,
    }


def signed_root(values: list[float]) -> list[float]:
    """Signed square roots: spreads small values without losing zero and sign."""
    return [float(np.sign(v) * np.sqrt(abs(v))) for v in values]


def root_ticks(values: list[float]) -> dict[str, Any]:
    """Ticks at round values for an axis that shows signed square roots."""
    top = max(abs(v) for v in values) or 1.0
    step = 10.0 ** np.floor(np.log10(top))
    step *= next(m for m in (1, 2, 5, 10) if m * step * 1.01 >= top / 2)
    ticks = [
        t * step
        for t in (-2, -1, -0.25, 0, 0.25, 1, 2)
        if min(values) - 0.3 * step <= t * step <= max(values) + 0.3 * step
    ]
    return {"tickvals": signed_root(ticks), "ticktext": [f"{t:.4g}".replace("-", "\u2212") for t in ticks]}
