"""Encoded rows to padded batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fairlead.core.errors import ConfigError
from fairlead.data.encode import Encoded


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    Attributes:
        input_ids: `[batch, seq]` long.
        attention_mask: `[batch, seq]` long, 0 on padding.
        loss_mask: `[batch, seq]` bool, True where the TOKEN at that position is predicted (from the one
            before).
        index: `[row]` long, index of each row in the encoded data.
        position_ids: `[1, token]` where the rows are packed into one line; None where they are padded.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    loss_mask: Bool[Tensor, "batch seq"]
    index: Int[Tensor, " row"]
    position_ids: Int[Tensor, "batch seq"] | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is given: tokens with their mask, or, packed, with their positions (without a mask, by which it knows)."""
        if self.position_ids is not None:
            return {"input_ids": self.input_ids, "position_ids": self.position_ids}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.loss_mask.to(device),
            self.index.to(device),
            None if self.position_ids is None else self.position_ids.to(device),
        )

    @property
    def num_loss_tokens(self) -> int:
        """Number of predicted tokens in the batch."""
        return int(self.loss_mask.sum())

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


def collate(
    encoded: Sequence[Encoded], *, pad_id: int, padding_side: Literal["right", "left"] = "right"
) -> Batch:
    """One batch of all given rows, padded to the longest."""
    if padding_side not in ("right", "left"):
        raise ConfigError(f"padding_side is {padding_side!r}; use 'right' or 'left'.")
    if not encoded:
        raise ConfigError("a batch needs at least one row.")
    num, width = len(encoded), max(map(len, encoded))
    input_ids = torch.full((num, width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((num, width), dtype=torch.long)
    loss_mask = torch.zeros((num, width), dtype=torch.bool)
    for place, item in enumerate(encoded):
        where = slice(0, len(item)) if padding_side == "right" else slice(width - len(item), width)
        input_ids[place, where] = torch.tensor(item.input_ids, dtype=torch.long)
        attention_mask[place, where] = 1
        loss_mask[place, where] = torch.tensor(item.loss_mask, dtype=torch.bool)
    index = torch.tensor([item.index for item in encoded], dtype=torch.long)
    return Batch(input_ids, attention_mask, loss_mask, index)


def pack(encoded: Sequence[Encoded]) -> Batch:
    """All given rows end to end in one line, without padding; each begins at position 0, by which attention keeps them apart."""
    if not encoded:
        raise ConfigError("a batch needs at least one row.")
    tokens = torch.tensor([[token for item in encoded for token in item.input_ids]])
    positions = torch.tensor([[position for item in encoded for position in range(len(item))]])
    loss_mask = torch.tensor([[flag for item in encoded for flag in item.loss_mask]])
    index = torch.tensor([item.index for item in encoded], dtype=torch.long)
    return Batch(tokens, torch.ones_like(tokens), loss_mask, index, positions)


def iter_batches(
    encoded: Sequence[Encoded],
    *,
    batch_size: int,
    pad_id: int,
    sort: bool = True,
    seed: int | None = None,
    padding_side: Literal["right", "left"] = "right",
) -> Iterator[Batch]:
    """Batches that together hold every row once.

    Args:
        encoded: Encoded rows.
        batch_size: Rows in a batch; the last may be smaller.
        pad_id: Token id of padding.
        sort: Put rows of like length together (less padding).
        seed: Shuffle rows of equal length and the order of batches (of rows, without `sort`); None keeps a
            fixed order (longest first when sorted, so that memory trouble shows at once).
        padding_side: Where padding goes.

    Raises:
        ConfigError: `batch_size` below 1 or an unknown padding side.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
    order = list(range(len(encoded)))
    rng = random.Random(seed) if seed is not None else None
    if rng is not None:
        rng.shuffle(order)
    if sort:
        order.sort(key=lambda place: -len(encoded[place]))
    starts = list(range(0, len(order), batch_size))
    if sort and rng is not None:
        rng.shuffle(starts)
    for start in starts:
        rows = [encoded[place] for place in order[start : start + batch_size]]
        yield collate(rows, pad_id=pad_id, padding_side=padding_side)
