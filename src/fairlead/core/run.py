"""Runs: replayable directories.

A run is written to `NAME.part` and renamed to `NAME` when complete, so a folder without `.part` is
whole. It holds `run.json` (what was run, resolved config, versions, seeds, git sha, input hashes, times)
beside whatever the study writes. A file lock keeps two processes off one run; an interrupted run
leaves its `.part` folder, which `resume=True` continues when config and inputs are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from fairlead.core.errors import RunError

RUN_FILE = "run.json"
_VERSIONED = ("fairlead", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value in canonical form."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (file or folder) that replaces it on success.

    On failure the temporary is removed and what stood at `path` is untouched.

    Raises:
        RunError: The disk is full or the place cannot be written; names the path.
    """
    path = Path(path)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = path.with_name(path.name + f".{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot write ({error.strerror or error}). What stood there before is untouched. "
            "Next: free space or choose another --out."
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically (UTF-8, two spaces)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        RunError: Missing or broken file; names it.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file. Next: check the path of the run folder.") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{path}: broken JSON ({error}). Next: repeat the run that made it.") from error


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a run's numbers."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_sha() -> str | None:
    """Commit of the checkout that holds this file; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


class Run:
    """One run folder, as a context manager.

    ```python
    with Run.start("runs/first", study="preview", config={...}, inputs={"data": sha}) as run:
        run.write_json("menu.json", menu)      # into runs/first.part
        run.finish({"num_lines": 12})           # summary; on exit the folder is renamed
    ```

    Leaving the block by an exception (or a kill) keeps `NAME.part` for `resume=True`.
    """

    def __init__(self, final: Path, lock: FileLock, record: dict[str, Any], resumed: bool) -> None:
        self.final = final
        self.folder = part_path(final)
        self.record = record
        self.resumed = resumed
        self._lock = lock

    @classmethod
    def start(
        cls,
        out: str | Path,
        *,
        study: str,
        config: dict[str, Any],
        inputs: dict[str, str] | None = None,
        seed: int = 0,
        resume: bool = True,
        overwrite: bool = False,
    ) -> Self:
        """Lock and open a run folder.

        An unfinished `.part` folder of the same study, config, seed and inputs is continued when `resume`
        is set; one of another config is an error unless `overwrite`.

        Raises:
            RunError: Another process holds the run, the folder exists already, or cannot be made.
        """
        final = Path(out).resolve()
        part = part_path(final)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(final.with_name(f".{final.name}.lock")))
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{final}: another process is writing this run. Next: wait for it or choose another --out."
            ) from None
        except OSError as error:
            raise RunError(
                f"{final}: cannot make the run folder ({error.strerror}). Next: choose another --out."
            ) from error
        try:
            identity = sha256_json([study, config, inputs or {}, seed])
            if final.exists():
                if not overwrite:
                    raise RunError(
                        f"{final}: exists already. Next: choose another --out or pass --overwrite."
                    )
            resumed = False
            if part.exists():
                old = _peek(part / RUN_FILE)
                if resume and old.get("identity") == identity:
                    resumed = True
                elif old and not overwrite:
                    raise RunError(
                        f"{part}: holds an unfinished run with other settings or inputs. Next: finish it with "
                        "the same settings, pass --overwrite, or choose another --out."
                    )
                else:
                    shutil.rmtree(part)
            part.mkdir(exist_ok=True)
            record = {
                "format": "fairlead.run",
                "version": 1,
                "study": study,
                "identity": identity,
                "config": config,
                "inputs": inputs or {},
                "seed": seed,
                "versions": versions(),
                "git_sha": git_sha(),
                "command": sys.argv,
                "started": time.time(),
                "finished": None,
                "summary": {},
            }
            write_json(part / RUN_FILE, record)
            return cls(final, lock, record, resumed)
        except BaseException:
            lock.release()
            raise

    def path(self, name: str) -> Path:
        """Path of a file in the (unfinished) run folder; its parent is made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file or a pydantic record into the run folder."""
        path = self.path(name)
        write_json(path, value.model_dump(mode="json") if hasattr(value, "model_dump") else value)
        return path

    def finish(self, summary: dict[str, Any] | None = None) -> Path:
        """Record the summary and rename the folder to its final name (once)."""
        if self.folder == self.final:
            return self.final
        self.record["finished"] = time.time()
        self.record["summary"] = summary or {}
        write_json(self.folder / RUN_FILE, self.record)
        old = None
        try:
            if self.final.exists():
                old = self.final.with_name(self.final.name + f".{os.getpid()}.old")
                os.replace(self.final, old)
            os.replace(self.folder, self.final)
        except OSError as error:
            raise RunError(f"{self.final}: cannot finish the run ({error.strerror}).") from error
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        self.folder = self.final
        return self.final

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish(self.record["summary"])
        finally:
            self._lock.release()  # the lock file stays: removing it would let two processes in


def part_path(final: str | Path) -> Path:
    """Where a run lives until it is complete."""
    final = Path(final)
    return final.with_name(final.name + ".part")


def read_run(folder: str | Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        RunError: No run there, or it is unfinished; says how to go on.
    """
    folder = Path(folder)
    if not (folder / RUN_FILE).is_file():
        hint = ""
        if (part_path(folder) / RUN_FILE).is_file():
            hint = " An unfinished one stands beside it: repeat the same command to resume it."
        raise RunError(f"{folder}: not a run folder (no {RUN_FILE}).{hint}")
    return read_json(folder / RUN_FILE)


def _peek(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
