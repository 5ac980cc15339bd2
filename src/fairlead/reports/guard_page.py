"""Guarded answers as a self-contained page: tokens by score, claims with verdicts, interventions in line, the worst failures first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.core.claims import ClaimSpan
from fairlead.guard import GuardedAnswer, Policy
from fairlead.guard.audit import AuditRecord
from fairlead.guard.policy import ACTING
from fairlead.reports.html import asset, render_page, write_text
from fairlead.studies.guard import GuardedExchange, GuardedRun, verdict_on

LEVELS = (0.25, 0.5, 0.75, 0.9)
SHOWN = 400
KINDS = ("retract", "correct", "abort", "uphold", "flag", "best_of_n")
DONE = {
    "retract": "retracted",
    "correct": "correction asked for",
    "abort": "ended",
    "uphold": "upheld by other answers",
    "flag": "marked",
}


class Word(NamedTuple):
    """A token: its text, its highlight (0 to 4), whether the guard put it in, and its score as text."""

    text: str
    level: int
    given: bool
    score: str


class Line(NamedTuple):
    """A claim: the span, its verdict ("" for none), whether it reached the threshold, and what was done."""

    claim: ClaimSpan
    verdict: str
    flagged: bool
    done: str


class Side(NamedTuple):
    """One answer as it is shown."""

    title: str
    words: list[Word]
    lines: list[Line]
    finish: str


def write_guarded(path: str | Path, found: GuardedRun) -> Path:
    """Write a guarded run as one HTML file and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    return write_text(path, render_guarded(found))


def render_guarded(found: GuardedRun) -> str:
    """The page of a guarded run."""
    calibration = found.calibration
    facts = [("model", found.model), ("policy", _told(found.policy)), ("threshold", f"{found.threshold:.4g}")]
    if calibration is not None:
        about = (
            f"flags at most {calibration.target:.0%} of true {calibration.level}s; set on {calibration.num_true} true ones "
            f"({calibration.false_positives:.1%} flagged) and {calibration.num_false} others ({calibration.true_positives:.0%} flagged)"
        )
        facts.append(("calibration", about))
    title = f"Guarded answers of {Path(found.model).name}"
    return _render(title, found.exchanges, facts)


def write_served(path: str | Path, records: Sequence[AuditRecord]) -> Path:
    """Write the answers of an audit log as one HTML file and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    return write_text(path, render_served(records))


def render_served(records: Sequence[AuditRecord]) -> str:
    """The page of a server's audit log."""
    exchanges = [
        GuardedExchange(
            messages=({"role": "user", "content": str(record.data.get("prompt", ""))},),
            guarded=GuardedAnswer(**record.data["answer"]),
        )
        for record in records
        if record.kind == "answer"
    ]
    return _render("Served answers", exchanges, [("records", f"{len(exchanges):,} answers")])


def _render(title: str, exchanges: Sequence[GuardedExchange], facts: list[tuple[str, str]]) -> str:
    ordered = sorted(exchanges, key=_badness, reverse=True)
    rows = [_row(exchange) for exchange in ordered[:SHOWN]]
    kinds = [kind for kind in KINDS if any(kind in row["kinds"] for row in rows)]
    checked = any(exchange.verdicts or exchange.plain_verdicts for exchange in exchanges)
    if len(exchanges) > SHOWN:
        facts = [*facts, ("shown", f"the {SHOWN} worst of {len(exchanges):,}")]
    context: dict[str, Any] = {
        "title": title,
        "verdict": _verdict(exchanges, checked=checked),
        "tiles": _tiles(exchanges, checked=checked),
        "rows": rows,
        "kinds": kinds,
        "done": DONE,
        "checked": checked,
        "facts": facts,
    }
    return render_page("guard.html", context, scripts=[asset("guard.js")])


def _row(exchange: GuardedExchange) -> dict[str, Any]:
    guarded = exchange.guarded
    sides = [] if exchange.plain is None else [_side("plain", exchange.plain, exchange.plain_verdicts)]
    sides.append(_side(f"guarded: {guarded.policy}", guarded, exchange.verdicts))
    kinds = {act.kind for act in guarded.interventions}
    kinds |= {"best_of_n"} if guarded.policy == "best_of_n" else set()
    kinds |= {"none"} if not kinds else set()
    kinds |= (
        {"missed"}
        if any(
            line.verdict in ("contradicted", "insufficient") and not line.flagged for line in sides[-1].lines
        )
        else set()
    )
    kinds |= (
        {"false"} if any(line.verdict == "supported" and line.flagged for line in sides[-1].lines) else set()
    )
    prompt = exchange.messages[-1]["content"] if exchange.messages else ""
    system = next((turn["content"] for turn in exchange.messages if turn["role"] == "system"), "")
    text = " ".join([prompt, guarded.text, exchange.plain.text if exchange.plain else ""])
    return {
        "prompt": prompt,
        "system": system,
        "sides": sides,
        "kinds": sorted(kinds),
        "worst": guarded.worst,
        "find": text.lower(),
        "rivals": guarded.rivals,
        "notes": [act for act in guarded.interventions if act.note],
    }


def _side(title: str, answer: GuardedAnswer, verdicts: Sequence[ClaimSpan]) -> Side:
    words = [
        Word(
            text,
            0 if score is None else sum(score >= level for level in LEVELS),
            given,
            "put in by the guard" if given else "not read" if score is None else f"score {score:.2f}",
        )
        for text, score, given in zip(answer.tokens, answer.scores, answer.given, strict=True)
    ]
    acts = {act.claim: DONE[act.kind] for act in answer.interventions}
    flagged = set(answer.flagged)
    lines = [
        Line(claim, verdict_on(claim, verdicts), place in flagged, acts.get(place, ""))
        for place, claim in enumerate(answer.claims)
    ]
    return Side(title, words, lines, answer.finish)


def _badness(exchange: GuardedExchange) -> tuple[int, float]:
    """Unsupported claims that nothing was done about come first, then true ones that were stopped, then by score."""
    kinds = _row(exchange)["kinds"] if exchange.verdicts else ()
    return (2 if "missed" in kinds else 1 if "false" in kinds else 0, exchange.guarded.worst)


def _told(policy: Policy) -> str:
    put_in = f' ("{policy.injection}")' if policy.injection else ""
    return f"{policy.kind}{put_in}, at most {policy.max_interventions} an answer" if put_in else policy.kind


def _verdict(exchanges: Sequence[GuardedExchange], *, checked: bool) -> str:
    if not exchanges:
        return "No answers yet."
    kinds = [{act.kind for act in exchange.guarded.interventions} for exchange in exchanges]
    text = f"The guard acted on {sum(bool(kind & set(ACTING)) for kind in kinds):,} of {len(exchanges):,} answers"
    upheld = sum("uphold" in kind for kind in kinds)
    text += (
        f"; in {upheld:,} a flagged claim was upheld when the question was asked in other ways."
        if upheld
        else "."
    )
    if checked:
        plain = sum(bool(span.unsupported) for exchange in exchanges for span in exchange.plain_verdicts)
        missed = sum(
            line.verdict in ("contradicted", "insufficient") and not line.flagged
            for exchange in exchanges
            for line in _side("", exchange.guarded, exchange.verdicts).lines
        )
        text += f" The plain answers make {plain:,} claims without support; {missed:,} of the guarded answers' were not noticed."
    return text


def _tiles(exchanges: Sequence[GuardedExchange], *, checked: bool) -> list[tuple[str, str, str]]:
    guarded = [exchange.guarded for exchange in exchanges]
    claims, flagged = sum(len(a.claims) for a in guarded), sum(len(a.flagged) for a in guarded)
    acts = sum(act.kind in ACTING for answer in guarded for act in answer.interventions)
    tiles = [
        ("Answers", f"{len(guarded):,}", f"{claims:,} claims"),
        ("Claims flagged", f"{flagged:,}", f"{flagged / claims:.0%} of all" if claims else "none made"),
        ("Interventions", f"{acts:,}", "texts put in, answers ended"),
    ]
    if checked:
        lines = [
            line
            for exchange in exchanges
            for line in _side("", exchange.guarded, exchange.verdicts).lines
            if line.verdict == "supported"
        ]
        false = sum(line.flagged for line in lines)
        tiles.append(("True claims flagged", f"{false:,}", f"of {len(lines):,} true ones"))
    return tiles
