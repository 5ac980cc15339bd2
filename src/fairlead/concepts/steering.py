"""Apply edits of concepts to a model: a context manager that restores everything.

Where an edit acts depends on what a token is to the text: prompt, start (the prompt's last token, from which the answer's first is
predicted) or later. The session learns it from the best source there is:

1. `model.generate(..., follower=session)`: the loop tells it every batch, pass and row, so that rows of any length, left-padded, with
   or without a key-value cache, and rows that leave the batch are followed exactly;
2. `session.place(batch)` before a forward pass over whole texts: from the batch's loss mask;
3. otherwise (a foreign generation loop) from the attention mask: a pass without a past is a prompt, a pass with one continues it.

Conditions over the prompt or the answer are running maxima per row; an answer's includes the token at hand and nothing after it, so
that a text read at once and the same text generated token by token are edited alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fairlead.concepts.edits import Condition, Edit, EditSet
from fairlead.core.errors import ConfigError
from fairlead.data import Encoded, iter_batches
from fairlead.dictionaries import Dictionary
from fairlead.models import call_hook, site_hook

if TYPE_CHECKING:
    from fairlead.data import Batch
    from fairlead.models import Model

_NEVER = float("-inf")


class Roles(NamedTuple):
    """What each token of a pass is, `[batch, seq]` bool each; the first token of a text and padding are nothing (unless it starts)."""

    prompt: Tensor
    start: Tensor
    later: Tensor

    def at(self, where: str) -> Tensor:
        """The tokens on which an edit acts; `prompt` holds the start."""
        if where == "all":
            return self.prompt | self.later
        return {
            "prompt": self.prompt,
            "start": self.start,
            "later": self.later,
            "answer": self.start | self.later,
        }[where]


@contextmanager
def apply_edits(model: Model, dictionary: Dictionary, edits: EditSet) -> Iterator[Session]:
    """Apply a set of edits to every forward pass inside; nothing is left behind, also after an exception.

    Yields:
        The session: pass it to `model.generate(..., follower=session)`, or call `session.place(batch)` before a pass over whole texts.

    Raises:
        ModelError: The edits were made for another model.
        DictionaryError: For another dictionary.
    """
    edits.check(model, dictionary)
    session = Session(model, dictionary, edits)
    with call_hook(model, session.see_call), site_hook(model, dictionary.site, session.edit):
        yield session


class Session:
    """Edits at work. Its methods are those of a `models.Follower`, and `place` for passes over whole texts.

    Attributes:
        aborted: Reason by place of the prompt, for answers that an abort rule has ended since the session began.
    """

    def __init__(self, model: Model, dictionary: Dictionary, edits: EditSet) -> None:
        self.model, self.edits = model, edits
        self.dictionary = dictionary.to(model.device)
        self.aborted: dict[int, str] = {}
        self.conditions: list[Condition] = list(
            dict.fromkeys(c for part in (*edits.edits, *edits.aborts) for c in part.when)
        )
        moving = [edit for edit in edits.edits if edit.mode != "add"]
        named = dict.fromkeys(f for one in (*self.conditions, *moving) for f in one.latents)
        self._latents = list(named)
        place = {latent: column for column, latent in enumerate(self._latents)}
        self._columns = {one: [place[f] for f in one.latents] for one in (*self.conditions, *moving)}
        self._pushes = {edit: self._push(edit) for edit in edits.edits if edit.mode == "add"}
        self._forget()

    def _forget(self) -> None:
        self._placed: Roles | None = None
        self._mask: Tensor | None = None  # of the prompts of a followed generation
        self._step: tuple[int, int] | None = None
        self._places: list[int] = []
        self._seen = 0  # columns before this pass, where nobody tells
        self._maxima: Tensor | None = None  # [row, condition]
        self._ended: Tensor | None = None

    # what the generation loop tells

    def begin(self, places: Sequence[int], mask: Tensor) -> None:
        """A batch of prompts begins."""
        self._forget()
        self._places, self._mask = list(places), mask.bool()

    def step(self, offset: int, seq: int) -> None:
        """The next pass holds columns `offset` to `offset + seq`."""
        self._step = (offset, seq)

    def stopped(self) -> Tensor | None:
        """Rows that an abort rule ends."""
        return self._ended

    def select(self, keep: Tensor) -> None:
        """Only these rows go on."""
        rows = keep.tolist()
        self._places = [self._places[row] for row in rows]
        if self._mask is not None:
            self._mask = self._mask[keep]
        if self._maxima is not None:
            self._maxima = self._maxima[keep]

    # what a caller with whole texts tells

    def place(self, batch: Batch) -> None:
        """The next pass reads this batch of whole texts: starts and answers are where its loss mask says. Holds for one pass."""
        self._forget()
        predicting = torch.zeros_like(batch.loss_mask)
        predicting[:, :-1] = batch.loss_mask[:, 1:]
        start = predicting & ~batch.loss_mask
        real = _without_first(batch.attention_mask.bool())
        later = batch.loss_mask & batch.attention_mask.bool() & ~start
        self._placed = Roles((real & ~later) | start, start, later)

    def see_call(self, input_ids: Tensor | None, mask: Tensor | None) -> None:
        """Before a pass: where nobody told, its attention mask says whether it continues what was read before."""
        if self._placed is not None or self._step is not None or input_ids is None:
            return
        num, seq = input_ids.shape
        total = mask.shape[1] if mask is not None else (self._seen + seq if self._seen and seq == 1 else seq)
        if total == seq:
            self._forget()
            self._mask = mask.bool() if mask is not None else torch.ones(num, seq, dtype=torch.bool)
        self._step, self._seen = (total - seq, seq), total

    # the pass itself

    def edit(self, hidden: Tensor) -> Tensor | None:
        """The edited value at the site."""
        roles = self._roles(hidden)
        self._ended = None
        acts = None
        if self._latents:
            acts = self.dictionary.encode_latents(hidden, self._latents)
        holds = self._holds(acts, roles) if self.conditions else {}
        decoder = self.dictionary.decoder
        change = torch.zeros_like(hidden, dtype=decoder.dtype)
        for edit in self.edits.edits:
            where = roles.at(edit.at)
            for condition in edit.when:
                where = where & holds[condition]
            if not bool(where.any()):
                continue
            change = change + where[..., None] * self._change(edit, acts)
        self._find_ended(roles, holds)
        return hidden + change.to(hidden.dtype)

    def _push(self, edit: Edit) -> Tensor:
        weights = torch.tensor(
            edit.weights, dtype=self.dictionary.decoder.dtype, device=self.dictionary.decoder.device
        )
        return edit.value * (weights @ self.dictionary.decoder[list(edit.latents)])

    def _change(self, edit: Edit, acts: Tensor | None) -> Tensor:
        """What an edit adds, `[batch, seq, d]` (or `[d]`)."""
        if edit.mode == "add":
            return self._pushes[edit]
        assert acts is not None
        own = acts[..., self._columns[edit]]
        if edit.mode == "scale":
            step = (edit.value - 1.0) * own
        elif edit.mode == "clamp":
            step = edit.value * torch.tensor(edit.weights).to(own) - own
        else:
            step = -own
        return step @ self.dictionary.decoder[list(edit.latents)]

    def _roles(self, hidden: Tensor) -> Roles:
        num, seq = hidden.shape[:2]
        if self._placed is not None:
            roles, self._placed = self._placed, None
            if roles.prompt.shape != (num, seq):
                raise ConfigError(
                    f"session.place: a batch of shape {list(roles.prompt.shape)}, but the pass has {[num, seq]}. Next: place the batch "
                    "that is run."
                )
            return Roles(*(part.to(hidden.device) for part in roles))
        if self._mask is None or self._step is None:
            self._mask, self._step = torch.ones(num, seq, dtype=torch.bool), (0, seq)
        (offset, _), self._step = self._step, None
        mask = self._mask.to(hidden.device)
        width = mask.shape[1]
        column = torch.arange(offset, offset + seq, device=hidden.device)
        inside = column < width
        real = _without_first(mask)[:, column.clamp_max(width - 1)] & inside
        last = width - 1 - mask.flip(1).long().argmax(1)  # of each row: prompts are padded on either side
        start = (column == last[:, None]) & inside
        later = (~inside).expand(num, seq)
        if offset == 0:
            self._maxima = None
        return Roles(real | start, start, later)

    def _holds(self, acts: Tensor | None, roles: Roles) -> dict[Condition, Tensor]:
        """Where each condition holds, `[batch, seq]`; running maxima are carried to the next pass."""
        assert acts is not None
        if self._maxima is None:
            self._maxima = torch.full((acts.shape[0], len(self.conditions)), _NEVER, device=acts.device)
        found, maxima = {}, self._maxima.clone()
        for column, condition in enumerate(self.conditions):
            latents = [self._latents[column] for column in self._columns[condition]]
            score = self.dictionary.strengths(acts[..., self._columns[condition]], latents).sum(-1)
            before = self._maxima[:, column, None]
            if condition.over == "prompt":
                inside = score.masked_fill(~roles.prompt, _NEVER).amax(1, keepdim=True)
                score = torch.maximum(before, inside).expand_as(score)
            elif condition.over == "answer":
                inside = score.masked_fill(~roles.at("answer"), _NEVER).cummax(1).values
                score = torch.maximum(before, inside)
            if condition.over != "token":
                maxima[:, column] = score[:, -1]
            over = score > condition.threshold
            found[condition] = over if condition.above else ~over
        self._maxima = maxima
        return found

    def _find_ended(self, roles: Roles, holds: dict[Condition, Tensor]) -> None:
        """Rows whose last token makes an abort rule true."""
        if not self._places or not self.edits.aborts:
            return
        ended = torch.zeros(len(self._places), dtype=torch.bool, device=roles.start.device)
        for rule in self.edits.aborts:
            now = roles.at("answer")[:, -1]
            for condition in rule.when:
                now = now & holds[condition][:, -1]
            for row in (now & ~ended).nonzero()[:, 0].tolist():
                self.aborted.setdefault(self._places[row], rule.told())
            ended |= now
        self._ended = ended


def _without_first(mask: Tensor) -> Tensor:
    """The mask without the first real token of each row."""
    return mask & (mask.long().cumsum(1) > 1)


@torch.no_grad()
def edited_logprobs(
    model: Model, dictionary: Dictionary, edits: EditSet, encoded: Sequence[Encoded], *, batch_size: int = 32
) -> list[Tensor]:
    """`model.logprobs` under edits: per encoding a float32 tensor `[seq]` on the CPU, aligned with its `input_ids`."""
    places = [replace(item, index=place) for place, item in enumerate(encoded)]
    scores: list[Tensor] = [torch.empty(0)] * len(encoded)
    with apply_edits(model, dictionary, edits) as session:
        for batch in iter_batches(places, batch_size=batch_size, pad_id=model.pad_id):
            session.place(batch)
            rows = model.token_logprobs(batch).cpu()
            for place, row in zip(batch.index.tolist(), rows, strict=True):
                scores[place] = row[: len(encoded[place].input_ids)].clone()
    return scores


def mean_loss(logprobs: Sequence[Tensor], encoded: Sequence[Encoded]) -> float:
    """Nats per answer token over all texts."""
    wanted = [row[torch.tensor(item.loss_mask)] for row, item in zip(logprobs, encoded, strict=True)]
    return float(-torch.cat(wanted).double().mean())
