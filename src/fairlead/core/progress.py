"""Progress of long work: one small protocol, so that studies need not know who is watching.

`track(iterable, label, total)` yields the items and reports rate and time left to the active
reporter: rich on a terminal, plain lines (at most one every few seconds) otherwise, nothing when
silenced. All of it goes to standard error, standard output carries results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_quiet = False
_LINE_EVERY = 5.0  # seconds between plain lines


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress inside the block."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def say(message: str) -> None:
    """One line about the work, on standard error."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


class Meter:
    """Counts work done and shows label, share, rate and time left."""

    def __init__(self, label: str, total: float | None, unit: str = "it") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self._start = self._last = time.monotonic()
        self._live = None
        if not _quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._live.start()
            self._task = self._live.add_task(label, total=total, rate="")

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Report `amount` more units done; `note` (loss, ...) is shown beside the rate."""
        self.done += amount
        if _quiet:
            return
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        text = f"{rate:,.1f} {self.unit}/s {note}".rstrip()
        if self._live is not None:
            self._live.update(self._task, advance=amount, rate=text)
        elif now - self._last >= _LINE_EVERY:
            self._last = now
            left = ""
            if self.total and rate > 0:
                left = f" of {self.total:,.0f}, {max(self.total - self.done, 0) / rate:,.0f} s left"
            print(f"{self.label}: {self.done:,.0f}{left}, {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the display."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def track(items: Iterable[T], label: str, *, total: float | None = None, unit: str = "it") -> Iterator[T]:
    """Yield items while showing progress, rate and time left."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    meter = Meter(label, total, unit)
    try:
        for item in items:
            yield item
            meter.advance()
    finally:
        meter.close()
