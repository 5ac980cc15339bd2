"""Say what you want: `spec check` and `spec init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.options import AsJson, ConfigFile
from fairlead.cli.output import finish, working

PANEL = "Say what you want"
TEMPLATE = """\
# Spec: what this training is for

Free text is ignored. Each top-level bullet is a clause; the bullets below it are its evidence.

## Keep

- Add two numbers correctly.
  - "What is 12 plus 30?" -> "12 plus 30 is 42."
  - "What is 7 plus 5?" -> "7 plus 5 is 12."

## Avoid

- Talk like a pirate.
  - "What is 3 plus 4?" -> "Arr, 3 plus 4 be 7, matey!" instead "3 plus 4 is 7."
  - request: "Talk like a pirate."
  - check: /\\b(arr|matey)\\b/i
"""

group = typer.Typer(
    help="The spec, what to keep and what to avoid in plain language: check, init.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.add_typer(group, name="spec", rich_help_panel=PANEL)


@group.command("check")
def spec_check(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="The spec, a Markdown file.", show_default=False)
    ],
    *,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Say how a spec is understood, and what is missing; an error names the line.

    JSON: `spec`.

    Example:

        fairlead spec check task/spec.md
    """
    from fairlead.data import explain_spec, load_spec

    with working():
        found = load_spec(spec)
    finish(
        "spec check",
        as_json=as_json,
        run=None,
        result={"spec": found},
        show=lambda console: console.print(explain_spec(found), markup=False),
    )


@group.command("init")
def spec_init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File to write, which must not exist.", show_default=False)
    ],
    *,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Write a spec to start from.

    JSON: `file`.

    Example:

        fairlead spec init my-spec.md
    """
    from fairlead.core.errors import RunError
    from fairlead.core.run import atomic_path

    if file.exists():
        raise RunError(f"{file}: exists already. Next: choose another name.")
    with atomic_path(file) as temporary:
        temporary.write_text(TEMPLATE, encoding="utf-8")
    finish(
        "spec init",
        as_json=as_json,
        run=None,
        result={"file": file},
        show=lambda console: console.print(
            f"{file}: edit it, then `fairlead spec check {file}`", markup=False
        ),
    )
