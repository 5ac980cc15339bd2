"""Continuous batching: requests join and leave one running batch between its passes, in a thread of its own.

A job is one request. Its updates go to whoever submitted it through a callback that must not block: a reader that is slow keeps its own
updates waiting (there are at most as many as the answer has tokens) and nobody else. A job that nobody waits for any more is cancelled
and its rows leave before the next pass. Every finished job is written to the audit log by a thread of its own; where that fails, no new
job is taken.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from fairlead.core.claims import ClaimSpan
from fairlead.core.errors import OverloadError, RunError
from fairlead.core.progress import say
from fairlead.guard.answers import GuardedAnswer, Intervention
from fairlead.guard.audit import AuditLog
from fairlead.guard.guard import Guard, Request, pick
from fairlead.guard.running import GuardedBatch
from fairlead.guard.stream import Stream


class Piece(NamedTuple):
    """A token that was read: its text, its score (None where it was put in), and whether the guard put it in."""

    text: str
    score: float | None
    given: bool


class Update(NamedTuple):
    """What is new about a job.

    Attributes:
        pieces: Tokens that were read.
        claims: Spans that were scored.
        interventions: What was done.
        answer: The answer, with the last update.
        error: Why there is none, with the last update.
    """

    pieces: list[Piece]
    claims: list[ClaimSpan]
    interventions: list[Intervention]
    answer: GuardedAnswer | None = None
    error: str | None = None


class Job:
    """One request in the running batch.

    Attributes:
        number: Running number.
        request: What was asked.
        cancelled: Whether nobody waits for it any more.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        tell: Callable[[Update], None],
        *,
        live: bool,
        about: dict[str, Any],
    ) -> None:
        self.number, self.request, self.live, self.about = number, request, live, about
        self.cancelled = False
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self._tell = tell
        self._done: list[Stream] = []
        self._told = (0, 0, 0, 0)  # tokens, characters, claims and interventions that were told

    def cancel(self) -> None:
        """Nobody waits for this job any more: its rows leave before the next pass."""
        self.cancelled = True

    def see(self, stream: Stream) -> None:
        """After a pass: tell what is new."""
        if self.first_token is None and stream.num_read:
            self.first_token = time.monotonic()
        if self.live and self.request.num_draws == 1:
            update = self._news(stream, last=False)
            if update.pieces or update.claims or update.interventions:
                self._tell(update)

    def end(self, stream: Stream) -> GuardedAnswer | None:
        """A draw is finished: the answer, once all are."""
        self._done.append(stream)
        if len(self._done) < self.request.num_draws:
            return None
        answer = pick(self._done)
        if self.live and self.request.num_draws == 1:
            self._tell(self._news(stream, last=True)._replace(answer=answer))
        else:
            pieces = [Piece(*item) for item in zip(answer.tokens, answer.scores, answer.given, strict=True)]
            self._tell(Update(pieces, list(answer.claims), list(answer.interventions), answer))
        return answer

    def fail(self, reason: str) -> None:
        """There will be no answer."""
        self._tell(Update([], [], [], error=reason))

    def _news(self, stream: Stream, *, last: bool) -> Update:
        tokens, chars, claims, acts = self._told
        texts, limit = stream.texts, len(stream.text)
        if last:
            until = len(texts)
        else:
            limit -= max(
                (len(stop) - 1 for stop in self.request.stop), default=0
            )  # may turn out to begin a stop text
            until = stream.num_read
        pieces = []
        while tokens < until and (last or chars + len(texts[tokens]) <= limit):
            score = stream.scores[tokens] if tokens < len(stream.scores) else None
            pieces.append(Piece(texts[tokens][: max(0, limit - chars)], score, stream.given[tokens]))
            chars += len(texts[tokens])
            tokens += 1
        news = Update(pieces, stream.claims[claims:], stream.interventions[acts:])
        self._told = (tokens, chars, len(stream.claims), len(stream.interventions))
        return news


class Stats:
    """Counts since the start."""

    def __init__(self) -> None:
        self.tokens = self.passes = self.answers = self.cancelled = self.failed = 0
        self.claims = self.flagged = 0
        self.interventions: dict[str, int] = {}


class Scheduler:
    """The thread that runs the batch; a context manager.

    Args:
        guard: Model and readout.
        max_rows: Rows of the running batch.
        max_waiting: Rows that may wait for a place; more are refused.
        log: Audit log of all answers.
    """

    def __init__(
        self, guard: Guard, *, max_rows: int = 64, max_waiting: int = 256, log: AuditLog | None = None
    ) -> None:
        self.guard, self.max_rows, self.max_waiting, self.log = guard, max_rows, max_waiting, log
        self.stats = Stats()
        self.num_running = 0
        self.failure: str | None = None  # why no job is taken
        self._waiting: list[Stream] = []
        self._joining: list[Stream] = []
        self._changed = threading.Condition()
        self._closing = False
        self._number = 0
        self._rate = 1.0  # rows a second that leave, smoothed
        self._left = time.monotonic()
        self._records: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name="fairlead-guard", daemon=True),
            threading.Thread(target=self._write, name="fairlead-audit", daemon=True),
        ]

    def __enter__(self) -> Scheduler:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a place."""
        return len(self._waiting)

    def submit(
        self,
        request: Request,
        tell: Callable[[Update], None],
        *,
        live: bool = False,
        about: dict[str, Any] | None = None,
    ) -> Job:
        """Put a request in line.

        Args:
            request: What is asked.
            tell: Called with updates in the scheduler's thread; must return at once.
            live: Tell tokens as they are read; else only the answer.
            about: What else the audit log says about it.

        Raises:
            OverloadError: Too many rows wait.
            RunError: The audit log cannot be written, or the scheduler is closed.
        """
        with self._changed:
            if self.failure is not None or self._closing:
                raise RunError(self.failure or "the server is shutting down. Next: ask again later.")
            if len(self._waiting) + request.num_draws > self.max_waiting:
                wait = max(1, min(60, math.ceil(len(self._waiting) / self._rate)))
                raise OverloadError(
                    f"{len(self._waiting)} requests are waiting. Next: try again in {wait} s.",
                    retry_after=wait,
                )
            job = Job(self._number, request, tell, live=live, about=about or {})
            self._number += 1
            self._waiting += self.guard.streams(request, key=job)
            self._changed.notify()
            return job

    def close(self) -> None:
        """Finish the jobs there are, take no new ones, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._threads[0].join()
        self._records.put(None)
        self._threads[1].join()

    def _run(self) -> None:
        while True:
            with self.guard.batch(live=True) as batch:
                try:
                    while self._wait(batch):
                        self._turn(batch)
                    return
                except (
                    Exception
                ) as error:  # one bad pass must not end the service: its jobs fail, the next batch is fresh
                    say(f"note: a pass failed, its answers are lost ({type(error).__name__}: {error})")
                    for job in {stream.key for stream in (*batch.streams, *self._joining)}:
                        self.stats.failed += 1
                        job.cancel()
                        job.fail(f"the pass failed ({type(error).__name__})")

    def _wait(self, batch: GuardedBatch) -> bool:
        """Until there is something to do; False at the end."""
        with self._changed:
            while not self._waiting and not batch.streams:
                if self._closing:
                    return False
                self._changed.wait()
            return True

    def _turn(self, batch: GuardedBatch) -> None:
        """Let rows leave and join, then one pass."""
        gone = batch.drop(lambda stream: stream.key.cancelled)
        with self._changed:
            left = [stream for stream in self._waiting if stream.key.cancelled]
            if left:
                self._waiting[:] = [stream for stream in self._waiting if not stream.key.cancelled]
            taken = batch.fitting(self._waiting, self.max_rows)
            chosen = set(map(id, taken))
            self._waiting[:] = [stream for stream in self._waiting if id(stream) not in chosen]
        for job in {stream.key for stream in (*gone, *left)}:
            self.stats.cancelled += 1
            job.fail("cancelled")
            self._record(job, "cancelled", {})
        if taken:
            self._joining = taken
            batch.join(taken)
            self._joining = []
        self.num_running = len(batch.streams)
        if not batch.streams:
            return
        finished = batch.step()
        running = batch.streams
        self.stats.passes += 1
        self.stats.tokens += len(running)
        for stream in running:
            stream.key.see(stream)
        for stream in finished:
            self._end(stream)
        self.num_running = len(batch.streams)

    def _end(self, stream: Stream) -> None:
        now = time.monotonic()
        self._rate += 0.05 * (1.0 / max(now - self._left, 1e-3) - self._rate)
        self._left = now
        job: Job = stream.key
        answer = job.end(stream)
        if answer is None:
            return
        self.stats.answers += 1
        self.stats.claims += len(answer.claims)
        self.stats.flagged += len(answer.flagged)
        for act in answer.interventions:
            self.stats.interventions[act.kind] = self.stats.interventions.get(act.kind, 0) + 1
        self._record(job, "answer", {"answer": answer.model_dump(mode="json")})

    def _record(self, job: Job, kind: str, data: dict[str, Any]) -> None:
        if self.log is None:
            return
        policy = job.request.policy.model_dump(mode="json")
        times = {"seconds": round(time.monotonic() - job.submitted, 4)}
        if job.first_token is not None:
            times["first_token"] = round(job.first_token - job.submitted, 4)
        self._records.put((kind, {"job": job.number, **job.about, "policy": policy, **times, **data}))

    def _write(self) -> None:
        """Write records to the log, away from the thread that answers: a slow disk must not hold it up."""
        while (record := self._records.get()) is not None:
            if self.log is None or self.failure is not None:
                continue
            try:
                self.log.write(*record)
            except RunError as error:
                self.failure = f"the audit log cannot be written: {error}"
                say(f"note: {self.failure}")
