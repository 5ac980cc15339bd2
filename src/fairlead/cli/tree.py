"""The command tree as data: every command with its words and the examples in its help.

The reference page, the checks of the documents and the tests read it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any


def root() -> Any:
    """The root of the command tree."""
    import typer

    from fairlead.cli.app import app

    return typer.main.get_command(app)


def walk(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words, in the order of `fairlead --help`."""
    command = root() if command is None else command
    children = getattr(command, "commands", None)
    if children is None:
        yield words, command
        return
    for name, child in children.items():
        yield from walk(child, (*words, name))


def help_text(command: Any) -> str:
    """A command's help without its examples."""
    return inspect.cleandoc(command.help or "").partition("Example:")[0].strip()


def examples(command: Any) -> list[str]:
    """The command lines below `Example:` in a command's help."""
    text = inspect.cleandoc(command.help or "").partition("Example:")[2].replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip().startswith("fairlead ")]
