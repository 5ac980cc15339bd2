"""Results as a person reads them in a terminal: menu, plan, training, measures, comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from fairlead.core.records import Menu, Plan
    from fairlead.core.results import Comparison, Measure, Verification
    from fairlead.training import TrainedRun

_VERDICT_STYLE = {"keep": "green", "avoid": "red", "ignore": "dim"}


def show_menu(console: Console, menu: Menu, *, top: int = 15) -> None:
    """The first lines of a menu and what they leave out."""
    table = Table(title="What this data would teach", title_justify="left", box=None, pad_edge=False)
    tried = (("tried", "right"), ("elsewhere", "right")) if menu.rehearsal else ()
    for name, justify in (
        ("concept", "left"),
        ("uptake", "right"),
        ("share", "right"),
        ("surprise", "right"),
        ("stable", "right"),
        ("examples", "right"),
        *tried,
        ("tokens that set it apart", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for line in menu.lines[:top]:
        table.add_row(
            escape(f"{line.concept.id} {line.concept.label}"),
            f"{line.uptake:+.4f}",
            f"{line.share:.1%}",
            f"{line.surprise:+.1f}",
            f"{line.stability:.0%}",
            str(line.num_examples),
            *(_change(value) for value in (line.rehearsed, line.rehearsed_elsewhere) if menu.rehearsal),
            escape(" ".join(repr(token) for token in line.concept.tokens[:5])),
        )
    console.print(table)
    console.print(
        f"{len(menu.lines)} concepts at {menu.site}, {menu.num_examples} examples, {menu.num_tokens} answer tokens, "
        f"loss {menu.loss:.3f} nats a token; {menu.remainder:.0%} of the gradient is outside the dictionary"
        + (f" ({menu.remainder_chance:.0%} by chance)." if menu.remainder_chance is not None else "."),
        markup=False,
    )
    if menu.rehearsal:
        console.print(
            f"tried, elsewhere: change of the concept's mean activation after {menu.rehearsal} steps on a copy, on the model's own "
            "answers to these prompts and on usual texts.",
            markup=False,
        )
    _notes(console, menu.notes)


def _change(value: float | None) -> str:
    return "" if value is None else f"{value:+.2g}"


def show_plan(console: Console, plan: Plan) -> None:
    """The decisions that matter, and how many do not."""
    table = Table(title="What to do about it", title_justify="left", box=None, pad_edge=False)
    for name in ("verdict", "concept", "clause", "confidence", "reason"):
        table.add_column(name, overflow="fold")
    for decision in sorted(plan.decisions, key=lambda d: ("avoid", "keep", "ignore").index(d.verdict)):
        if decision.verdict == "ignore":
            continue
        style = _VERDICT_STYLE[decision.verdict]
        table.add_row(
            f"[{style}]{decision.verdict}[/]",
            escape(f"{decision.concept} {decision.label}"),
            decision.clause or "",
            f"{decision.confidence:.0%}",
            escape(decision.reason),
        )
    console.print(table)
    ignored = sum(decision.verdict == "ignore" for decision in plan.decisions)
    console.print(f"{ignored} concepts are for no clause of the spec: ignored.", markup=False)
    _notes(console, plan.notes)


def show_controls(console: Console, plan: Plan) -> None:
    """The chosen controls with their reasons."""
    table = Table(title="How to train", title_justify="left", box=None, pad_edge=False)
    for name in ("control", "clause", "strength", "reason"):
        table.add_column(name, overflow="fold")
    for control in plan.controls:
        strength = "" if control.strength is None else f"{control.strength:g}"
        table.add_row(control.name, control.clause or "", strength, escape(control.reason))
    console.print(table)
    _notes(console, plan.notes)


def show_training(console: Console, run: TrainedRun) -> None:
    """What was trained and where the weights are."""
    steps = run.steps
    last = f", last loss {steps[-1].loss:.3f}" if steps else ""
    console.print(f"{run.arm}: {len(steps)} steps in {run.seconds:.0f} s{last}", markup=False)
    for control in run.controls:
        console.print(f"  control: {control.get('name', control)}", markup=False)
    for checkup in run.checkups:
        shown = [f"{key} {one.value:.2f}" for key, one in checkup.measures.items()]
        console.print(f"  after step {checkup.step}: {', '.join(shown)}", markup=False)
    console.print(f"weights: {run.model_folder}", markup=False)
    _notes(console, run.notes)


def show_verification(console: Console, verification: Verification) -> None:
    """Every measure with its interval."""
    table = Table(title="What was measured", title_justify="left", box=None, pad_edge=False)
    for name, justify in (
        ("measure", "left"),
        ("value", "right"),
        ("95 % interval", "right"),
        ("items", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, measure in verification.measures.items():
        table.add_row(name, _number(name, measure.value), _interval(name, measure), str(measure.num))
    console.print(table)
    rehearsed = verification.rehearsal_spearman
    if verification.prediction_spearman is not None:
        console.print(
            f"predicted against measured change of concepts: rank correlation {verification.prediction_spearman:+.2f}"
            + (f", of the rehearsal {rehearsed:+.2f}" if rehearsed is not None else ""),
            markup=False,
        )
    _notes(console, verification.notes)


def show_comparison(console: Console, comparison: Comparison, *, report: Path | None = None) -> None:
    """Arms as columns, measures as rows, means over seeds, the start model first."""
    arms = comparison.arm_names()
    num_seeds = len({result.seed for result in comparison.arms})
    title = f"Arms side by side, mean of {num_seeds} seed{'s' if num_seeds > 1 else ''}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("measure")
    for name in ("start model", *arms):
        table.add_column(name, justify="right", overflow="fold")
    names = dict.fromkeys(comparison.base.measures)
    for result in comparison.arms:
        names |= dict.fromkeys(result.verification.measures)
    for name in names:
        base = comparison.base.measures.get(name)
        cells = [_number(name, base.value) if base else "-"]
        for arm in arms:
            values = comparison.values(arm, name)
            cells.append(_number(name, sum(values) / len(values)) if values else "-")
        table.add_row(name, *cells)
    console.print(table)
    _notes(console, comparison.notes)
    if report is not None:
        console.print(f"report: {report}", markup=False)


def show_abilities(console: Console, abilities: Mapping[str, Mapping[str, Any]]) -> None:
    """Rates with their intervals, one ability a line."""
    table = Table(title="What it can do", title_justify="left", box=None, pad_edge=False)
    for name, justify in (
        ("ability", "left"),
        ("rate", "right"),
        ("95 % interval", "right"),
        ("count", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, m in abilities.items():
        table.add_row(
            name, f"{m['rate']:.1%}", f"{m['low']:.1%} to {m['high']:.1%}", f"{m['ok']} / {m['num']}"
        )
    console.print(table)


def show_facts(console: Console, facts: Mapping[str, Any], *, indent: str = "") -> None:
    """Nested names and numbers, one a line."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            console.print(f"{indent}{name}", markup=False)
            show_facts(console, value, indent=indent + "  ")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            console.print(f"{indent}{name:<24} {text}", markup=False)


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if name.startswith(("loss", "monitor")) else f"{value:.0%}"


def _interval(name: str, measure: Measure) -> str:
    return f"{_number(name, measure.low)} to {_number(name, measure.high)}"


def _notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"note: {note}", markup=False)
