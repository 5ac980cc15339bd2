"""Concepts as a person reads them in a terminal: catalogue, hits, one concept, contrasts, an inspected text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from fairlead.concepts import (
        Active,
        Catalogue,
        Contrast,
        Entry,
        Example,
        Hit,
        Inspection,
        LabelScores,
        Neighbour,
    )

_HEAT = ("", "on #fff3d6", "on #ffe0a3", "on #ffc266", "bold on #ff9f2e")


def show_catalogue(console: Console, catalogue: Catalogue, *, top: int) -> None:
    """The best labelled concepts, and how labels do beside those of random directions."""
    table = _table(f"{len(catalogue)} concepts of {catalogue.model_name} at {catalogue.site}")
    for name, justify in (
        ("id", "left"), ("label", "left"), ("score", "right"), ("density", "right"), ("latents", "right"), ("promotes", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for entry in catalogue.entries[:top]:
        table.add_row(
            entry.concept.id,
            escape(entry.concept.label),
            _score(entry.scores),
            f"{entry.statistics.density:.2%}",
            str(len(entry.concept.latents)),
            escape(" ".join(repr(effect.token) for effect in entry.promoted[:4])),
        )
    console.print(table)
    console.print(_beside(catalogue), markup=False)


def _beside(catalogue: Catalogue) -> str:
    values = [value for entry in catalogue.entries if (value := entry.scores.value) is not None]
    mean = f"{sum(values) / len(values):.2f}" if values else "-"
    text = f"label score (mean of detection and fuzzing, held-out text): {mean} on average"
    placebo = catalogue.meta.get("placebo")
    if placebo and placebo.get("value") is not None:
        text += f", {placebo['value']:.2f} for {placebo['num']} concepts of random directions"
    return text + f"; {catalogue.meta['num_tokens']:,} tokens read."


def show_hits(console: Console, catalogue: Catalogue, hits: Sequence[Hit]) -> None:
    """What a search found and why."""
    table = _table("Found" if hits else "Nothing found")
    for name, justify in (
        ("id", "left"),
        ("label", "left"),
        ("label score", "right"),
        ("match", "right"),
        ("why", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for hit in hits:
        scores = catalogue.entry(hit.concept.id).scores
        table.add_row(
            hit.concept.id, escape(hit.concept.label), _score(scores), f"{hit.score:.2f}", escape(hit.why)
        )
    console.print(table)


def show_entry(
    console: Console,
    catalogue: Catalogue,
    entry: Entry,
    examples: Sequence[Example],
    near: Sequence[Neighbour],
) -> None:
    """All of one concept."""
    concept, numbers, scores = entry.concept, entry.statistics, entry.scores
    console.print(f"[bold]{concept.id}[/] {escape(concept.label)}")
    if entry.word_label:
        console.print(f"by words: {entry.word_label}", markup=False)
    parts = [
        ("detection", scores.detection),
        ("against near misses", scores.detection_near),
        ("fuzzing", scores.fuzzing),
    ]
    shown = (
        ", ".join(f"{name} {value:.2f}" for name, value in parts if value is not None)
        or "could not be scored"
    )
    console.print(f"label score: {shown} (judge: {scores.judge})", markup=False)
    where = "" if numbers.in_answers is None else f", {numbers.in_answers:.0%} of it in answers"
    console.print(
        f"acts on {numbers.density:.2%} of tokens and in {numbers.texts:.1%} of texts, mean {numbers.mean_active:.3g} where it acts, "
        f"at most {numbers.max:.3g}{where}; {len(concept.latents)} latents",
        markup=False,
    )
    for name, effects in (("promotes", entry.promoted), ("suppresses", entry.suppressed)):
        console.print(f"{name}: " + " ".join(f"{e.token!r} {e.value:+.1f}" for e in effects), markup=False)
    for kind, title in (
        ("top", "strongest"),
        ("quantile", "by quantile, strongest first"),
        ("near_miss", "near misses: it does not act"),
    ):
        lines = [example for example in examples if example.kind == kind]
        if lines:
            console.print(f"\n[dim]{title}[/]")
        for example in lines:
            console.print("  " + _highlighted(console, example.context.tokens, example.context.scores))
    if near:
        console.print("\n[dim]near it by direction[/]")
        for one in near:
            console.print(f"  {one.concept.id} {one.concept.label} ({one.cosine:.2f})", markup=False)


def show_neighbours(console: Console, near: Sequence[Neighbour]) -> None:
    """Concepts near one."""
    table = _table("Neighbours")
    for name, justify in (("id", "left"), ("label", "left"), ("cosine", "right"), ("together", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for one in near:
        table.add_row(one.concept.id, escape(one.concept.label), f"{one.cosine:.2f}", f"{one.together:.2f}")
    console.print(table)
    console.print(
        "cosine: of the directions; together: phi coefficient of acting on the same tokens.", markup=False
    )


def show_contrasts(console: Console, lines: Sequence[Contrast]) -> None:
    """Which concepts tell two sets of texts apart."""
    table = _table("What tells them apart")
    for name, justify in (
        ("id", "left"), ("label", "left"), ("AUROC", "right"), ("95 % interval", "right"), ("q", "right"),
        ("first", "right"), ("second", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for line in lines:
        table.add_row(
            line.concept.id,
            escape(line.concept.label),
            f"{line.auroc:.3f}",
            f"{line.low:.2f} to {line.high:.2f}" if line.low == line.low else "",
            f"{line.q:.4f}",
            f"{line.first:.3g}",
            f"{line.second:.3g}",
        )
    console.print(table)
    console.print(
        "q: permutation p-value corrected for the number of concepts (false discovery rate).", markup=False
    )


def show_inspection(console: Console, seen: Inspection, *, num: int) -> None:
    """A text by concept and by token."""
    table = _table("Concepts in this text, the most remarkable first")
    for name, justify in (
        ("id", "left"),
        ("label", "left"),
        ("x usual", "right"),
        ("peak", "right"),
        ("where", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for one in seen.concepts[:num]:
        table.add_row(
            one.concept.id,
            escape(one.concept.label),
            f"{one.times_usual:.3g}" if one.times_usual < 1000 else "> 1000",
            f"{one.peak:.2g}",
            _highlighted(console, seen.tokens, one.scores),
        )
    console.print(table)
    tokens = _table("Token by token")
    for name in ("token", "strongest concepts"):
        tokens.add_column(name, overflow="fold")
    for place, token in enumerate(seen.tokens):
        tokens.add_row(escape(repr(token)), "; ".join(_named(one, place) for one in seen.at(place)))
    console.print(tokens)


def _named(one: Active, place: int) -> str:
    return escape(f"{one.concept.id} {one.concept.label} {one.scores[place]:.2g}")


def _highlighted(console: Console, tokens: Sequence[str], scores: Sequence[float]) -> str:
    """Tokens with the active ones on a warm ground, as rich markup; where there are no colours the strong ones between brackets."""
    top = max(scores, default=0.0)
    parts = []
    for token, score in zip(tokens, scores, strict=True):
        text = escape(token.replace("\n", " "))
        level = 0 if top <= 0 or score <= 0 else min(4, 1 + int(3.999 * score / top))
        style = _HEAT[level]
        if console.color_system is None:
            parts.append(escape(f"[{token}]") if level >= 3 else text)
        else:
            parts.append(f"[black {style}]{text}[/]" if style else text)
    return "".join(parts)


def _score(scores: LabelScores) -> str:
    value = scores.value
    if value is None:
        return "-"
    colour = "green" if value >= 0.8 else "yellow" if value >= 0.65 else "red"
    return f"[{colour}]{value:.2f}[/]"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False)
