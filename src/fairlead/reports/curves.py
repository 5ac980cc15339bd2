"""Learning curves: what the students of a comparison could do, and what leaked, while they trained (their checkups)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.core.results import Comparison, Verification
from fairlead.reports.numbers import Cell, summarize
from fairlead.reports.palette import arm_style
from fairlead.reports.plot_style import style_figure
from fairlead.reports.text import plot_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

CURVES = {
    "skill": "right and without the trait",
    "leak": "answers with the trait, unasked",
    "neutral": "rise of the loss on neutral text",
}
Curves = dict[str, dict[str, list[tuple[int, Cell]]]]  # curve -> arm -> (step, value over seeds)


def at_step(comparison: Comparison, step: int) -> Comparison:
    """The comparison as it stood after a step: the checkups of that step in place of the verifications."""
    arms = [
        arm.model_copy(update={"verification": Verification(model="", measures=one.measures)})
        for arm in comparison.arms
        for one in arm.checkups
        if one.step == step
    ]
    return comparison.model_copy(update={"arms": tuple(arms)})


def curves(comparison: Comparison) -> Curves:
    """Skill, leak and rise of the neutral loss of every arm at every step at which students were measured."""
    found: Curves = {name: {} for name in CURVES}
    for step in comparison.checked_steps():
        summary = summarize(at_step(comparison, step))
        for arm in summary.arms if summary else ():
            for name in CURVES:
                cell = getattr(arm, name)
                if cell is not None:
                    found[name].setdefault(arm.name, []).append((step, cell))
    return {name: arms for name, arms in found.items() if arms}


def curve_figure(comparison: Comparison, found: Curves, name: str) -> go.Figure:
    """One curve over steps, a line per arm with its interval over seeds."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for index, arm in enumerate(comparison.arm_names()):
        if arm not in found[name]:
            continue
        steps, cells = zip(*found[name][arm], strict=True)
        colour, symbol, dash = arm_style(index)
        figure.add_scatter(
            x=steps,
            y=[cell.value for cell in cells],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [cell.high - cell.value for cell in cells],
                "arrayminus": [cell.value - cell.low for cell in cells],
                "thickness": 1.2,
                "width": 3,
            },
            mode="lines+markers",
            marker={"color": colour, "symbol": symbol, "size": 7},
            name=plot_text(arm, 30),
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate=f"{plot_text(arm, 30)}, step %{{x}}: %{{y:.1%}}<extra></extra>",
        )
    style_figure(figure, height=300)
    figure.update_layout(
        xaxis={
            "type": "log",
            "title": {"text": "training step"},
            "tickvals": list(comparison.checked_steps()),
        },
        yaxis={"tickformat": ".0%", "zeroline": True, "rangemode": "tozero"},
    )
    return figure
