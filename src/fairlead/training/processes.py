"""Processes that train together (`accelerate launch`): the first one writes, the others look on.

Every process runs the same program on its share of each batch. What must happen once (the run folder, metrics, reading
requests for dials, asking the student) the first process does; its result or its error is sent to all (`on_first`). With one process
all of this is nothing.

Data travel as pickled objects through torch.distributed (gloo or NCCL), between processes of one launch only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fairlead.core.errors import FairleadError
from fairlead.core.progress import quiet
from fairlead.core.run import Run, part_path

T = TypeVar("T")


def join() -> None:
    """Meet the other processes of this launch, where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def num_processes() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """The value of every process, in their order, in every process."""
    if num_processes() == 1:
        return [value]
    found: list[Any] = [None] * num_processes()
    dist.all_gather_object(found, value)
    return found


def wait() -> None:
    """Go on when all processes are here."""
    gather(None)


def on_first(work: Callable[[], T]) -> T:
    """The result of `work()` in the first process, in all of them.

    Raises:
        FairleadError: It failed there; every process raises the same.
    """
    if num_processes() == 1:
        return work()
    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = work()
        except FairleadError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def share_of(items: Sequence[T]) -> Sequence[T]:
    """The items that this process works on: every n-th, so that long and short ones are spread evenly."""
    return items[rank() :: num_processes()]


def add_up(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes, in all of them (in place where it can be)."""
    if num_processes() == 1:
        return value
    there = value.cuda() if dist.get_backend() == "nccl" else value
    dist.all_reduce(there)
    return there.to(value.device)


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """Values by name, averaged over the processes; one that a process lacks counts as 0 there."""
    everyone = gather(dict(values))
    names = dict.fromkeys(name for found in everyone for name in found)
    return {name: sum(found.get(name, 0.0) for found in everyone) / len(everyone) for name in names}


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
