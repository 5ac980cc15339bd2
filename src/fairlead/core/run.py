"""Runs: replayable directories.

A run is written to `NAME.part` and renamed to `NAME` when complete, so a folder without `.part` is
whole. It holds `run.json` (what was run, resolved config, versions, seeds, git sha, input hashes, times)
beside whatever the study writes. A file lock keeps two processes off one run; an interrupted run
leaves its `.part` folder, which `resume=True` continues when config and inputs are the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from fairlead.core.errors import FairleadError, RunError

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


def sha256_json_list(values: Iterable[Any]) -> str:
    """`sha256_json` of a list whose items come one by one and are never together in memory."""
    digest = hashlib.sha256(b"[")
    for place, value in enumerate(values):
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        digest.update(f",{text}".encode() if place else text.encode())
    digest.update(b"]")
    return digest.hexdigest()


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
        _remove(temporary)  # of a killed process that had the same number
        yield temporary
        _replace(temporary, path)
    except Exception as error:
        reason = write_failure(error)
        if reason is None or _is_about_another(error, temporary):
            raise
        raise RunError(
            f"{path}: cannot write ({reason}). What stood there before is untouched. "
            "Next: free space or choose another --out."
        ) from error
    finally:
        _remove(temporary)


def write_failure(error: BaseException) -> str | None:
    """Why a file could not be written, where that is what `error` is about; None otherwise.

    Python reports it as `OSError`; safetensors and torch as errors of their own that only their text tells
    apart.
    """
    if isinstance(error, RunError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    text = str(error)
    number = re.search(r"\(os error (\d+)\)", text)
    if number:
        return os.strerror(int(number.group(1)))
    if "inline_container" in text or "PytorchStreamWriter" in text:
        return "the file could not be written in full; the disk may be full"
    return None


def _is_about_another(error: Exception, temporary: Path) -> bool:
    """Whether a missing file has nothing to do with what is being written."""
    if not isinstance(error, FileNotFoundError) or error.filename is None:
        return False
    missing = Path(os.fsdecode(error.filename))
    return missing != temporary and temporary not in missing.parents


def _replace(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`; where that fails, `path` is as before."""
    if not (new.is_dir() and path.is_dir()):
        os.replace(new, path)
        return
    old = path.with_name(path.name + f".{os.getpid()}.old")
    _remove(old)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or folder that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically (UTF-8, two spaces); text that UTF-8 cannot hold is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        RunError: Missing or broken file; names it.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file. Next: check the path of the run folder.") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # broken JSON, or not UTF-8
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

    Leaving the block by an exception (or a kill) keeps `NAME.part` for `resume=True`; bad input that
    is found before anything was written leaves none.
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
        is set; any other content of that folder is an error unless `overwrite`, which removes it.

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
            if final.exists() and not overwrite:
                raise RunError(f"{final}: exists already. Next: choose another --out or pass --overwrite.")
            old, resumed = _unfinished(part), False
            if old is not None:
                resumed = resume and old.get("identity") == identity
                if not resumed and not overwrite:
                    raise RunError(_why_not(part, old, identity, {**config, **(inputs or {})}))
                if not resumed:
                    _remove(part)
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
            if resumed and old is not None:
                record["started"] = old.get("started", record["started"])
            write_json(part / RUN_FILE, record)
            return cls(final, lock, record, resumed)
        except OSError as error:
            lock.release()
            raise RunError(
                f"{part}: cannot make the run folder ({error.strerror or error}). Next: free space or choose "
                "another --out."
            ) from error
        except BaseException:
            lock.release()
            raise

    def path(self, name: str) -> Path:
        """Path of a file in the (unfinished) run folder; its parent is made."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot write ({error.strerror or error}). Next: free space.") from error
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
        try:
            _replace(self.folder, self.final)
        except OSError as error:
            raise RunError(
                f"{self.final}: cannot finish the run ({error.strerror or error}). It is whole in "
                f"{self.folder}. Next: repeat the same command."
            ) from error
        self.folder = self.final
        return self.final

    def _is_bare(self) -> bool:
        """Whether the unfinished folder holds nothing besides its record."""
        if self.folder == self.final or not self.folder.is_dir():
            return False
        return not any(path.name != RUN_FILE and path.is_file() for path in self.folder.rglob("*"))

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
            elif isinstance(error, Exception) and self.folder != self.final and _disk_full(error):
                raise RunError(
                    f"{self.folder}: cannot write ({write_failure(error)}). What was written so far is kept. "
                    "Next: free space and repeat the same command to go on."
                ) from error
            elif (
                isinstance(error, FairleadError)
                and not isinstance(error, RunError)
                and not self.resumed
                and self._is_bare()
            ):
                _remove(self.folder)  # refused before any work: the mended input must not find it in the way
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
    record = read_json(folder / RUN_FILE)
    if not isinstance(record, dict) or record.get("format") != "fairlead.run":
        raise RunError(
            f"{folder / RUN_FILE}: not the record of a run. Next: check the path of the run folder."
        )
    if record.get("finished") is None:
        raise RunError(f"{folder}: the run is unfinished. Next: repeat the same command to resume it.")
    return record


def _unfinished(part: Path) -> dict[str, Any] | None:
    """The record of an unfinished run; empty where the folder holds something else, None where it holds nothing."""
    if not part.exists() or (
        part.is_dir() and all(re.fullmatch(r"run\.json\.\d+\.tmp", path.name) for path in part.iterdir())
    ):
        return None
    try:
        record = json.loads((part / RUN_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _why_not(part: Path, old: dict[str, Any], identity: str, wanted: dict[str, Any]) -> str:
    if not old:
        return (
            f"{part}: stands in the way and is not an unfinished run. Next: move it, or choose another --out."
        )
    if old.get("identity") == identity:
        return f"{part}: holds an unfinished run. Next: resume it, pass --overwrite, or choose another --out."
    there = {**old.get("config", {}), **old.get("inputs", {})}
    names = [name for name, value in wanted.items() if name in there and _differs(there[name], value)]
    changed = f" (changed: {', '.join(names)})" if names else ""
    return (
        f"{part}: holds an unfinished run with other settings or inputs{changed}. Next: finish it with the same "
        "settings, pass --overwrite, or choose another --out."
    )


def _differs(one: Any, two: Any) -> bool:
    """Whether two values differ as JSON."""
    return sha256_json(one) != sha256_json(two)


def _disk_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return write_failure(error) is not None
