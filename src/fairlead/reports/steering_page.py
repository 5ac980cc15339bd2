"""AutoSteer (effect against coherence, every trial) and model diffs as self-contained pages without a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from fairlead.concepts import EditSet, SteeringReport
from fairlead.reports import palette
from fairlead.reports.html import environment, write_page
from fairlead.reports.svg import Box, even_ticks
from fairlead.studies.concept_diff import ConceptDiff

_SIGNIFICANT = 0.05
_MAX_LINES = 20


def steering_svg(report: SteeringReport) -> str:
    """SVG text: share of answers as wanted (up) against the rise of the loss (right), one point a trial."""
    trials = [*report.trials, report.placebo]
    top = max([trial.loss_rise for trial in trials] + [report.max_loss_rise]) * 1.08
    low = min(0.0, *(trial.loss_rise for trial in trials)) - 0.04 * top
    across, up = Box(70, 24, 440, 300, low, top), Box(70, 24, 440, 300, -0.04, 1.04)
    points = [
        {
            "x": across.x(trial.loss_rise),
            "y": up.y(trial.effect),
            "style": 3 if place == len(report.trials) else 0 if trial.name == "contrast" else 1,
            "chosen": place == report.chosen,
            "title": f"{trial.name}: {trial.effect:.0%}, {trial.loss_rise:+.2f} nats",
        }
        for place, trial in enumerate(trials)
    ]
    curve = sorted(
        (p["x"], p["y"]) for p, t in zip(points, report.trials, strict=False) if t.name == "contrast"
    )
    context = {
        "points": points,
        "curve": " ".join(f"{x},{y}" for x, y in curve),
        "box": across,
        "rows": [(up.y(value), f"{value:.0%}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "columns": [(across.x(value), f"{value:g}") for value in even_ticks(low, top)],
        "goal": {"x": across.left, "y": up.y(1.04), "width": across.x(report.max_loss_rise) - across.left,
                 "height": up.y(report.goal) - up.y(1.04)},
        "palette": palette,
    }  # fmt: skip
    return environment().get_template("steering.svg").render(context)


def write_steering(path: str | Path, report: SteeringReport, edits: EditSet) -> Path:
    """Write what AutoSteer found as one HTML file and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    context = {
        "title": f"AutoSteer {report.direction}: {report.description}",
        "report": report,
        "edits": [edit.told() + (f" ({edit.label})" if edit.concept else "") for edit in edits.edits],
        "picture": Markup(steering_svg(report)),
    }
    return write_page(path, "steering.html", context)


def write_diff(path: str | Path, diff: ConceptDiff) -> Path:
    """Write what changed between two models as one HTML file and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    parts: list[dict[str, Any]] = [
        {"title": f"On the same {diff.num_texts} texts", "changes": diff.texts, "samples": []}
    ]
    for one in diff.answers:
        title = f"Difference amplified {one.alpha:g} times" if one.alpha else "Own answers"
        samples = list(zip(diff.prompts, diff.own, one.answers, strict=True))[:6]
        parts.append({"title": title, "changes": one.changes, "samples": samples})
    for part in parts:
        part["changes"] = [line for line in part["changes"] if line.q < _SIGNIFICANT][:_MAX_LINES]
        top = max(
            (
                max(abs(line.low), abs(line.high), abs(line.change))
                for line in part["changes"]
                if line.low == line.low
            ),
            default=1.0,
        )
        part["bars"] = [_bar(line.change, line.low, line.high, top) for line in part["changes"]]
    context = {
        "title": f"{_short(diff.before)} and {_short(diff.after)}",
        "diff": diff,
        "parts": parts,
        "level": _SIGNIFICANT,
    }
    return write_page(path, "diff.html", context)


def _short(model: str) -> str:
    """A model's name, or the end of its folder's path."""
    return "/".join(Path(model).parts[-3:]) if Path(model).is_absolute() else model


def _bar(change: float, low: float, high: float, top: float) -> dict[str, float | str]:
    """Places of a bar from zero in the middle of 120 pixels, with its interval."""
    known = low == low and high == high

    def x(value: float) -> float:
        return round(60 + 56 * max(-1.0, min(1.0, value / top)), 1)

    start, end = sorted((60.0, x(change)))
    ends = (x(low), x(high)) if known else (x(change), x(change))
    return {
        "x": start,
        "width": max(1.0, round(end - start, 1)),
        "low": ends[0],
        "high": ends[1],
        "style": 0 if change > 0 else 1,
    }
