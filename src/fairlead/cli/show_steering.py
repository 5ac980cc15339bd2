"""Steering, attribution and model diffs as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from fairlead.concepts import Attribution, AutoSteered, EditSet, ExclusiveLatent
    from fairlead.studies.concept_diff import ChangeLine, ConceptDiff, Difference


def show_steered(console: Console, edits: EditSet, answers: Sequence[Mapping[str, Any]]) -> None:
    """The edits in words, then each prompt with its two answers."""
    for edit in (*edits.edits, *edits.aborts):
        name = getattr(edit, "label", "") if getattr(edit, "concept", "") else ""
        console.print(f"{edit.told()}" + (f"  ({name})" if name else ""), markup=False)
    for one in answers:
        console.print(f"\n{one['prompt']}", markup=False, style="bold")
        console.print(f"  plain    {one['plain']}", markup=False)
        ended = f"  [ended: {one['aborted']}]" if one["aborted"] else ""
        console.print(f"  steered  {one['steered']}{ended}", markup=False)


def show_autosteer(console: Console, found: AutoSteered) -> None:
    """Trials, the chosen one, its placebo and samples."""
    report = found.report
    table = _table(
        f"AutoSteer {report.direction}: {report.description}",
        ("trial", "strengths", "effect", "loss rise", ""),
    )
    for place, trial in enumerate(report.trials):
        strengths = " ".join(f"{name} {value:g}" for name, value in trial.strengths.items())
        mark = "<- chosen" if place == report.chosen else ""
        table.add_row(
            escape(trial.name), escape(strengths), f"{trial.effect:.0%}", f"{trial.loss_rise:+.2f}", mark
        )
    table.add_row(
        "placebo",
        "random directions of equal norm",
        f"{report.placebo.effect:.0%}",
        f"{report.placebo.loss_rise:+.2f}",
        "",
    )
    console.print(table)
    before, after = report.neutral_loss
    console.print(
        f"{report.verdict}: {report.best.effect:.0%} of {report.num_calibration} answers, "
        f"{report.effect_before:.0%} without edits, {report.effect_request:.0%} "
        f"{'on request' if report.direction == 'on' else 'where it is not requested'}; loss of plain answers {before:.3f} -> {after:.3f}.",
        markup=False,
    )
    for prompt, plain, steered in report.samples[:3]:
        console.print(f"\n{prompt}", markup=False, style="bold")
        console.print(f"  before   {plain}", markup=False)
        console.print(f"  steered  {steered}", markup=False)


def show_attribution(console: Console, found: Attribution, tokens: Sequence[str], *, num: int) -> None:
    """Concepts by the nats they add, with the token where most of it comes from."""
    table = _table(f"log-probability {found.output:+.2f} nats", ("concept", "nats", "mostly at"))
    for cause in found.causes[:num]:
        place = max(range(len(cause.tokens)), key=lambda at: abs(cause.tokens[at]))
        where = repr(tokens[place]) if any(cause.tokens) else ""
        table.add_row(
            escape(f"{cause.concept.id} {cause.concept.label}"), f"{cause.value:+.3f}", escape(where)
        )
    rest = sum(cause.value for cause in found.causes[num:])
    table.add_row(f"{max(len(found.causes) - num, 0)} other concepts", f"{rest:+.3f}", "")
    if found.method != "ablation":
        table.add_row("latents of no concept", f"{found.other:+.3f}", "")
        table.add_row("outside the dictionary", f"{found.remainder:+.3f}", "")
    if found.method == "integrated":
        table.add_row("where nothing acts (baseline)", f"{found.baseline:+.3f}", "")
        table.add_row("missed by the quadrature", f"{found.gap:+.3f}", "")
    console.print(table)


def show_diff(console: Console, found: ConceptDiff, *, num: int) -> None:
    """Changes on texts, in own answers, and amplified, with sample answers."""
    _changes(console, f"On the same {found.num_texts} texts", found.texts, num)
    if found.difference is not None:
        _moved(console, found.difference, num)
    for one in found.answers:
        title = (
            f"In answers, difference amplified {one.alpha:g} times" if one.alpha else "In their own answers"
        )
        _changes(console, title, one.changes, num)
        for prompt, before, after in list(zip(found.prompts, found.own, one.answers, strict=True))[:2]:
            console.print(f"  {prompt}\n    before: {before}\n    after:  {after}", markup=False)
    if found.exclusive:
        _exclusive(console, found.exclusive, num)
    elif found.crosscoder:
        console.print("Crosscoder: no latent lies on one model's side alone.", markup=False)


def _moved(console: Console, found: Difference, num: int) -> None:
    title = (
        f"Mean difference of activations ({found.relative:.1%} of their norm) along concepts; "
        f"95 % of random directions: cosine below {found.chance:.2f}"
    )
    table = _table(title, ("concept", "along", "95 % interval", "cosine", "q"))
    for line in found.concepts[:num]:
        table.add_row(
            escape(f"{line.concept} {line.label}"),
            f"{line.along:+.3g}",
            f"{line.low:+.3g} to {line.high:+.3g}",
            f"{line.cosine:+.2f}",
            f"{line.q:.2g}",
        )
    console.print(table)


def _exclusive(console: Console, lines: Sequence[ExclusiveLatent], num: int) -> None:
    title = (
        "What only one model seems to have (crosscoder); nu near 0: so it is, near 1: the other has it too"
    )
    table = _table(title, ("latent", "model", "acts on", "share", "nu error", "nu recon.", "exclusive"))
    for line in lines[: 2 * num]:
        table.add_row(
            str(line.latent),
            line.side,
            escape(" ".join(repr(token) for token in line.tokens[:4])),
            f"{line.share:.2f}",
            f"{line.nu_error:+.2f}",
            f"{line.nu_reconstruction:+.2f}",
            "yes" if line.exclusive else "no",
        )
    console.print(table)


def _changes(console: Console, title: str, changes: Sequence[ChangeLine], num: int) -> None:
    kept = [line for line in changes if line.q < 0.05][:num]
    if not kept:
        console.print(f"{title}: no concept changed beyond chance.", markup=False)
        return
    table = _table(title, ("concept", "before", "after", "change", "95 % interval", "q"))
    for line in kept:
        table.add_row(
            escape(f"{line.concept} {line.label}"),
            f"{line.before:.3g}",
            f"{line.after:.3g}",
            f"{line.change:+.3g}",
            f"{line.low:+.3g} to {line.high:+.3g}",
            f"{line.q:.2g}",
        )
    console.print(table)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
