"""The `fairlead` program: its table of contents, and what becomes of errors.

Nothing here or in the command modules imports torch, pydantic models or a study at the top of the file:
`fairlead --help` must answer in under half a second. Exit codes: 0 done; 2 the user can mend it
(`FairleadError`, wrong usage); 130 interrupted; 1 a bug (with its traceback).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from fairlead.cli import (
    concepts,
    demo,
    guard,
    inside,
    loop,
    main_path,
    organism,
    probes,
    reward,
    spec,
    steering,
)
from fairlead.cli.output import print_error

app = typer.Typer(
    name="fairlead",
    help=(
        "See what your data would teach a model, say what it should learn, train so that it learns that and not "
        "the rest, and prove it.\n\nNew here? Run `fairlead demo`. Each command's --help has an example."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from fairlead import __version__

        print(f"fairlead {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_version
    ),
) -> None:
    pass


demo.register(app)
main_path.register(app)
loop.register(app)
inside.register(app)
concepts.register(app)
steering.register(concepts.group)
probes.register(app)
guard.register(app)
reward.register(app)
spec.register(app)
organism.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: the entry point of the `fairlead` script.

    Args:
        arguments: Words after the program's name; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(words))


def run(words: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code (see the module for their meaning)."""
    as_json = "--json" in words
    try:
        code = app(list(words), prog_name="fairlead", standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except typer.Abort:
        print_error("Aborted", "Stopped at a question; nothing was changed.", as_json=as_json)
        return 1
    except typer.TyperException as error:  # wrong usage: unknown option, missing argument, ...
        where = getattr(error, "ctx", None)
        hint = f" See: {where.command_path} --help" if where is not None else ""
        message = error.format_message()
        if message:  # no_args_is_help raises an empty one after the help
            print_error("UsageError", message + hint, as_json=as_json)
        return error.exit_code
    except ValueError as error:
        from fairlead.core.errors import FairleadError

        if not isinstance(error, FairleadError) or os.environ.get("FAIRLEAD_DEBUG"):
            raise
        print_error(type(error).__name__, str(error), as_json=as_json)
        return 2
    if code == 130:
        print_error(
            "Interrupted",
            "Stopped. What was done so far is kept: repeat the same command to go on from there.",
            as_json=as_json,
        )
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
