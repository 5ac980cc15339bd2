"""A running batch under guard: the decoding loop with a readout of every token and the decisions of every answer's policy.

One hook per site keeps what the pass computes anyway. Spans that end in the same pass are scored together; scores of tokens are computed
with their span, or after every pass where somebody waits for them (`live`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from fairlead.core.nouns import SpanReadout
from fairlead.guard.history import History
from fairlead.guard.stream import Stream
from fairlead.models import Model, site_hook
from fairlead.models.decoding import Decoding


class GuardedBatch:
    """Answers that are made together; a context manager, inside which the hooks stand.

    Args:
        model: A causal model.
        readout: Scores its activations.
        live: Score tokens after every pass.

    Attributes:
        streams: The answers in the making, in the order of the batch.
        num_passes: Forward passes over the batch so far.
    """

    def __init__(self, model: Model, readout: SpanReadout, *, live: bool = False) -> None:
        self.model, self.readout, self.live = model, readout, live
        self.streams: list[Stream] = []
        self.num_passes = 0
        self._decoding = Decoding(model)
        self._history = History([str(site) for site in readout.sites])
        self._seen: dict[str, Tensor] = {}
        self._reader: int | None = None  # the thread whose pass is to be kept
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for site in self._history.sites:
            self._stack.enter_context(site_hook(self.model, site, self._keep(site), when="no_grad"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fitting(self, waiting: Sequence[Stream], max_rows: int) -> list[Stream]:
        """The answers among `waiting` that may join now, the first come first.

        Families whose state takes no rows in start a batch when the last one is done; those that ignore the attention mask begin with
        prompts of one length at a time.
        """
        room = max_rows - len(self.streams)
        if not waiting or room < 1 or not self._decoding.can_join:
            return []
        if self.model.resolved.family.reads_mask:
            return list(waiting[:room])
        length = len(waiting[0].row.ids)
        return [stream for stream in waiting if len(stream.row.ids) == length][:room]

    def join(self, streams: Sequence[Stream]) -> None:
        """Read the prompts of answers in one pass and put them into the batch."""
        self._reader = threading.get_ident()
        self._decoding.join([stream.row for stream in streams])
        self._reader = None
        self._history.join(self._seen)  # what was seen of the prompts' last tokens
        for stream in streams:
            stream.start = self._history.now
        self.streams += streams

    def admit(self, waiting: list[Stream], max_rows: int) -> list[Stream]:
        """Take answers from `waiting` into the batch, as many as fit, and return them."""
        taken = self.fitting(waiting, max_rows)
        if taken:
            chosen = set(map(id, taken))
            waiting[:] = [stream for stream in waiting if id(stream) not in chosen]
            self.join(taken)
        return taken

    def step(self) -> list[Stream]:
        """Settle the next token of every answer and read it in one pass; returns the answers that are finished."""
        now = self._history.now
        chosen = self._decoding.choose().tolist()
        ending = [place for place, stream in enumerate(self.streams) if stream.span_ends(chosen[place])]
        if ending:
            self._score(ending)
        tokens = [stream.take(token, now) for stream, token in zip(self.streams, chosen, strict=True)]
        finished = [stream for stream in self.streams if stream.finish is not None]
        if finished:
            keep = [place for place, stream in enumerate(self.streams) if stream.finish is None]
            self._select(keep)
            tokens = [tokens[place] for place in keep]
        if self.streams:
            self._read(tokens)
        return finished

    def drop(self, unwanted: Callable[[Stream], bool]) -> list[Stream]:
        """Take answers out that nobody waits for any more, and return them."""
        out = [
            unwanted(stream) for stream in self.streams
        ]  # asked once: another thread may change the answer
        gone = [stream for stream, leaves in zip(self.streams, out, strict=True) if leaves]
        if gone:
            self._select([place for place, leaves in enumerate(out) if not leaves])
        return gone

    def _select(self, places: list[int]) -> None:
        keep = torch.tensor(places, dtype=torch.long, device=self.model.device)
        self._decoding.select(keep)
        self._history.select(keep)
        self.streams = [self.streams[place] for place in places]
        self._decoding.trim()

    def _keep(self, site: str) -> Callable[[Tensor], None]:
        def keep(hidden: Tensor) -> None:
            if threading.get_ident() == self._reader:  # other threads may use the model meanwhile
                self._seen[site] = hidden[:, -1]

        return keep

    @torch.no_grad()
    def _read(self, tokens: Sequence[int]) -> None:
        self._reader = threading.get_ident()
        self._decoding.read(torch.tensor(tokens, device=self.model.device))
        self._reader = None
        self.num_passes += 1
        self._history.push(self._seen, [stream.start for stream in self.streams])
        if not self.live:
            for stream in self.streams:
                stream.was_read(None)
            return
        scores = self.readout.token_scores(self._history.newest(2))[:, -1].tolist()
        for stream, score in zip(self.streams, scores, strict=True):
            stream.was_read(score)

    @torch.no_grad()
    def _score(self, places: list[int]) -> None:
        """Score the spans that end, all at once, and let their answers decide."""
        activations, spans = self._history.read(places, [self.streams[place].start for place in places])
        scores = self.readout.span_scores(activations, spans).tolist()
        by_token = None if self.live else self.readout.token_scores(activations).tolist()
        for found, (place, score, span) in enumerate(zip(places, scores, spans, strict=True)):
            own = None if by_token is None else by_token[found][span.start : span.end]
            self.streams[place].close_span(score, own, self._history.now)
