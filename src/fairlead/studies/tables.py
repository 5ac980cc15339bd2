"""The table of a comparison in Markdown."""

from __future__ import annotations

from fairlead.core.results import Comparison, Measure

SKIPPED = ("monitor.",)


def comparison_table(comparison: Comparison, *, monitor: bool = False) -> str:
    """Arms as rows, measures as columns; mean over seeds with the smallest and largest in brackets.

    Args:
        comparison: The comparison.
        monitor: Show the measures of monitorability too.
    """
    names = list(comparison.base.measures)
    for result in comparison.arms:
        names += [name for name in result.verification.measures if name not in names]
    if not monitor:
        names = [name for name in names if not name.startswith(SKIPPED)]
    seeds = len({result.seed for result in comparison.arms})
    lines = [
        f"Model: {comparison.model}. Data: {comparison.data}. {seeds} seed(s).",
        "",
        "| arm | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        "| (start model) | " + " | ".join(_one(comparison.base.measures.get(name)) for name in names) + " |",
    ]
    for arm in comparison.arm_names():
        cells = [_cell(comparison.values(arm, name)) for name in names]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _one(measure: Measure | None) -> str:
    return "" if measure is None else f"{measure.value:.2f}"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"
