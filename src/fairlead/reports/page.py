"""The report as one self-contained HTML page (`html.py`); plotly.js comes from the installed plotly package and stands in it once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fairlead.core.errors import ConfigError
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison, StepRecord, Verification
from fairlead.reports import palette, plots, text
from fairlead.reports.answers import align_answers
from fairlead.reports.curves import CURVES, curve_figure, curves
from fairlead.reports.findings import find_shortfalls, is_stable, make_tiles, make_verdict
from fairlead.reports.glossary import GLOSSARY
from fairlead.reports.html import asset, render_page, write_text
from fairlead.reports.numbers import Goals, Summary, names_of, summarize
from fairlead.reports.pressure import pressure_series
from fairlead.reports.runs import RunInfo

_TITLES = {
    "shortfalls": "What failed or fell short",
    "menu": "The menu: what the data would teach",
    "decisions": "Decisions: what to keep and what to avoid",
    "pressure": "Pressure over time",
    "arms": "Skill against leak",
    "curves": "While it trained",
    "measures": "Everything measured",
    "prediction": "Predicted against measured",
    "monitor": "Monitorability",
    "answers": "Answers side by side",
    "made": "How it was made",
    "glossary": "Glossary",
}


def write_report(
    path: str | Path,
    *,
    menu: Menu | None = None,
    plan: Plan | None = None,
    comparison: Comparison | None = None,
    verification: Verification | None = None,
    title: str | None = None,
    command: str | None = None,
    steps: Sequence[StepRecord] = (),
    runs: Sequence[RunInfo] = (),
    goals: Goals | None = None,
) -> Path:
    """Write the report of whatever is given to one HTML file (a folder gets `report.html`) and return its path.

    Args:
        path: File to write, replaced atomically.
        steps: Steps of a lone training (a comparison carries its own).
        runs: The run folders that the records come from.
        goals: What counts as fallen short.

    Raises:
        ConfigError: Nothing was given to report on.
        RunError: The file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.html"
    page = render_report(
        menu=menu,
        plan=plan,
        comparison=comparison,
        verification=verification,
        title=title,
        command=command,
        steps=steps,
        runs=runs,
        goals=goals,
    )
    return write_text(path, page)


def render_report(
    *,
    menu: Menu | None = None,
    plan: Plan | None = None,
    comparison: Comparison | None = None,
    verification: Verification | None = None,
    title: str | None = None,
    command: str | None = None,
    steps: Sequence[StepRecord] = (),
    runs: Sequence[RunInfo] = (),
    goals: Goals | None = None,
) -> str:
    """The report as HTML text; arguments as for `write_report`.

    Raises:
        ConfigError: Nothing was given to report on.
    """
    if menu is None and plan is None and comparison is None and verification is None:
        raise ConfigError(
            "report: nothing to show. Next: give a menu, a plan, a comparison or a verification."
        )
    goals = goals or Goals()
    summary = summarize(comparison, verification)
    context: dict[str, Any] = {
        "title": title or _default_title(menu, plan, comparison, verification),
        "menu": menu,
        "plan": plan,
        "comparison": comparison,
        "verification": verification,
        "summary": summary,
        "goals": goals,
        "command": command or (comparison.command if comparison else ""),
        "runs": runs,
        "verdict": make_verdict(summary, menu, plan, goals),
        "tiles": make_tiles(summary, menu, plan, goals),
        "shortfalls": find_shortfalls(summary=summary, menu=menu, plan=plan, goals=goals),
        "glossary": sorted(GLOSSARY, key=lambda item: item.word.lower()),
        "titles": _TITLES,
        "palette_json": Markup(text.script_json(palette.DARK)),
    }
    menu_view, menu_figures = _menu_view(menu, plan, goals)
    training_view, training_figures = _training_view(comparison, verification, plan, steps, summary, goals)
    context |= menu_view | training_view
    figures = menu_figures | training_figures
    context["answers"] = align_answers(comparison, verification)
    figures = {k: f for k, f in figures.items() if f is not None}
    context["figures"] = {k: Markup(text.script_json(f.to_plotly_json())) for k, f in figures.items()}
    context["sections"] = _sections(context)
    scripts = [asset("report.js")]
    if figures:
        from plotly.offline import get_plotlyjs

        plotly_js = get_plotlyjs().replace("\r\n", "\n")
        scripts.insert(0, re.sub("</(?=script)", r"<\\/", plotly_js, flags=re.IGNORECASE))
    return render_page("report.html", context, scripts=scripts)


def _menu_view(menu: Menu | None, plan: Plan | None, goals: Goals) -> tuple[dict[str, Any], dict[str, Any]]:
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}
    order = {"avoid": 0, "keep": 1, "ignore": 2}
    decisions = sorted(plan.decisions, key=lambda d: order[d.verdict]) if plan else []
    figures = {}
    if menu is not None:
        figures = {"menu": plots.menu_figure(menu, plan, goals=goals), "tokens": plots.tokens_figure(menu)}
    view = {
        "verdicts": verdicts,
        "lines": menu.lines[:18] if menu else (),
        "stable": lambda line: is_stable(line.stability, line.interval, goals),
        "decisions": decisions,
        "clauses": {c.id: c.text for c in plan.spec.clauses} if plan else {},
    }
    return view, figures


def _training_view(
    comparison: Comparison | None,
    verification: Verification | None,
    plan: Plan | None,
    steps: Sequence[StepRecord],
    summary: Summary | None,
    goals: Goals,
) -> tuple[dict[str, Any], dict[str, Any]]:
    arms = comparison.arm_names() if comparison else (("this run",) if steps else ())
    series = pressure_series(comparison if comparison else [("this run", steps)], plan)
    kinds = [k for k in ("avoid", "keep", "other") if k in series]
    figures = {f"pressure-{k}": plots.pressure_figure(series, kind=k, arms=arms) for k in kinds}
    view: dict[str, Any] = {
        "arm_names": arms,
        "pressure_kinds": kinds,
        "predictions": [],
        "monitored": names_of(summary, "monitor") if summary else [],
    }
    if summary is not None and summary.base is not None:
        figures["arms"] = plots.arms_figure(summary, goals=goals)
        figures |= {f"monitor-{i}": plots.monitor_figure(summary, t) for i, t in enumerate(view["monitored"])}
        figures["dictionary"] = plots.dictionary_figure(summary)
    predictions = []
    if comparison is not None and summary is not None:
        shown = [a for a in (summary.reference, summary.intended) if a is not None]
        for arm in summary.arms:
            merged, correlation = plots.mean_predictions(comparison, arm.name)
            if not merged:
                continue
            key = f"prediction-{len(predictions)}" if arm in shown else ""
            if key:
                figures[key] = plots.prediction_figure(merged)
            predictions.append(
                {"name": arm.name, "arm": arm, "spearman": correlation, "num": len(merged), "figure": key}
            )
    elif verification is not None and verification.predictions:
        figures["prediction-0"] = plots.prediction_figure(verification.predictions)
        predictions.append(
            {
                "name": verification.model,
                "arm": None,
                "spearman": verification.prediction_spearman,
                "num": len(verification.predictions),
                "figure": "prediction-0",
            }
        )
    view["predictions"] = predictions
    lines = curves(comparison) if comparison is not None else {}
    view |= {"curve_names": list(lines), "curve_titles": CURVES}
    if comparison is not None:
        figures |= {f"curve-{name}": curve_figure(comparison, lines, name) for name in lines}
    return view, figures


def _sections(context: dict[str, Any]) -> list[str]:
    figures, summary = context["figures"], context["summary"]
    there = {
        "shortfalls": True,
        "menu": context["menu"] is not None,
        "decisions": context["plan"] is not None,
        "pressure": bool(context["pressure_kinds"]),
        "arms": context["comparison"] is not None,
        "curves": bool(context["curve_names"]),
        "measures": summary is not None and bool(summary.measures),
        "prediction": bool(context["predictions"]),
        "monitor": summary is not None
        and any(m.startswith("monitor.") for m in summary.measures)
        and ("dictionary" in figures or any(k.startswith("monitor-") for k in figures)),
        "answers": bool(context["answers"]),
        "made": True,
        "glossary": True,
    }
    return [name for name in _TITLES if there[name]]


def _default_title(
    menu: Menu | None, plan: Plan | None, comparison: Comparison | None, verification: Verification | None
) -> str:
    if plan is not None and plan.spec.title:
        return plan.spec.title
    if comparison is not None:
        return f"Training {Path(comparison.model).name} on {Path(comparison.data).name}"
    if menu is not None:
        return f"What {Path(menu.data).name} would teach"
    return f"Verification of {Path(verification.model).name}" if verification else "Fairlead report"
