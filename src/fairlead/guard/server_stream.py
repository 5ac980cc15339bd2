"""Answers on their way to a client: waiting for them, and server-sent events to a reader who may be slow or gone."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import Response

from fairlead.guard.scheduler import Job, Update

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Inbox:
    """Updates of the jobs of one request, from the scheduler's thread to the event loop.

    It holds at most as many updates as the answers have tokens, so it needs no bound of its own and never makes the scheduler wait.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._found: deque[tuple[int, Update]] = deque()
        self._there = asyncio.Event()

    def teller(self, index: int) -> Callable[[Update], None]:
        """What the scheduler calls with updates of choice `index`."""

        def tell(update: Update) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server is going down and nobody reads
                self._loop.call_soon_threadsafe(self._put, index, update)

        return tell

    def _put(self, index: int, update: Update) -> None:
        self._found.append((index, update))
        self._there.set()

    async def read(self, num: int) -> AsyncIterator[tuple[int, Update]]:
        """Updates in order, until `num` jobs have ended."""
        left = num
        while left:
            await self._there.wait()
            self._there.clear()
            while self._found:
                index, update = self._found.popleft()
                left -= update.answer is not None or update.error is not None
                yield index, update


async def until_gone(receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def or_gone(work: Awaitable[Any], receive: Any, jobs: Sequence[Job]) -> Any:
    """The result of `work`; None, and the jobs cancelled, where the client goes first."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        if not task.done():
            for job in jobs:
                job.cancel()
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events; ends, and cancels its jobs, when the client goes or takes nothing for too long.

    Args:
        events: JSON objects to send; "[DONE]" follows them.
        jobs: What they come from.
        stall_seconds: Longest time that one event may take to be taken.
    """

    def __init__(
        self, events: AsyncIterator[dict[str, Any]], jobs: Sequence[Job], *, stall_seconds: float
    ) -> None:
        super().__init__()
        self._events, self._jobs, self._stall = events, jobs, stall_seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the response."""
        try:
            await or_gone(self._send(send), receive, self._jobs)
        except (TimeoutError, OSError):
            pass  # the reader stalls or is gone; uvicorn closes a response that was not completed
        finally:
            for job in self._jobs:
                job.cancel()

    async def _send(self, send: Any) -> None:
        async def push(message: dict[str, Any]) -> None:
            async with asyncio.timeout(self._stall):  # not wait_for: Python 3.11's can swallow a cancellation
                await send(message)

        await push({"type": "http.response.start", "status": 200, "headers": HEADERS})
        async for event in self._events:
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            await push({"type": "http.response.body", "body": data, "more_body": True})
        await push({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await push({"type": "http.response.body", "body": b"", "more_body": False})
