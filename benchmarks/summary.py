"""Write a published table: `docs/results/NAME.json`, from which `scripts/results.py` renders README and docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.core.results import Comparison, Verification
from fairlead.core.run import write_json
from fairlead.core.stats import t_interval

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def cell(values: Sequence[float], *, digits: int = 2, percent: bool = False) -> str:
    """Mean with the 95 % t interval over seeds (shares stay within 0 and 1)."""
    if not values:
        return ""
    found = t_interval([100 * value for value in values] if percent else values)
    if percent:
        half = f" ± {found.high - found.value:.0f}" if len(values) > 1 else ""
        return f"{found.value:.0f}{half} %"
    if len(values) == 1:
        return f"{found.value:.{digits}f}"
    half = found.high - found.value
    return f"{found.value:.{digits}f} ± {half:.{digits}f}"


def write_table(
    name: str,
    *,
    title: str,
    model: str,
    command: str,
    columns: Sequence[tuple[str, str]],
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str] = (),
    brief: dict[str, Sequence[str]] | None = None,
    figure: dict[str, Any] | None = None,
) -> Path:
    """Store a table.

    Args:
        name: File name without ending.
        title: What it shows.
        model: On which model.
        command: What makes it.
        columns: (key, title) in order.
        rows: `{"title", "cells": {key: text}, "values": {key: [number per seed]}, "bold"}`.
        notes: Sentences below the table.
        figure: `{"title", "lines": [key], "unit": format}`: draw these values (middle, low, high) of the rows over their "place".
        brief: Titles of "rows" and keys of "columns" that the README shows.
    """
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "title": title,
            "model": model,
            "command": command,
            "columns": [{"key": key, "title": text} for key, text in columns],
            "rows": list(rows),
            "notes": list(notes),
            **({"figure": figure} if figure else {}),
            **({"brief": {key: list(names) for key, names in brief.items()}} if brief else {}),
        },
    )
    return path


def comparison_rows(
    comparison: Comparison, keys: Sequence[str], *, titles: dict[str, str], bold: str = ""
) -> list[dict[str, Any]]:
    """One row for the start model and one an arm, mean and interval over seeds."""
    base = {key: m.value for key in keys if (m := comparison.base.measures.get(key)) is not None}
    rows: list[dict[str, Any]] = [
        {
            "title": "start model",
            "cells": {key: f"{value:.2f}" for key, value in base.items()},
            "values": {key: [value] for key, value in base.items()},
        }
    ]
    for arm in comparison.arm_names():
        values = {key: comparison.values(arm, key) for key in keys}
        rows.append(
            {
                "title": titles.get(arm, arm),
                "cells": {key: cell(found) for key, found in values.items()},
                "values": values,
                "bold": arm == bold,
            }
        )
    return rows


def write_figure(name: str, comparison: Comparison, *, titles: dict[str, str]) -> Path:
    """Store what the figure of a comparison needs (measures only): `docs/results/NAME.comparison.json`."""
    arms = [
        arm.model_copy(
            update={
                "arm": titles.get(arm.arm, arm.arm),
                "steps": (),
                "folder": "",
                "verification": _bare(arm.verification),
            }
        )
        for arm in comparison.arms
    ]
    bare = comparison.model_copy(update={"base": _bare(comparison.base), "arms": tuple(arms)})
    path = RESULTS / f"{name}.comparison.json"
    write_json(path, bare.model_dump(mode="json"))
    return path


def _bare(found: Verification) -> Verification:
    return found.model_copy(update={"samples": (), "predictions": (), "notes": (), "model": ""})
