"""Training batches: the data rows that TRL drew, and beside them the rows that controls bring along.

The data rows make an ordinary batch. Rows of the pools (the anchor's neutral chats, the spec's examples) travel beside it as a second,
separately padded batch and get a forward pass of their own: neutral prompts are often twice as long as the data, and
padding both to one width would cost more than it saves (measured on the pocket model: 1.4 times the time per step).

Which pool rows come with a batch is a hash of the seed and the data rows in it: no hidden counter, so a resumed run, another
number of workers or another arm with the same seed sees the same rows. All extra fields begin with `fl_` and never reach the model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairlead.core.errors import ConfigError
from fairlead.data import Encoded, collate
from fairlead.training.logits import predicting

IGNORE = -100


@dataclass(frozen=True)
class RowPool:
    """Rows that a control adds to every batch.

    Attributes:
        name: Name of the loss part ("anchor", "spec_examples").
        encoded: The rows to draw from.
        per_step: How many come with a batch.
    """

    name: str
    encoded: Sequence[Encoded]
    per_step: int


@dataclass
class StepView:
    """The data rows of one micro-batch; controls and hooks read it during the forward pass.

    Attributes:
        places: Places of the rows in the encoded data.
        target_mask: `[row, seq]`, True where the token is predicted.
        targets: `[token]` predicted tokens, row by row.
    """

    places: list[int]
    target_mask: Tensor
    targets: Tensor

    @property
    def predict_mask(self) -> Tensor:
        """`[row, seq]`, True at the positions that predict."""
        return predicting(self.target_mask)


@dataclass
class PoolView:
    """The pool rows of one micro-batch, of all pools in one padded batch.

    Attributes:
        input_ids: `[row, seq]`.
        attention_mask: `[row, seq]`.
        target_mask: `[row, seq]`, True where the token is predicted.
        rows: Per pool, the places of its rows in the pool.
        spans: Per pool, the slice of its tokens among all predicted tokens.
        targets: `[token]` predicted tokens, row by row.
    """

    input_ids: Tensor
    attention_mask: Tensor
    target_mask: Tensor
    rows: list[list[int]]
    spans: list[slice]
    targets: Tensor


@dataclass
class StepState:
    """What hooks and observers can see of the running micro-batch.

    Attributes:
        view: Its data rows, while they are in their forward pass; None otherwise (evaluation, generation, pool rows).
        last: Data rows of the latest micro-batch (for observers after the backward pass).
        parts: Loss parts of the latest micro-batch as they enter the loss: "data" and one per pool; empty where the
            loss is TRL's own.
        loss: Total loss of the latest micro-batch.
        step: Optimizer steps done.
    """

    view: StepView | None = None
    last: StepView | None = None
    parts: dict[str, float] = field(default_factory=dict)
    loss: float = float("nan")
    step: int = 0


class Composer:
    """The collator: data rows by their place, plus rows of the pools.

    Args:
        data: Encoded data rows; an example of the trainer's data set is `{"place": int}`.
        pools: Rows of controls.
        pad_id: Token for padding.
        seed: Of the draws from the pools.
        use_data: False leaves the data rows out of the loss (they still decide the draws).
    """

    def __init__(
        self,
        data: Sequence[Encoded],
        pools: Sequence[RowPool] = (),
        *,
        pad_id: int,
        seed: int = 0,
        use_data: bool = True,
    ) -> None:
        if not use_data and not pools:
            raise ConfigError(
                "use_data is off and no control brings rows: nothing to train on. Next: add spec_examples."
            )
        self.data, self.pools = data, tuple(pools)
        self.pad_id, self.seed, self.use_data = pad_id, seed, use_data

    def draw(self, places: Sequence[int]) -> list[list[int]]:
        """Rows of each pool that go with these data rows; no row twice in a batch where the pool suffices."""
        drawn = []
        for pool in self.pools:
            rng = random.Random(f"{self.seed}:{pool.name}:{','.join(map(str, places))}")
            size = len(pool.encoded)
            if pool.per_step <= size:
                drawn.append(rng.sample(range(size), pool.per_step))
            else:
                drawn.append([rng.randrange(size) for _ in range(pool.per_step)])
        return drawn

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of examples of the trainer's data set, with the pool rows that go with it."""
        places = [int(example["place"]) for example in examples]
        batch = collate([self.data[place] for place in places], pad_id=self.pad_id)
        made = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.input_ids.masked_fill(~batch.loss_mask, IGNORE),
            "fl_places": torch.tensor(places),
            "fl_targets": batch.loss_mask,
        }
        if self.pools:
            drawn = self.draw(places)
            rows = [
                pool.encoded[pick] for pool, picks in zip(self.pools, drawn, strict=True) for pick in picks
            ]
            extra = collate(rows, pad_id=self.pad_id)
            made |= {
                "fl_pool_ids": extra.input_ids,
                "fl_pool_mask": extra.attention_mask,
                "fl_pool_targets": extra.loss_mask,
                "fl_pool_rows": torch.tensor([pick for picks in drawn for pick in picks]),
                "fl_pool_sizes": torch.tensor([len(picks) for picks in drawn]),
            }
        return made


def pop_views(inputs: dict[str, Any]) -> tuple[StepView, PoolView | None]:
    """Take the extra fields out of a batch: its data rows, and its pool rows where there are pools."""
    mask = inputs.pop("fl_targets")
    view = StepView(inputs.pop("fl_places").tolist(), mask, inputs["input_ids"][mask])
    if "fl_pool_ids" not in inputs:
        return view, None
    ids, targets = inputs.pop("fl_pool_ids"), inputs.pop("fl_pool_targets")
    sizes, flat = inputs.pop("fl_pool_sizes").tolist(), inputs.pop("fl_pool_rows").tolist()
    counts = targets.sum(1).tolist()
    rows: list[list[int]] = []
    spans: list[slice] = []
    row = token = 0
    for size in sizes:
        num = sum(counts[row : row + size])
        rows.append(flat[row : row + size])
        spans.append(slice(token, token + num))
        row, token = row + size, token + num
    return view, PoolView(ids, inputs.pop("fl_pool_mask"), targets, rows, spans, ids[targets])
