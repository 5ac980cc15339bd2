"""Reports of run folders: finds the records that studies left there and hands them to the page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from fairlead.core.config import Record, describe_validation
from fairlead.core.errors import RunError
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison, StepRecord, Verification
from fairlead.core.run import RUN_FILE, read_json

FILES: dict[str, type[Record]] = {
    "menu": Menu,
    "plan": Plan,
    "comparison": Comparison,
    "verification": Verification,
}
METRICS = "metrics.jsonl"
PAGES = {
    "reward.json": "reward page",
    "catalogue.sqlite": "concepts page",
}  # runs whose page has a command of its own
R = TypeVar("R", bound=Record)


class RunInfo(NamedTuple):
    """Where records came from: the folder and its `run.json` (empty where it has none)."""

    folder: str
    record: dict[str, Any]

    @property
    def command(self) -> str:
        """The command line as recorded."""
        import shlex

        words = self.record.get("command")
        if not isinstance(words, list) or not words:
            return ""
        return shlex.join([Path(str(words[0])).name, *(str(word) for word in words[1:])])


def _next_for(folder: Path) -> str:
    """What shows a folder that the report does not."""
    for file, command in PAGES.items():
        if (folder / file).is_file():
            return f"fairlead {command} {folder} writes the page of such a run"
    pages = sorted(folder.glob("*.html"))
    if pages:
        return f"open {pages[0]}, the page that this run wrote itself"
    return "give the folder of a finished preview, decision, comparison or verification"


def report_run(
    run_folder: str | Path | Sequence[str | Path], out: str | Path | None = None, *, title: str | None = None
) -> Path:
    """Write the report of one run folder, or of several that belong together (preview, comparison, ...).

    Looks for `menu.json`, `plan.json`, `comparison.json`, `verification.json` and `metrics.jsonl` in each folder, then
    one and two levels below it (a record in an earlier folder or nearer to its top wins; a verification below the top
    is one of many arms and is not taken where there is a comparison).

    Args:
        out: File to write; `report.html` in the first folder by default.

    Raises:
        RunError: A folder is missing, holds none of these files, or one of them is broken; names the file.
    """
    folders = [Path(run_folder)] if isinstance(run_folder, str | Path) else [Path(f) for f in run_folder]
    if not folders:
        raise RunError("report: no run folder given. Next: name at least one.")
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such run folder. Next: check the path.")
    paths = {name: _find(folders, f"{name}.json") for name in FILES}
    if paths["comparison"] is not None and not _at_top(folders, paths["verification"]):
        paths["verification"] = None
    if not any(paths.values()):
        wanted = ", ".join(f"{name}.json" for name in FILES)
        raise RunError(f"{folders[0]}: none of {wanted} there. Next: {_next_for(folders[0])}.")
    records: dict[str, Any] = {
        name: _read(path, FILES[name]) for name, path in paths.items() if path is not None
    }
    metrics = _find(folders, METRICS) if paths["comparison"] is None else None
    from fairlead.reports.page import write_report

    return write_report(
        Path(out) if out is not None else folders[0] / "report.html",
        **records,
        title=title,
        steps=read_steps(metrics) if metrics is not None else (),
        runs=_run_infos([*folders, *(path.parent for path in paths.values() if path is not None)]),
    )


def read_steps(path: Path) -> tuple[StepRecord, ...]:
    """The steps of a `metrics.jsonl`; an unfinished last line is left out.

    Raises:
        RunError: A line is not a step record; names file and line.
    """
    lines = path.read_text("utf-8").splitlines(keepends=True)
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            steps.append(StepRecord.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise RunError(f"{path}:{number}: not a step record ({error.errors()[0]['msg']}).") from error
    return tuple(steps)


def _find(folders: Iterable[Path], name: str) -> Path | None:
    for folder in folders:
        for pattern in (name, f"*/{name}", f"*/*/{name}"):
            found = sorted(p for p in folder.glob(pattern) if ".part" not in p.parent.name and p.is_file())
            if found:
                return found[0]
    return None


def _at_top(folders: Iterable[Path], path: Path | None) -> bool:
    return path is not None and any(path.parent == folder for folder in folders)


def _read(path: Path, kind: type[R]) -> R:
    values = read_json(path)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RunError(
            f"{path}: {describe_validation(error, kind.__name__)} Or repeat the run that made it."
        ) from error


def _run_infos(folders: Iterable[Path]) -> tuple[RunInfo, ...]:
    infos = {}
    for folder in folders:
        file = folder / RUN_FILE
        try:
            record = json.loads(file.read_text("utf-8"))
        except (OSError, json.JSONDecodeError):
            record = {}  # a folder need not be a run: the page then shows its name alone
        infos.setdefault(str(folder), RunInfo(str(folder), record if isinstance(record, dict) else {}))
    return tuple(infos.values())
