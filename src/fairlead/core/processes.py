"""Processes that work together (torchrun, `accelerate launch`): who is who, and what all of them know.

What must happen once the first process does; its result or its error is sent to all (`on_first`). With one process all of this is nothing.

Data travel as pickled objects through torch.distributed (gloo or NCCL), between processes of one launch only.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fairlead.core.errors import FairleadError

T = TypeVar("T")


def join() -> None:
    """Meet the other processes of this launch, where there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        atexit.register(_leave)


def _leave() -> None:
    """Close the connections at the process's end: threads of theirs that still run then abort it, although all is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
