"""Worker processes of one thread each, for work that is many times the same and small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context


@contextmanager
def worker_pool(num: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes; what waits in it is dropped when an error or an interruption leaves the block."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(num, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
