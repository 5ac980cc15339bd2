"""Spec examples: a few rows made of the spec itself, at low weight.

The rows are the Keep clauses' examples with their prompts: how the skill looks without the trait. Where no Keep example has a
prompt, the counterparts ("instead") of the Avoid clauses stand in for them; mixed in by default they would only dilute the skill
(they are often about other topics, which the anchor holds anyway). The rows carry the skill into the plain context and alone
teach next to nothing (DESIGN 5.2). The placebo shuffles the answers among the prompts.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import TrainingError
from fairlead.core.records import Spec
from fairlead.data import Row
from fairlead.training.batching import RowPool
from fairlead.training.controls.base import Control, Kind
from fairlead.training.setup import Setup, example_row


class SpecExamplesOptions(Config):
    """Settings.

    Attributes:
        rows: Rows in each batch.
        counterparts: Use the Avoid clauses' counterparts too, not only where there is no Keep example.
    """

    rows: int = Field(default=8, ge=1)
    counterparts: bool = False


class SpecExamples(Control):
    """A few rows of the spec's own examples."""

    name: ClassVar[str] = "spec_examples"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "spec_examples_placebo"
    summary: ClassVar[str] = "a few rows made of the spec's Keep examples and counterparts, at low weight"
    Options: ClassVar[type[Config]] = SpecExamplesOptions
    owns: ClassVar[str | None] = "the spec's examples"
    default_strength: ClassVar[float | None] = 0.3

    def rows(self, setup: Setup) -> list[Row]:
        """The rows."""
        if setup.plan is None:
            raise TrainingError("spec_examples needs a plan with a spec. Next: pass plan=decide(menu, spec).")
        rows = spec_rows(setup.plan.spec, chat=setup.is_chat, counterparts=self.options.counterparts)
        if not rows:
            raise TrainingError(
                "the spec has no example with a prompt to train on. Next: give Keep clauses examples, or Avoid examples an 'instead'."
            )
        return rows

    @override
    def prepare(self, setup: Setup) -> None:
        self.pool = RowPool(self.name, setup.encode(self.rows(setup)), self.options.rows)

    @override
    def pool_loss(self, logits: Float[Tensor, "token vocab"], targets: Tensor, rows: list[int]) -> Tensor:
        assert self.strength is not None
        return self.dial * F.cross_entropy(logits, targets)

    @override
    def report(self) -> dict[str, Any]:
        return {
            "weight": self.strength,
            "rows": self.options.rows,
            "num": len(self.pool.encoded) if self.pool else 0,
        }


class SpecExamplesPlacebo(SpecExamples):
    """The same rows with their answers shuffled."""

    name: ClassVar[str] = "spec_examples_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "the spec's examples with answers shuffled among the prompts"

    @override
    def rows(self, setup: Setup) -> list[Row]:
        rows = super().rows(setup)
        answers = [row.response for row in rows]
        random.Random(f"{setup.config.seed}:spec_examples_placebo").shuffle(answers)
        return [
            example_row(answer, row.prompt, chat=True) if row.messages is not None else Row(text=answer)
            for row, answer in zip(rows, answers, strict=True)
        ]


def spec_rows(spec: Spec, *, chat: bool, counterparts: bool) -> list[Row]:
    """Rows of the Keep examples, of the Avoid counterparts where wanted or needed; on chat models only those with a prompt."""
    keep = [(e.text, e.prompt) for clause in spec.of_kind("keep") for e in clause.examples]
    instead = [
        (e.instead, e.prompt) for clause in spec.of_kind("avoid") for e in clause.examples if e.instead
    ]
    keep, instead = ([pair for pair in pairs if pair[1] is not None or not chat] for pairs in (keep, instead))
    chosen = [*keep, *instead] if counterparts or not keep else keep
    return [example_row(answer, prompt, chat=chat) for answer, prompt in chosen]
