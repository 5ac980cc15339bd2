"""The loop: `dial` a training while it runs, `replay` it, `branch` from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.options import AsJson, ConfigFile, Out, Overwrite
from fairlead.cli.output import finish, run_folder, working

if TYPE_CHECKING:
    from rich.console import Console

    from fairlead.training import DialMove

PANEL = "The loop"
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder of a training.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.command("dial", rich_help_panel=PANEL)(dial)
    app.command("replay", rich_help_panel=PANEL)(replay)
    app.command("branch", rich_help_panel=PANEL)(branch)


def dial(
    run: RunFolder,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A control of the run, or training.", show_default=False),
    ] = None,
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="[VALUE]",
            help="A strength, on or off; for training: pause, go, save or stop.",
            show_default=False,
        ),
    ] = None,
    *,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Turn a dial of a training that is running; without NAME, show its dials and the moves made so far.

    The training makes the move before its next step and records it with the step. JSON: `dials`, `moves`, `requested`.

    Example:

        fairlead dial runs/train
    """
    from fairlead.core.errors import ConfigError
    from fairlead.core.run import part_path
    from fairlead.training import dial_names, read_moves, request_move

    if name is not None and value is None:
        raise ConfigError(f"{name}: no value given. Next: fairlead dial {run} {name} VALUE.")
    requested = None if name is None or value is None else request_move(run, name, value)
    folder = part_path(run) if part_path(run).is_dir() else run
    names, moves = dial_names(folder), read_moves(folder)

    def show(console: Console) -> None:
        if requested is not None:
            console.print(f"asked for: {requested.name} {requested.value}", markup=False)
        console.print(f"dials: {', '.join(names)}", markup=False)
        for move in moves:
            console.print(f"  after step {move.step}: {move.name} {move.value}", markup=False)

    result = {"dials": names, "moves": moves, "requested": requested}
    finish("dial", as_json=as_json, run=run, result=result, show=show)


def replay(
    run: RunFolder,
    *,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Train again from a run's record, turns of its dials included, and compare the two trajectories.

    JSON: `same`, `first_difference` (step), `max_difference` (of two losses).

    Example:

        fairlead replay runs/train --out runs/replay
    """
    from fairlead.studies.replay import replay as study

    folder = run_folder(out, "replay")
    with working():
        found = study(run, out=folder, overwrite=overwrite)

    def show(console: Console) -> None:
        verdict = (
            "the same trajectory"
            if found.same
            else f"differs from step {found.first_difference} on, by up to {found.max_difference:.2g} in the loss"
        )
        console.print(f"{len(found.run.steps)} steps repeated: {verdict}", markup=False)

    result = {
        "same": found.same,
        "first_difference": found.first_difference,
        "max_difference": found.max_difference,
    }
    finish("replay", as_json=as_json, run=folder, result=result, show=show)


def branch(
    run: RunFolder,
    *,
    at: Annotated[int, typer.Option(min=0, help="Steps to repeat before the two part.")],
    dials: Annotated[
        list[str] | None,
        typer.Option("--dial", metavar="NAME=VALUE", help="Move to make there; may be repeated."),
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Repeat a training up to a step and go on from there with other moves.

    JSON: `model` (folder of the weights), `moves`, `steps`.

    Example:

        fairlead branch runs/train --at 1 --dial explain_away=0.5 --out runs/branch
    """
    from fairlead.cli.show import show_training
    from fairlead.studies.replay import branch as study

    folder = run_folder(out, "branch")
    with working():
        made = study(
            run, at=at, moves=[_move(text, at) for text in dials or []], out=folder, overwrite=overwrite
        )
    result: dict[str, Any] = {"model": made.model_folder, "moves": made.moves, "steps": len(made.steps)}
    finish(
        "branch",
        as_json=as_json,
        run=folder,
        result=result,
        show=lambda console: show_training(console, made),
    )


def _move(text: str, step: int) -> DialMove:
    from fairlead.core.errors import ConfigError
    from fairlead.training import DialMove

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--dial {text}: not NAME=VALUE. Next: write --dial explain_away=0.5.")
    return DialMove.make({"step": step, "name": name, "value": value})
