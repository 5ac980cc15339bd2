"""Write the tables and figures of README and docs from `docs/results/*.json`, so that no figure is typed by hand.

    python scripts/results.py           # rewrite the blocks
    python scripts/results.py --check   # fail where a block is out of date

A block stands between `<!-- results: NAME -->` (or `NAME brief`) and `<!-- /results -->`; NAME is a file of `docs/results/`, which a
script in `benchmarks/` wrote (`benchmarks/summary.py`). What stands between `<!-- value: NAME | ROW | COLUMN -->` and
`<!-- /value -->` is one cell within a sentence. A file names its command and model, and each table carries both. Every
`docs/results/NAME.comparison.json`, and every record that names a figure, becomes the figure `docs/figures/NAME.svg`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fairlead.core.results import Comparison
from fairlead.reports import arms_svg, curves_svg
from fairlead.reports.numbers import Cell
from fairlead.reports.svg import Panel, even_ticks, panels_svg

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- results: ([\w-]+)( brief)? -->\n).*?(<!-- /results -->)", re.S)

VALUE = re.compile(r"(<!-- value: ([\w-]+) \| ([^|]+?) \| (\w+) -->).*?(<!-- /value -->)", re.S)


def table(record: dict[str, Any], *, brief: bool = False) -> str:
    """One Markdown table with the command and the model below it; the brief one has the rows and columns that the record names."""
    columns, rows = record["columns"], record["rows"]
    if brief:
        columns = [column for column in columns if column["key"] in record["brief"]["columns"]]
        rows = [row for row in rows if row["title"] in record["brief"]["rows"]]
    lines = ["| " + " | ".join(["", *(column["title"] for column in columns)]) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = [row["cells"].get(column["key"], "") for column in columns]
        mark = "**" if row.get("bold") else ""
        lines.append(
            "| " + " | ".join(f"{mark}{cell}{mark}" if cell else "" for cell in [row["title"], *cells]) + " |"
        )
    about = " ".join(record.get("notes", []))
    lines += ["", f"{about} Model: {record['model']}. Command: `{record['command']}`.".strip(), ""]
    return "\n".join(lines)


def render(text: str) -> str:
    """The text with every block made anew."""

    def block(match: re.Match[str]) -> str:
        source = ROOT / "docs" / "results" / f"{match.group(2)}.json"
        if not source.is_file():
            sys.exit(
                f"no {source.relative_to(ROOT)}. Next: run the benchmark that publishes it, or remove the block."
            )
        record = json.loads(source.read_text("utf-8"))
        return match.group(1) + "\n" + table(record, brief=bool(match.group(3))) + "\n" + match.group(4)

    return VALUE.sub(value, BLOCK.sub(block, text))


def value(match: re.Match[str]) -> str:
    """One cell of a table within a sentence."""
    begin, name, title, key, end = match.groups()
    record = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
    cells = [row["cells"][key] for row in record["rows"] if row["title"] == title]
    if len(cells) != 1:
        sys.exit(f"{name}: {len(cells)} rows are called '{title}'. Next: correct the value in the text.")
    return begin + cells[0] + end


def drawn(source: Path) -> str | None:
    """The figure of a record; None where it has none."""
    text = source.read_text("utf-8")
    if source.name.endswith(".comparison.json"):
        comparison = Comparison.model_validate_json(text)
        return curves_svg(comparison) if comparison.checked_steps() else arms_svg(comparison)
    record = json.loads(text)
    if "figure" not in record:
        return None
    lines = {
        name: [
            (row["place"], Cell(*row["values"][name], tuple(row["values"][name]))) for row in record["rows"]
        ]
        for name in record["figure"]["lines"]
    }
    ends = [end for line in lines.values() for _, cell in line for end in cell[:3]]
    low, high = min(1.0, *ends) - 0.02, max(ends) + 0.02
    panel = Panel(
        record["figure"]["title"], lines, low, high, even_ticks(low, high), record["figure"]["unit"]
    )
    return panels_svg([panel], record["figure"]["lines"])


def main() -> None:
    """Rewrite, or check."""
    stale = []
    for source in sorted((ROOT / "docs" / "results").glob("*.json")):
        file = ROOT / "docs" / "figures" / f"{source.name.split('.')[0]}.svg"
        fresh = drawn(source)
        if fresh is None:
            continue
        if not file.is_file() or file.read_text("utf-8") != fresh:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.parent.mkdir(exist_ok=True)
                file.write_text(fresh, "utf-8")
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = file.read_text("utf-8")
        fresh = render(text)
        if fresh != text:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.write_text(fresh, "utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"tables out of date in {', '.join(stale)}. Next: python scripts/results.py")
    print(f"tables: {len(stale)} rewritten" if "--check" not in sys.argv else "tables: up to date")


if __name__ == "__main__":
    main()
