"""Processes that train together (`accelerate launch`): the first one writes, the others look on.

Every process runs the same program on its share of each batch. What must happen once (the run folder, metrics, reading
requests for dials, asking the student) the first process does. The group itself is `fairlead.core.processes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fairlead.core.processes import (
    add_up,
    gather,
    is_first,
    join,
    mean,
    num_processes,
    on_first,
    rank,
    share_of,
    wait,
)
from fairlead.core.progress import quiet
from fairlead.core.run import Run, part_path

__all__ = [
    "Onlooker",
    "add_up",
    "gather",
    "is_first",
    "is_sharded",
    "join",
    "mean",
    "num_processes",
    "on_first",
    "rank",
    "share_of",
    "shared_run",
    "wait",
    "whole_tensor",
]


def is_sharded(module: nn.Module) -> bool:
    """Whether the parameters are spread over the processes (FSDP), so that none can use the model alone."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor brought together from the processes over which it is spread (all must ask)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class Onlooker:
    """A run folder that another process writes."""

    def __init__(self, final: Path, resumed: bool) -> None:
        self.final, self.folder, self.resumed = final, part_path(final), resumed

    def write_json(self, name: str, value: Any) -> Path:
        """Nothing: the first process writes it."""
        return self.folder / name

    def finish(self, summary: dict[str, Any] | None = None) -> Path:
        """Nothing: the first process finishes it."""
        return self.final


@contextmanager
def shared_run(out: str | Path, **about: Any) -> Iterator[Run | Onlooker]:
    """`Run.start` in the first process; the others get its place, write nothing, are quiet, and wait for its end.

    Raises:
        RunError: As `Run.start`.
    """
    if num_processes() == 1:
        with Run.start(out, **about) as run:
            yield run
        return
    held: list[Run] = []

    def start() -> tuple[Path, bool]:
        held.append(Run.start(out, **about))
        return held[0].final, held[0].resumed

    final, resumed = on_first(start)
    if held:
        with held[0] as run:
            yield run
    else:
        with quiet():
            yield Onlooker(final, resumed)
    wait()
