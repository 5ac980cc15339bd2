"""The audit log: one JSON record a line, each with a checksum, only ever appended to.

A line is `CHECKSUM JSON`, the first 16 hex digits of the SHA-256 of the JSON. A record is written with one system call, so a kill during
it loses at most that record; a torn last line is cut off when the log is opened for writing, and a reader passes over it and says so.
Each record carries a running number: what is missing in between is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from filelock import FileLock, Timeout

from fairlead.core.errors import RunError
from fairlead.core.run import write_failure

Sync = Literal["always", "second", "never"]
_DIGITS = 16
_SECOND = 1.0


class AuditRecord(NamedTuple):
    """One record.

    Attributes:
        number: Running number in the log, from 0.
        time: Seconds since 1970.
        kind: What happened.
        data: What is known about it.
    """

    number: int
    time: float
    kind: str
    data: dict[str, Any]


class Damage(NamedTuple):
    """A line that holds no record.

    Attributes:
        line: 1-based.
        reason: What is wrong with it.
    """

    line: int
    reason: str


class AuditLog:
    """A log open for writing by one process; safe to use from several threads.

    Args:
        path: The file; it is continued where it exists.
        sync: When records are forced to the disk: each one (a power cut loses none that `write` returned for), at most once a second,
            or whenever the system likes. A killed process loses nothing in any case.

    Raises:
        RunError: Another process writes this log, or the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, sync: Sync = "second") -> None:
        self.path, self.sync = Path(path), sync
        self._guard, self._synced = threading.Lock(), time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(str(self.path.with_name(f".{self.path.name}.lock")))
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{self.path}: another process writes this log. Next: choose another --log."
            ) from None
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be opened ({error.strerror}). Next: choose another --log."
            ) from error
        try:
            self._number = self._mend()
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            self._lock.release()
            raise RunError(
                f"{self.path}: cannot be opened ({error.strerror}). Next: choose another --log."
            ) from error

    def write(self, kind: str, data: dict[str, Any]) -> int:
        """Append a record and return its number.

        Raises:
            RunError: The disk is full or the file cannot be written; the log stays readable.
        """
        with self._guard:
            number = self._number
            body = json.dumps({"number": number, "time": time.time(), "kind": kind, **data}).encode()
            line = hashlib.sha256(body).hexdigest()[:_DIGITS].encode() + b" " + body + b"\n"
            before = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    os.ftruncate(self._file, before)
                    raise RunError(f"{self.path}: the disk is full. Next: free space.")
                now = time.monotonic()
                if self.sync == "always" or (self.sync == "second" and now - self._synced > _SECOND):
                    os.fsync(self._file)
                    self._synced = now
            except OSError as error:
                raise RunError(
                    f"{self.path}: cannot be written ({write_failure(error)}). Next: free space."
                ) from error
            self._number += 1
            return number

    def close(self) -> None:
        """Force what was written to the disk and let others write."""
        with self._guard:
            os.fsync(self._file)
            os.close(self._file)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mend(self) -> int:
        """Cut off a torn last line; returns the number of the next record."""
        if not self.path.exists():
            return 0
        number, whole = 0, 0
        with open(self.path, "rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                found = _parse(line)
                if isinstance(found, AuditRecord):
                    number = found.number + 1
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
        return number


def iter_audit(path: str | Path, *, last_bytes: int | None = None) -> Iterator[AuditRecord | Damage]:
    """Records of a log in order, and what is wrong where a line holds none (a torn last line, a changed one, a gap in the numbers).

    Args:
        path: The log.
        last_bytes: Begin with the first whole line of so many bytes at its end; lines count from there.

    Raises:
        RunError: No such file.
    """
    path, expected = Path(path), 0
    try:
        with open(path, "rb") as handle:
            if last_bytes is not None and path.stat().st_size > last_bytes:
                handle.seek(-last_bytes, os.SEEK_END)
                handle.readline()
                expected = None
            for place, line in enumerate(handle, start=1):
                found = _parse(line)
                if isinstance(found, str):
                    yield Damage(
                        place, "torn: the writer was killed here" if not line.endswith(b"\n") else found
                    )
                    continue
                if expected is not None and found.number != expected:
                    yield Damage(place, f"record {found.number} follows where {expected} should")
                expected = found.number + 1
                yield found
    except FileNotFoundError:
        raise RunError(f"{path}: no such log. Next: check the path.") from None


def read_audit(path: str | Path, *, last_bytes: int | None = None) -> tuple[list[AuditRecord], list[Damage]]:
    """All records of a log (or of its end), and all damage."""
    found = list(iter_audit(path, last_bytes=last_bytes))
    return [item for item in found if isinstance(item, AuditRecord)], [
        item for item in found if isinstance(item, Damage)
    ]


def _parse(line: bytes) -> AuditRecord | str:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if hashlib.sha256(body).hexdigest()[:_DIGITS].encode() != checksum:
        return "the checksum does not fit: the line was changed or damaged"
    try:
        data = json.loads(body)
        return AuditRecord(data.pop("number"), data.pop("time"), data.pop("kind"), data)
    except (ValueError, KeyError, AttributeError):
        return "not a record of this log"
