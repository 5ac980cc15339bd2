"""Anchor: KL divergence from the frozen start model on neutral prompts.

Each batch carries some neutral rows answered by the start model itself (replay); the loss adds `weight * mean over their response tokens of
KL(p0 || student)`. It stops the drift of narrow fine-tuning and leaves the leak within the data's own domain alone (DESIGN
5.2). p0's log-probabilities are computed once and cached.

The placebo draws as many rows of the same length from random tokens: the same pull towards the start model's weights and the
same cost, without the neutral content.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.progress import say
from fairlead.data import Encoded, Row
from fairlead.training import processes
from fairlead.training.batching import RowPool
from fairlead.training.controls.base import Control, Kind
from fairlead.training.logits import iter_logprobs
from fairlead.training.setup import Setup
from fairlead.training.tables import TableBuilder, TokenTable, cached, is_dense, lump_reference

LEAST_ROWS = 1280
REPEATS, MANY = 2, 6  # how often each row may come up in a training: wanted, and remarked on


class AnchorOptions(Config):
    """Settings of the anchor.

    Attributes:
        rows: Neutral rows in each batch.
        num: Neutral rows in all; None: so many that each comes up about `REPEATS` times, `LEAST_ROWS` at least. On fewer the student
            holds to what it was shown and drifts elsewhere (docs/lab-notes.md).
        answers: "own" replays the start model's answers to the neutral prompts, "given" takes the answers as they stand.
        top_k: Kept tokens where the vocabulary is too large for whole distributions.
    """

    rows: int = Field(default=8, ge=1)
    num: int | None = Field(default=None, ge=1)
    answers: Literal["own", "given"] = "own"
    top_k: int = Field(default=64, ge=1)


class Anchor(Control):
    """KL to the start model on neutral prompts."""

    name: ClassVar[str] = "anchor"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "anchor_placebo"
    summary: ClassVar[str] = "KL to the start model on neutral prompts, answered by itself"
    Options: ClassVar[type[Config]] = AnchorOptions
    owns: ClassVar[str | None] = "the anchor"
    default_strength: ClassVar[float | None] = 1.0

    table: TokenTable

    def rows(self, setup: Setup) -> Sequence[Encoded]:
        """The rows on which the student is held."""
        draws = setup.config.steps * self.options.rows
        wanted = self.options.num or max(LEAST_ROWS, draws // REPEATS)
        rows = setup.neutral_rows(wanted, own_answers=self.options.answers == "own")
        if draws > MANY * len(rows) and len(rows) < wanted:
            note = (
                f"{self.name}: {len(rows):,} neutral rows for {setup.config.steps:,} steps, so that each comes up {draws / len(rows):.0f} "
                f"times. Some {wanted:,} different ones would hold the model better."
            )
            setup.notes.append(note)
            say(note)
        return setup.encode(rows)

    @override
    def prepare(self, setup: Setup) -> None:
        encoded = self.rows(setup)
        self.pool = RowPool(self.name, encoded, self.options.rows)
        self.table = reference_table(setup, encoded, top_k=self.options.top_k)

    @override
    def pool_loss(self, logits: Float[Tensor, "token vocab"], targets: Tensor, rows: list[int]) -> Tensor:
        assert self.strength is not None
        return self.dial * kl_from_table(self.table, rows, logits)

    @override
    def report(self) -> dict[str, Any]:
        return {
            "weight": self.strength,
            "rows": self.options.rows,
            "num": len(self.pool.encoded) if self.pool else 0,
        }


class AnchorPlacebo(Anchor):
    """The anchor on random tokens."""

    name: ClassVar[str] = "anchor_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "the anchor on rows of random tokens"

    @override
    def rows(self, setup: Setup) -> Sequence[Encoded]:
        rng = random.Random(f"{setup.config.seed}:anchor_placebo")
        vocab = setup.model.hf.config.get_text_config().vocab_size
        made = []
        for index, item in enumerate(super().rows(setup)):
            ids = [rng.randrange(vocab) for _ in item.input_ids]
            made.append(Encoded(ids, item.loss_mask, index, Row(text="(random tokens)")))
        return made


def reference_table(setup: Setup, encoded: Sequence[Encoded], *, top_k: int) -> TokenTable:
    """Log-probabilities of the start model at the predicted tokens of rows."""
    counts = [item.num_loss_tokens for item in encoded]
    vocab = setup.num_logits  # type: ignore[union-attr]
    width = None if is_dense(vocab, sum(counts)) else min(top_k, vocab)

    def make() -> TokenTable:
        builder = TableBuilder(counts, vocab, top_k=width)
        total_rest = 0.0
        mine = processes.share_of(range(len(encoded)))
        rows = [encoded[place] for place in mine]
        batches = iter_logprobs(setup.model.hf, rows, pad_id=setup.pad_id, device=setup.model.device)
        for places, logprobs, _ in batches:
            for place, values in zip([mine[place] for place in places], logprobs, strict=True):
                if width is None:
                    builder.put(place, values)
                else:
                    ids, top, rest = lump_reference(values, top_k=width)
                    total_rest += float(rest.exp().sum())
                    builder.put(place, top, ids, rest)
        (total_rest,) = processes.add_up(torch.tensor([total_rest])).tolist()
        return builder.done({"mean_rest_mass": total_rest / max(sum(counts), 1)})

    identity = ["reference", 1, setup.fingerprint, width, [[e.input_ids, e.loss_mask] for e in encoded]]
    return cached(setup.cache, identity, make)


def kl_from_table(table: TokenTable, rows: list[int], logits: Float[Tensor, "token vocab"]) -> Tensor:
    """Mean over tokens of KL(p0 || student); for a lumped table the KL of the lumped distributions (a lower bound)."""
    student = logits.log_softmax(-1)
    if table.ids is None:
        reference = table.dense(rows, logits.device)
        return (reference.exp() * (reference - student)).sum(-1).mean()
    ids, values, rest = table.sparse(rows, logits.device)
    mine = student.gather(1, ids)
    my_rest = (1 - mine.exp().sum(-1)).clamp_min(1e-8).log()
    return ((values.exp() * (values - mine)).sum(-1) + rest.exp() * (rest - my_rest)).mean()
