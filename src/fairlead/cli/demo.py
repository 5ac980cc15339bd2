"""`fairlead demo`: the whole loop on the bundled model."""

from __future__ import annotations

from typing import Annotated

import typer

from fairlead.cli.options import AsJson, ConfigFile, Out, Overwrite, Seed
from fairlead.cli.output import finish, run_folder, working


def register(app: typer.Typer) -> None:
    """Add the command to the table of contents."""
    app.command("demo", rich_help_panel="Start here")(demo)


def demo(
    *,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each arm.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Training processes; one for each core, at most two, by default."),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Watch intentional design on the pocket model, in minutes, offline, without a GPU.

    Sums answered in pirate speech: keep the sums, leave the pirate. Trains a dictionary, shows the menu,
    decides by the spec, trains four arms (plain, gradient projection, inoculation, the recipe), verifies
    them and writes a report.

    JSON: `comparison`, and `report`, the file.

    Example:

        fairlead demo --steps 4 --out runs/demo
    """
    from fairlead.cli.show import show_comparison
    from fairlead.reports import report_run
    from fairlead.studies.demo import REPORT_FILE
    from fairlead.studies.demo import demo as study

    folder = run_folder(out, "demo", mark="report.html")
    with working():
        result = study(folder, steps=steps, seed=seed, workers=workers, overwrite=overwrite)
        report = report_run(folder, folder / REPORT_FILE)
    finish(
        "demo",
        as_json=as_json,
        run=folder,
        result={"comparison": result.comparison, "report": report},
        show=lambda console: show_comparison(console, result.comparison, report=report),
    )
