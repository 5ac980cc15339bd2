"""Plain threads that share work, instead of torch's team of threads that meets after every operation.

For small tensors the team costs more than it brings: its threads wait for each other after every operation, and keep a core busy while
they wait, which another thread (a loop of numba's, a forward pass) could use. Inside `plain_threads` torch works with one thread wherever
it is called, and the callers share out what is large enough with `in_parts`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from threading import Lock, local
from typing import Any

import torch

_LOCK = Lock()
_own = local()
_inside = 0
_before = 1


@contextmanager
def plain_threads(active: bool = True) -> Iterator[None]:
    """One thread for torch inside, restored when the last block of this kind is left.

    Args:
        active: False: nothing changes.
    """
    global _inside, _before
    if not active:
        yield
        return
    with _LOCK:
        if not _inside:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(_before)


def num_plain_threads() -> int:
    """How many threads share work inside `plain_threads`; 1 outside, where torch's own do."""
    return _before if _inside else 1


def in_parts(work: Callable[[int, int], Any], num: int, *, at_least: int = 1) -> list[Any]:
    """`work(first, last)` on consecutive parts of `range(num)`, each in a thread; what they return, in order.

    Args:
        work: What it calls in turn works in one part.
        at_least: Parts are not smaller than this.
    """
    threads = 1 if getattr(_own, "is_part", False) else max(1, min(num_plain_threads(), num // at_least))
    if threads == 1:
        return [work(0, num)]
    edges = [num * part // threads for part in range(threads + 1)]
    parts = list(pairwise(edges))
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(_as_part, work, first, last) for first, last in parts[1:]]
    return [_as_part(work, *parts[0]), *(other.result() for other in others)]


def _as_part(work: Callable[[int, int], Any], first: int, last: int) -> Any:
    _own.is_part = True
    try:
        return work(first, last)
    finally:
        _own.is_part = False


@cache
def _pool(pid: int, num: int) -> ThreadPoolExecutor:
    """By process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(num, thread_name_prefix=f"part-{pid}")
