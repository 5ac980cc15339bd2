"""Training batches: the data rows that TRL drew, and beside them the rows that controls bring along.

The data rows make an ordinary batch. Rows of the pools (the anchor's neutral chats, the spec's examples) make a second,
separately padded batch and get a forward pass of their own: neutral prompts are often twice as long as the data, and
padding both to one width would cost more than it saves (measured on the pocket model: 1.4 times the time per step).

Which pool rows come with an optimizer step is a hash of the seed and of all data rows in it, in the order in which they were drawn:
no hidden counter, so a resumed run or another arm with the same seed sees the same rows, and so does the same batch when it
is cut into micro-batches or shared by processes. Each part then takes its share of them. They are drawn when the step
begins, not when the data loader (which runs ahead) collates the batch, so that a pool that has just changed is the one
drawn from. Extra fields of a batch begin with `fl_` and never reach the model.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairlead.core.errors import TrainingError
from fairlead.data import Batch, Encoded, collate, pack
from fairlead.training import processes
from fairlead.training.logits import predicting, select_logits

IGNORE = -100
PACKING_ROWS, PACKING_ERROR = (
    4,
    0.05,
)  # in standard deviations of the logits: bfloat16 differs a little, rows that see each other a lot


@dataclass
class RowPool:
    """Rows that a control adds to every batch.

    Attributes:
        name: Name of the loss part ("anchor", "spec_examples").
        encoded: The rows to draw from; a control may replace them between two steps.
        per_step: How many come with an optimizer step.
    """

    name: str
    encoded: Sequence[Encoded]
    per_step: int


@dataclass(frozen=True)
class StepPart:
    """Which part of an optimizer step a micro-batch is.

    Attributes:
        places: Data rows of the whole step, in the order in which they were drawn.
        micro: Number of the micro-batch within the step.
        process: Which process it belongs to.
        num_micro: Micro-batches of the step in each process.
        processes: Number of processes.
    """

    places: tuple[int, ...]
    micro: int = 0
    process: int = 0
    num_micro: int = 1
    processes: int = 1

    def of(self, items: Sequence[Any]) -> list[Any]:
        """This part's share of something that belongs to the step."""
        return list(items[self.micro * self.processes + self.process :: self.num_micro * self.processes])

    @property
    def must_join(self) -> bool:
        """Whether another process counts on this one's forward pass."""
        return self.processes > 1


def step_parts(mine: Sequence[Sequence[int]]) -> list[StepPart]:
    """The parts that this process's micro-batches (places of their rows) are of the step of all processes."""
    everyone = processes.gather([list(places) for places in mine])
    whole = tuple(place for micro in zip(*everyone, strict=True) for places in micro for place in places)
    return [
        StepPart(whole, micro, processes.rank(), len(mine), len(everyone)) for micro, _ in enumerate(mine)
    ]


@dataclass
class StepView:
    """The data rows of one micro-batch; controls and hooks read it during the forward pass.

    Attributes:
        places: Places of the rows in the encoded data.
        target_mask: `[row, seq]`, True where the token is predicted; `[1, token]` where rows are packed.
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
        inputs: What the model is given; tensors `[row, seq]`, or `[1, token]` where rows are packed.
        target_mask: `[row, seq]`, True where the token is predicted.
        rows: Per pool, the places of its rows in the pool.
        spans: Per pool, the slice of its tokens among all predicted tokens.
        targets: `[token]` predicted tokens, row by row.
        weights: Per pool, the share that these tokens are of all its tokens of the optimizer step.
    """

    inputs: dict[str, Tensor]
    target_mask: Tensor
    rows: list[list[int]]
    spans: list[slice]
    targets: Tensor
    weights: list[float]


@dataclass
class StepState:
    """What hooks and observers can see of the running micro-batch.

    Attributes:
        view: Its data rows, while they are in their forward pass; None otherwise (evaluation, generation, pool rows).
        last: Data rows of the latest micro-batch (for observers after the backward pass).
        parts: Loss parts of the running optimizer step, summed over its micro-batches: "data" and one per pool; empty
            where the loss is TRL's own.
        loss: Total loss of the running optimizer step, likewise.
        step: Optimizer steps done.
    """

    view: StepView | None = None
    last: StepView | None = None
    parts: dict[str, float] = field(default_factory=dict)
    loss: float = float("nan")
    step: int = 0


@torch.no_grad()
def check_packing(module: nn.Module, encoded: Sequence[Encoded], *, name: str, pad_id: int) -> None:
    """See on a few rows whether the model keeps packed rows apart.

    Raises:
        TrainingError: It does not: its logits are not those of the padded rows.
    """
    rows, device = encoded[:PACKING_ROWS], next(module.parameters()).device
    found = []
    for batch in (collate(rows, pad_id=pad_id), pack(rows)):
        batch = batch.to(device)
        found.append(select_logits(module, {**batch.inputs, "use_cache": False}, predicting(batch.loss_mask)))
    off = float((found[0] - found[1]).abs().max())
    if off > PACKING_ERROR * max(1.0, float(found[0].std())):
        raise TrainingError(
            f"{name} does not keep packed rows apart (logits differ by {off:.2g}). Next: leave packing out, or load the model with an "
            "attention that takes packed rows."
        )


class Composer:
    """The collator of the data rows; an example of the trainer's data set is `{"place": int}`.

    Args:
        data: Encoded data rows.
        pad_id: Token for padding.
        packing: Lay rows end to end instead of padding them.
    """

    def __init__(self, data: Sequence[Encoded], *, pad_id: int, packing: bool = False) -> None:
        self.data, self.pad_id, self.packing = data, pad_id, packing

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One batch of examples."""
        places = [int(example["place"]) for example in examples]
        batch = _laid([self.data[place] for place in places], pad_id=self.pad_id, packing=self.packing)
        return {
            **batch.inputs,
            "labels": batch.input_ids.masked_fill(~batch.loss_mask, IGNORE),
            "fl_places": torch.tensor(places),
            "fl_targets": batch.loss_mask,
        }


def _laid(rows: Sequence[Encoded], *, pad_id: int, packing: bool) -> Batch:
    return pack(rows) if packing else collate(rows, pad_id=pad_id)


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
        packing: Lay rows end to end instead of padding them.
    """

    def __init__(
        self, pools: Sequence[RowPool], *, pad_id: int, seed: int = 0, packing: bool = False
    ) -> None:
        self.pools, self.pad_id, self.seed, self.packing = tuple(pools), pad_id, seed, packing

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

    def __call__(
        self, places: Sequence[int], device: torch.device | str = "cpu", part: StepPart | None = None
    ) -> PoolView | None:
        """The rows of all pools that come with a part of a step, as one padded batch; None where there are none.

        A part that draws none while another process may have some gets one row of weight 0: processes go through the
        model in step.
        """
        part = part or StepPart(tuple(places))
        whole = self.draw(part.places)
        drawn = [part.of(picks) for picks in whole]
        weights = [
            sum(pool.encoded[pick].num_loss_tokens for pick in mine)
            / max(sum(pool.encoded[pick].num_loss_tokens for pick in picks), 1)
            for pool, mine, picks in zip(self.pools, drawn, whole, strict=True)
        ]
        if part.must_join and not any(drawn):
            drawn = [picks[:1] for picks in whole]
        picked = [
            [pool.encoded[pick] for pick in picks] for pool, picks in zip(self.pools, drawn, strict=True)
        ]
        rows = [row for some in picked for row in some]
        if not rows:
            return None
        batch = _laid(rows, pad_id=self.pad_id, packing=self.packing).to(device)
        ends = (
            torch.tensor([0, *(sum(row.num_loss_tokens for row in some) for some in picked)])
            .cumsum(0)
            .tolist()
        )
        return PoolView(
            batch.inputs,
            batch.loss_mask,
            drawn,
            [slice(start, end) for start, end in itertools.pairwise(ends)],
            batch.input_ids[batch.loss_mask],
            weights,
        )
