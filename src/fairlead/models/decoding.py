"""A running batch: rows join and leave between the passes of one decoding loop.

`join` reads the prompts of new rows in a pass of their own (left-padded) and puts them into the batch; `choose` gives the next token
of every row, greedy or sampled; `read` feeds one token of every row in one pass. Whoever drives the loop may feed another token than the
one chosen, so that text is put into an answer at one token a pass, with the cache kept and the rows aligned. A row's tokens depend on its
own prompt, settings and draws, never on the rows beside it (up to rounding: sums of floating-point numbers depend on shapes a little).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairlead.core.errors import ModelError
from fairlead.models import caches, families

if TYPE_CHECKING:
    from fairlead.models.model import Model

_STATES = ("past_key_values", "cache_params", "state")  # names of what a family carries between calls
_SLACK = 16  # columns of padding in every row that are worth a copy of the cache


@dataclass(eq=False)
class Row:
    """One answer in the making.

    Attributes:
        ids: Token ids of the prompt.
        limit: Most new tokens.
        temperature: 0 for greedy.
        top_p: Sample from the most probable tokens that hold this share.
        draws: `limit` uniform numbers, for sampling; number n decides on new token n.
        key: What the driver calls it.
        answer: New tokens so far.
    """

    ids: Sequence[int]
    limit: int
    temperature: float = 0.0
    top_p: float = 1.0
    draws: Sequence[float] | None = None
    key: Any = None
    answer: list[int] = field(default_factory=list)


class Decoding:
    """The running batch of one model.

    Args:
        model: A causal model; one that ignores the attention mask takes prompts of equal length per `join`.
        against: Another model and a factor alpha: the logits become `own + alpha (own - other)`.

    Attributes:
        rows: The rows, in the order of the batch.
        logits: `[row, vocab]` for the next token of each row.
        width: Columns so far.
    """

    def __init__(self, model: Model, *, against: tuple[Model, float] | None = None) -> None:
        self.model, self.against = model, against
        self.rows: list[Row] = []
        self._forget()

    def _forget(self) -> None:
        self.width = 0
        self.logits = torch.empty(0)
        self._step = Step(self.model)
        self._other = None if self.against is None else Step(self.against[0])
        self._mask = torch.empty(0, 0, dtype=torch.long)  # [row, width + room]: ones reach to the end
        self._lengths = torch.empty(0, dtype=torch.long)
        self._tokens: Tensor | None = None  # [row, width], only where the model carries no state

    @property
    def prompt_mask(self) -> Tensor:
        """`[row, width]`, 0 on padding."""
        return self._mask[:, : self.width]

    @property
    def next_columns(self) -> tuple[int, int]:
        """First column and number of columns of the next `read`."""
        return (self.width, 1) if self._tokens is None else (0, self.width + 1)

    @property
    def can_join(self) -> bool:
        """Whether rows can join now: always into an empty batch, else where the family's state allows it."""
        return not self.rows or all(caches.can_join(step.state) for step in self._steps())

    @property
    def can_select(self) -> bool:
        """Whether rows can leave before all are done."""
        return all(caches.can_select(step.state) for step in self._steps())

    @torch.no_grad()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows in one pass and put them into the batch.

        Raises:
            ModelError: The state of this family takes no rows in while others run.
        """
        if not self.can_join:
            raise ModelError(
                f"{self.model.name}: rows cannot join a batch that runs ({type(self._step.state).__name__}). Next: wait until it is done."
            )
        width, device = max(len(row.ids) for row in rows), self.model.device
        tokens = torch.full((len(rows), width), self.model.pad_id, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(rows):
            tokens[place, width - len(row.ids) :] = torch.tensor(row.ids, dtype=torch.long)
            mask[place, width - len(row.ids) :] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        fresh = Decoding(self.model, against=self.against)
        fresh._lengths = mask.sum(-1)
        fresh._mask = torch.nn.functional.pad(mask, (0, max(row.limit for row in rows)), value=1)
        fresh.width = width
        fresh._pass(tokens, mask, positions)
        self._adopt(fresh) if not self.rows else self._merge(fresh)
        self.rows += rows

    @torch.no_grad()
    def choose(self) -> Tensor:
        """Next token ids `[row]`: the largest logit, or the row's draw inverted through the distribution function."""
        chosen = self.logits.argmax(-1)
        places = [
            place for place, row in enumerate(self.rows) if row.temperature > 0 and row.draws is not None
        ]
        if places:
            rows = [self.rows[place] for place in places]
            draws = [row.draws[min(len(row.answer), len(row.draws) - 1)] for row in rows]  # pyright: ignore
            logits = self.logits if len(places) == len(self.rows) else self.logits[places]
            temperatures = torch.tensor([row.temperature for row in rows]).to(logits)
            found = (logits / temperatures[:, None]).softmax(-1)
            if any(row.top_p < 1 for row in rows):
                found = _nucleus(found, torch.tensor([row.top_p for row in rows]).to(found))
            total = found.double().cumsum(-1)
            wanted = torch.tensor(draws, dtype=torch.double, device=total.device)[:, None] * total[:, -1:]
            found = torch.searchsorted(total, wanted, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
            chosen[places] = found
        return chosen

    @torch.no_grad()
    def read(self, tokens: Tensor) -> None:
        """Feed one token of every row, `[row]`: the batch moves on by one column."""
        if self.width + 1 > self._mask.shape[1]:
            self._mask = torch.nn.functional.pad(self._mask, (0, 64), value=1)
        # a row that is done may stay in the batch beyond the model's last position: what it says then is thrown away
        new, positions = tokens[:, None], self._lengths[:, None].clamp_max(self.model.max_length - 1)
        if self._tokens is not None:
            new = torch.cat([self._tokens, new], dim=1)
            positions = (self._mask[:, : self.width + 1].cumsum(-1) - 1).clamp_min(0)
        self.width += 1
        self._lengths = self._lengths + 1
        self._pass(new, self._mask[:, : self.width], positions)

    def select(self, keep: Tensor) -> None:
        """Only these rows go on (places, `[kept]`)."""
        places = keep.tolist()
        self.rows = [self.rows[place] for place in places]
        if not places:
            self._forget()
            return
        for step in self._steps():
            step.state = caches.select_rows(step.state, keep)
        self.logits, self._mask, self._lengths = self.logits[keep], self._mask[keep], self._lengths[keep]
        if self._tokens is not None:
            self._tokens = self._tokens[keep]

    def trim(self) -> None:
        """Cut off columns that are padding in every row, where there are many: a batch that rows join and leave would grow for ever."""
        if not self.rows or not all(caches.can_join(step.state) for step in self._steps()):
            return
        num = self.width - int(self._lengths.max())
        if num < _SLACK:
            return
        for step in self._steps():
            step.state = caches.trim_columns(step.state, self.width, num)
        self._mask = self._mask[:, num:]
        if self._tokens is not None:
            self._tokens = self._tokens[:, num:]
        self.width -= num

    def _steps(self) -> list[Step]:
        return [self._step] if self._other is None else [self._step, self._other]

    def _pass(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> None:
        logits = self._step(tokens, mask, positions)
        if self._other is not None and self.against is not None:
            there = self.against[0].device
            other = self._other(tokens.to(there), mask.to(there), positions.to(there))
            logits = logits + self.against[1] * (logits - other.to(logits))
        self.logits = logits
        self._tokens = tokens if self._step.state is None else None

    def _adopt(self, fresh: Decoding) -> None:
        for name in ("width", "logits", "_step", "_other", "_mask", "_lengths", "_tokens"):
            setattr(self, name, getattr(fresh, name))

    def _merge(self, fresh: Decoding) -> None:
        """Put the rows of another batch behind one's own, all at the width of the wider."""
        for mine, theirs in zip(self._steps(), fresh._steps(), strict=True):
            mine.state = caches.join_rows(mine.state, self.width, theirs.state, fresh.width)
        width = max(self.width, fresh.width)
        room = max(one._mask.shape[1] - one.width for one in (self, fresh))
        masks = [
            torch.nn.functional.pad(one._mask[:, : one.width], (width - one.width, 0))
            for one in (self, fresh)
        ]
        self._mask = torch.nn.functional.pad(torch.cat(masks), (0, room), value=1)
        if self._tokens is not None and fresh._tokens is not None:
            pairs = [(one._tokens, width - one.width) for one in (self, fresh)]
            pads = [torch.nn.functional.pad(t, (n, 0), value=self.model.pad_id) for t, n in pairs]  # pyright: ignore
            self._tokens = torch.cat(pads)
        self.logits = torch.cat([self.logits, fresh.logits])
        self._lengths = torch.cat([self._lengths, fresh._lengths])
        self.width = width


class Step:
    """One forward call of generation, with what is carried to the next."""

    def __init__(self, model: Model) -> None:
        self.hf = model.hf
        self.reads_mask = model.resolved.family.reads_mask
        self.takes = {
            name: families.accepts(self.hf, name)
            for name in ("use_cache", "position_ids", "logits_to_keep", "attention_mask")
        }
        self.state_name = next((n for n in _STATES if families.accepts(self.hf, n)), None)
        self.state: Any = None

    def __call__(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits `[batch, vocab]` for the next token."""
        inputs: dict[str, Any] = {"input_ids": tokens}
        if self.takes["use_cache"]:
            inputs["use_cache"] = self.state_name is not None
        recurrent = self.state_name == "cache_params"
        if self.takes["attention_mask"] and self.reads_mask and not (recurrent and self.state is not None):
            inputs["attention_mask"] = mask
        if self.takes["position_ids"]:
            inputs["position_ids"] = positions
        if self.takes["logits_to_keep"]:
            inputs["logits_to_keep"] = 1
        if self.state is not None and self.state_name is not None:
            inputs[self.state_name] = self.state
        output = self.hf(**inputs)
        if self.state_name is not None:
            self.state = getattr(output, self.state_name, None)
        return output.logits[:, -1].float()


def _nucleus(found: Tensor, top_p: Tensor) -> Tensor:
    """Probabilities `[row, vocab]` with those outside the most probable share `top_p` `[row]` set to zero."""
    order = found.sort(-1, descending=True)
    before = order.values.cumsum(-1) - order.values
    return found.masked_fill(
        torch.zeros_like(found, dtype=torch.bool).scatter(-1, order.indices, before >= top_p[:, None]), 0.0
    )
