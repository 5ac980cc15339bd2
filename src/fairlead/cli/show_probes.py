"""Probes as a person reads them in a terminal: kinds, then what each baseline lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from fairlead.studies.probes import Probed


def show_probes(console: Console, found: Probed) -> None:
    """A line a kind, a line a baseline of the best kind."""
    best = found.records[found.best]
    table = Table(
        title=f"Probe for '{found.probe.name}' on {best['num_entities']} unseen entities",
        title_justify="left",
        box=None,
    )
    for name in ("kind", "AUROC", "95 % interval", "calibration error", "before"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind, record in found.records.items():
        low, high = record["auroc_interval"]
        name = f"{kind} (kept)" if kind == found.best and len(found.records) > 1 else kind
        table.add_row(
            name,
            f"{record['auroc']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{record['ece']:.3f}",
            f"{record['ece_before']:.3f}",
        )
    console.print(table)
    console.print(_baselines(found.best, best))


def _baselines(kind: str, record: dict[str, Any]) -> Table:
    table = Table(title="Baselines", title_justify="left", box=None)
    for name in ("baseline", "AUROC", f"{kind} has more by", "95 % interval"):
        table.add_column(name, justify="left" if name == "baseline" else "right")
    for name, row in record["baselines"].items():
        value, low, high = row["gain"]
        table.add_row(name, f"{row['auroc']:.3f}", f"{value:+.3f}", f"{low:+.3f} to {high:+.3f}")
    return table
