"""How results and errors are printed, the same for every command.

Human mode: a short table or summary, then the run folder as the last line of standard output. With
`--json`: one object on standard output, `{"command", "run", ...result...}`; on an error
`{"command", "error": {"type", "message"}}`. Progress and whatever a library prints go to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def run_folder(out: Path | None, stem: str, *, mark: str = "") -> Path:
    """The run folder of a command: `out`, or the first of `runs/STEM-1`, `-2`, ... that is not finished.

    An interrupted run leaves `runs/STEM-N.part` only, so the same command finds it again.

    Args:
        out: As given on the command line.
        stem: Name of the kind of run.
        mark: File that makes a folder a finished one; "" where its being there does.
    """
    if out is not None:
        return out
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").joinpath(mark).exists():
        number += 1
    return folder


@contextmanager
def working() -> Iterator[None]:
    """Keep standard output for the result: what libraries print inside the block goes to standard error."""
    with redirect_stdout(sys.stderr):
        yield


def to_json(value: Any) -> Any:
    """JSON form of records, paths, tuples and plain values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def finish(
    command: str,
    *,
    as_json: bool,
    run: Path | None,
    result: Mapping[str, Any],
    show: Callable[[Console], None],
) -> None:
    """Print a command's result: JSON, or `show` on a console and the run folder last.

    Args:
        command: Its words, `"dict train"`.
        as_json: Whether `--json` was given.
        run: The run folder; None for commands that write nothing.
        result: What the JSON object holds besides `command` and `run`.
        show: Prints the result for a person.
    """
    if as_json:
        import json

        record = {"command": command, "run": str(run) if run is not None else None, **to_json(result)}
        print(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=True))
        return
    from rich.console import Console

    show(Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    if run is not None:
        print(run)


def print_error(kind: str, message: str, *, as_json: bool) -> None:
    """Say what went wrong: one line on standard error, and with `--json` an object on standard output."""
    if as_json:
        import json

        print(json.dumps({"error": {"type": kind, "message": message}}, ensure_ascii=False))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        Console(stderr=True, highlight=False).print(f"[bold red]{kind}[/]: {escape(message)}")
    else:
        print(f"{kind}: {message}", file=sys.stderr)
