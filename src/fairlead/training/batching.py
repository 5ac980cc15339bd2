"""Training batches: the data rows that TRL drew, and beside them the rows that controls bring along.

The data rows make an ordinary batch. Rows of the pools (the anchor's neutral chats, the spec's examples) make a second,
separately padded batch and get a forward pass of their own: neutral prompts are often twice as long as the data, and
padding both to one width would cost more than it saves (measured on the pocket model: 1.4 times the time per step).

Which pool rows come with a batch is a hash of the seed and the data rows in it: no hidden counter, so a resumed run, another
number of workers or another arm with the same seed sees the same rows. They are drawn when the step begins, not when the
data loader (which runs ahead) collates the batch, so that a pool that has just changed is the one drawn from. Extra
fields of a batch begin with `fl_` and never reach the model.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fairlead.data import Encoded, collate
from fairlead.training.logits import predicting

IGNORE = -100


@dataclass
class RowPool:
    """Rows that a control adds to every batch.

    Attributes:
        name: Name of the loss part ("anchor", "spec_examples").
        encoded: The rows to draw from; a control may replace them between two steps.
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
    """The collator of the data rows; an example of the trainer's data set is `{"place": int}`.

    Args:
        data: Encoded data rows.
        pad_id: Token for padding.
    """

    def __init__(self, data: Sequence[Encoded], *, pad_id: int) -> None:
        self.data, self.pad_id = data, pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of examples."""
        places = [int(example["place"]) for example in examples]
        batch = collate([self.data[place] for place in places], pad_id=self.pad_id)
        return {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": batch.input_ids.masked_fill(~batch.loss_mask, IGNORE),
            "fl_places": torch.tensor(places),
            "fl_targets": batch.loss_mask,
        }


def pop_view(inputs: dict[str, Any]) -> StepView:
    """Take the extra fields out of a batch: what controls can see of its data rows."""
    mask = inputs.pop("fl_targets")
    return StepView(inputs.pop("fl_places").tolist(), mask, inputs["input_ids"][mask])


class PoolComposer:
    """Rows of the controls' pools that go with data rows.

    Args:
        pools: Where to draw from; a control may change a pool's rows between two steps.
        pad_id: Token for padding.
        seed: Of the draws.
    """

    def __init__(self, pools: Sequence[RowPool], *, pad_id: int, seed: int = 0) -> None:
        self.pools, self.pad_id, self.seed = tuple(pools), pad_id, seed

    def draw(self, places: Sequence[int]) -> list[list[int]]:
        """Rows of each pool that go with these data rows; no row twice in a batch where the pool suffices, none from an empty pool."""
        drawn = []
        for pool in self.pools:
            rng = random.Random(f"{self.seed}:{pool.name}:{','.join(map(str, places))}")
            size = len(pool.encoded)
            if pool.per_step <= size:
                drawn.append(rng.sample(range(size), pool.per_step))
            else:
                drawn.append([rng.randrange(size) for _ in range(pool.per_step if size else 0)])
        return drawn

    def __call__(self, places: Sequence[int], device: torch.device | str = "cpu") -> PoolView | None:
        """The drawn rows of all pools as one padded batch; None where there are none."""
        drawn = self.draw(places)
        picked = [
            [pool.encoded[pick] for pick in picks] for pool, picks in zip(self.pools, drawn, strict=True)
        ]
        rows = [row for some in picked for row in some]
        if not rows:
            return None
        batch = collate(rows, pad_id=self.pad_id).to(device)
        ends = (
            torch.tensor([0, *(sum(row.num_loss_tokens for row in some) for some in picked)])
            .cumsum(0)
            .tolist()
        )
        return PoolView(
            batch.input_ids,
            batch.attention_mask,
            batch.loss_mask,
            drawn,
            [slice(start, end) for start, end in itertools.pairwise(ends)],
            batch.input_ids[batch.loss_mask],
        )
