"""A running batch under guard: the decoding loop with a readout of every token and the decisions of every answer's policy.

One hook per site keeps what the pass computes anyway; a readout that reads the model's confidence has it from the logits of the passes,
some passes at a time where the batch is small: it is a handful of short operations, which cost more to start than to do.
Spans that end in the same pass are scored together; scores of tokens are computed with their span, or after every pass where somebody
waits for them (`live`).
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
from fairlead.guard.readouts import score_both
from fairlead.guard.stream import Stream
from fairlead.models import Model, site_hook
from fairlead.models.decoding import Decoding
from fairlead.models.lens import CONFIDENCE, confidence_of_passes

_HELD = 1 << 16  # logits that wait for their confidence: as many as stay in the cache


class GuardedBatch:
    """Answers that are made together; a context manager, inside which the hooks stand.

    Args:
        model: A causal model.
        readout: Scores its activations.
        live: Score tokens after every pass.

    Attributes:
        num_passes: Forward passes over the batch so far.
    """

    def __init__(self, model: Model, readout: SpanReadout, *, live: bool = False) -> None:
        self.model, self.readout, self.live = model, readout, live
        self._rows: list[Stream] = []  # finished ones stay until the batch is compacted
        self.num_passes = 0
        self._decoding = Decoding(model)
        beside = getattr(readout, "sites_beside_confidence", None)
        self._sites = [str(site) for site in (readout.sites if beside is None else beside)]
        self._confidence = beside is not None
        self._history = History([*self._sites, CONFIDENCE] if self._confidence else self._sites)
        self._seen: dict[str, Tensor] = {}
        self._waiting: list[tuple[Tensor, Tensor]] = []  # of passes: tokens read, logits
        self._before: Tensor | None = None  # log-probabilities from which the first of them read
        self._reader: int | None = None  # the thread whose pass is to be kept
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for site in self._sites:
            self._stack.enter_context(site_hook(self.model, site, self._keep(site), when="no_grad"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def streams(self) -> list[Stream]:
        """The answers in the making."""
        return [stream for stream in self._rows if stream.finish is None]

    def fitting(self, waiting: Sequence[Stream], max_rows: int) -> list[Stream]:
        """The answers among `waiting` that may join now, the first come first.

        Families whose state takes no rows in start a batch when the last one is done; those that ignore the attention mask begin with
        prompts of one length at a time.
        """
        running = len(self.streams)
        if not waiting or running >= max_rows or (running and not self._decoding.can_join):
            return []
        if self.model.resolved.family.reads_mask:
            return list(waiting[: max_rows - running])
        length = len(waiting[0].row.ids)
        return [stream for stream in waiting if len(stream.row.ids) == length][: max_rows - running]

    def join(self, streams: Sequence[Stream]) -> None:
        """Read the prompts of answers in one pass and put them into the batch."""
        self._compact()
        self._settle()
        self._before = None  # other rows
        self._reader = threading.get_ident()
        self._decoding.join([stream.row for stream in streams])
        self._reader = None
        if self._confidence:
            logprobs = self._decoding.logits[None, -len(streams) :].log_softmax(-1)
            self._seen[CONFIDENCE] = confidence_of_passes(logprobs)[0]
        self._history.join(self._seen)  # what was seen of the prompts' last tokens
        for stream in streams:
            stream.start = self._history.now
        self._rows += streams

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
        running = [stream.finish is None for stream in self._rows]
        ending = [place for place, stream in enumerate(self._rows) if stream.span_ends(chosen[place])]
        if ending:
            self._score(ending)
        tokens = [stream.take(token, now) for stream, token in zip(self._rows, chosen, strict=True)]
        finished = [
            stream
            for stream, ran in zip(self._rows, running, strict=True)
            if ran and stream.finish is not None
        ]
        done = sum(stream.finish is not None for stream in self._rows)
        if done == len(self._rows) or (2 * done >= len(self._rows) and self._decoding.can_select):
            tokens = [
                token for stream, token in zip(self._rows, tokens, strict=True) if stream.finish is None
            ]
            self._compact()
        if self._rows:
            self._read(tokens)
        return finished

    def drop(self, unwanted: Callable[[Stream], bool]) -> list[Stream]:
        """Take answers out that nobody waits for any more, and return them (they run on where rows cannot leave)."""
        if not self._decoding.can_select:
            return []
        out = [
            stream.finish is None and unwanted(stream) for stream in self._rows
        ]  # asked once: it may change meanwhile
        gone = [stream for stream, leaves in zip(self._rows, out, strict=True) if leaves]
        if gone:
            self._select([place for place, leaves in enumerate(out) if not leaves])
        return gone

    def _compact(self) -> None:
        """Take the rows of finished answers out; this copies the cache, so it is not done for every one that ends."""
        keep = [place for place, stream in enumerate(self._rows) if stream.finish is None]
        if len(keep) < len(self._rows):
            self._select(keep)

    def _select(self, places: list[int]) -> None:
        self._settle()
        self._before = None if self._before is None else self._before[places]
        keep = torch.tensor(places, dtype=torch.long, device=self.model.device)
        self._decoding.select(keep)
        self._history.select(keep)
        self._rows = [self._rows[place] for place in places]
        self._decoding.trim()

    def _keep(self, site: str) -> Callable[[Tensor], None]:
        def keep(hidden: Tensor) -> None:
            if threading.get_ident() == self._reader:  # other threads may use the model meanwhile
                self._seen[site] = hidden[:, -1]

        return keep

    @torch.no_grad()
    def _read(self, tokens: Sequence[int]) -> None:
        read, before = torch.tensor(tokens, device=self.model.device), self._decoding.logits
        self._reader = threading.get_ident()
        self._decoding.read(read)
        self._reader = None
        if self._confidence:
            if (len(self._waiting) + 1) * before.numel() > _HELD:
                self._settle()
            if self._before is None:
                self._before = before.log_softmax(-1)
            self._seen[CONFIDENCE] = before.new_empty(len(read), 4)  # until `_settle`
            self._waiting.append((read, self._decoding.logits))
        self.num_passes += 1
        now = self._history.now
        self._history.push(self._seen, [s.start if s.finish is None else now for s in self._rows])
        if self.live:
            self._settle()
        scores = [None] * len(self._rows)
        if self.live:
            scores = self.readout.token_scores(self._history.newest(2))[:, -1].tolist()
        for stream, score in zip(self._rows, scores, strict=True):
            stream.was_read(score)

    @torch.no_grad()
    def _settle(self) -> None:
        """Write the confidence of the passes that wait for it."""
        if not self._waiting:
            return
        tokens, logits = zip(*self._waiting, strict=True)
        self._waiting.clear()
        logprobs = torch.stack(logits).log_softmax(-1)
        found = confidence_of_passes(logprobs, self._before, torch.stack(tokens))
        self._before = logprobs[-1]
        self._history.rewrite(CONFIDENCE, found.transpose(0, 1))

    @torch.no_grad()
    def _score(self, places: list[int]) -> None:
        """Score the spans that end, all at once, and let their answers decide."""
        self._settle()
        activations, spans = self._history.read(places, [self._rows[place].start for place in places])
        if self.live:
            scores, by_token = self.readout.span_scores(activations, spans), None
        else:
            scores, found = score_both(self.readout, activations, spans)
            by_token = found[0].tolist()
        for place, score, span in zip(places, scores.tolist(), spans, strict=True):
            own = None if by_token is None else by_token[span.start : span.end]
            self._rows[place].close_span(score, own, self._history.now)
