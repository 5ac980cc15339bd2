"""Records that earlier commands left in their run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.core.errors import RunError
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison, Verification
from fairlead.core.run import read_json, read_run

RECORDS = {"menu": Menu, "plan": Plan, "comparison": Comparison, "verification": Verification}


def read_artefacts(folders: Sequence[Path]) -> dict[str, Any]:
    """The menu, plan, comparison and verification that stand in run folders; a later folder wins.

    Raises:
        RunError: A folder is not a run, a record is broken, or there is none in all of them.
    """
    found: dict[str, Any] = {}
    for folder in folders:
        read_run(folder)
        for name, kind in RECORDS.items():
            path = folder / f"{name}.json"
            if path.is_file():
                found[name] = _read(path, kind)
    if not found:
        places = ", ".join(str(folder) for folder in folders)
        raise RunError(
            f"{places}: holds none of {', '.join(f'{n}.json' for n in RECORDS)}. Next: pass the run folders of "
            "preview, decide, compare, verify or demo."
        )
    return found


def read_plan(path: Path) -> Plan:
    """The plan of a run folder, or of a plan file.

    Raises:
        RunError: There is none, or it is broken.
    """
    return _read(path / "plan.json" if path.is_dir() else path, Plan)


def _read(path: Path, kind: Any) -> Any:
    from pydantic import ValidationError

    from fairlead.core.config import describe_validation

    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(
            f"{path}: not a {kind.__name__.lower()}: {describe_validation(error, path.name)}"
        ) from error
