"""Views of text for the page: answers side by side, and token contexts with their highlights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fairlead.core.records import TokenContext
from fairlead.core.results import Comparison, Sample, Verification
from fairlead.reports.numbers import BASE_NAME

GROUPS = ("domain", "neutral", "request")


class Answer(NamedTuple):
    """What one model said to a prompt; `style` is the arm's place, -1 for the start model."""

    who: str
    style: int
    sample: Sample | None


class Exchange(NamedTuple):
    """One prompt with every model's answer."""

    prompt: str
    answers: tuple[Answer, ...]


class AnswerGroup(NamedTuple):
    """The exchanges of one group of prompts: those shown, and those folded away."""

    name: str
    shown: tuple[Exchange, ...]
    folded: tuple[Exchange, ...]
    left_out: int


class Token(NamedTuple):
    """A token with its highlight, -4 to 4 (0 is none)."""

    text: str
    level: int


def align_answers(
    comparison: Comparison | None, verification: Verification | None, *, shown: int = 3, folded: int = 9
) -> list[AnswerGroup]:
    """Answers to the same prompt beside each other: the start model, then the first seed of each arm."""
    columns: list[tuple[str, int, Sequence[Sample]]] = []
    if comparison is not None:
        columns.append((BASE_NAME, -1, comparison.base.samples))
        for index, arm in enumerate(comparison.arm_names()):
            runs = [r for r in comparison.arms if r.arm == arm]
            samples = next((r.verification.samples for r in runs if r.verification.samples), ())
            columns.append((arm, index, samples))
    elif verification is not None:
        columns.append((verification.model, 0, verification.samples))
    columns = [c for c in columns if c[2]]
    table: dict[str, dict[str, dict[str, Sample]]] = {}
    for who, _, samples in columns:
        for sample in samples:
            table.setdefault(sample.group, {}).setdefault(sample.prompt, {}).setdefault(who, sample)
    groups = []
    for name in sorted(table, key=lambda g: (GROUPS.index(g) if g in GROUPS else len(GROUPS), g)):
        rows = [
            Exchange(prompt, tuple(Answer(who, style, found.get(who)) for who, style, _ in columns))
            for prompt, found in table[name].items()
        ]
        rows.sort(key=lambda row: -sum(a.sample is not None for a in row.answers))  # stable: fullest first
        left = max(0, len(rows) - shown - folded)
        groups.append(AnswerGroup(name, tuple(rows[:shown]), tuple(rows[shown : shown + folded]), left))
    return groups


def highlight(context: TokenContext, *, window: int = 48) -> list[Token]:
    """The stretch of a context around its strongest token, each token with a highlight level.

    Levels are quarters of the largest absolute score in the context.
    """
    num = min(len(context.tokens), len(context.scores))
    if num == 0:
        return [Token(t, 0) for t in context.tokens[:window]]
    scores = np.nan_to_num(np.asarray(context.scores[:num], dtype=float))
    peak = int(np.argmax(np.abs(scores)))
    top = float(np.abs(scores[peak])) or 1.0
    start = max(0, min(peak - 2 * window // 3, num - window))
    picked = range(start, min(num, start + window))
    tokens = [
        Token(_plain(context.tokens[i]), int(np.trunc(np.clip(scores[i] / top, -1, 1) * 4.0001)))
        for i in picked
    ]
    if start > 0:
        tokens.insert(0, Token("\u2026", 0))
    if picked.stop < num:
        tokens.append(Token("\u2026", 0))
    return tokens


def _plain(token: str) -> str:
    """A token without the space marks of byte-level BPE and SentencePiece."""
    if token[:1] in ("\u2581", "\u0120"):
        token = " " + token[1:]
    return token.replace("\u010a", "\n")
