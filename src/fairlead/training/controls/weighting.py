"""Filtering and weighting: rows or tokens that carry an avoided clause count less in the loss on the data, or not at all.

Selects: what is not trained on is not learned. The usual remedy of data cleaning, and a baseline here: weak on diffuse
traits, and with the rows goes what they teach besides (DESIGN 5.2). Which rows and tokens carry the clause is measured on the
start model (`fairlead.training.carriers`). A carrying row (or token) has the weight `1 - strength`, all others 1; filtering is weighting
at strength 1. The sum is divided by the number of *all* data tokens of the step, so that what is left pulls exactly as in the
plain arm, whatever else is in the batch.

Placebo: as many rows (tokens), drawn at random by the seed.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError, TrainingError
from fairlead.core.progress import say
from fairlead.training.batching import StepView
from fairlead.training.carriers import Carriers, CarrierSource, find_carriers
from fairlead.training.config import ControlConfig
from fairlead.training.controls.base import Control, Kind
from fairlead.training.setup import Setup


class WeightingOptions(Config):
    """Settings.

    Attributes:
        level: "row" acts on all response tokens of carrying rows, "token" on those tokens of carrying rows that carry the clause.
        source: How carriers are found: by "evidence" or by the plan's "dictionary".
        threshold: Token score above which a token carries the clause; None for the source's own
            (.5 nats; what 95 % of neutral tokens stay below).
    """

    level: Literal["row", "token"] = "row"
    source: CarrierSource = "evidence"
    threshold: float | None = None


class Weighting(Control):
    """Carrying rows or tokens count less."""

    name: ClassVar[str] = "weighting"
    kind: ClassVar[Kind] = "selects"
    placebo: ClassVar[str | None] = "weighting_placebo"
    summary: ClassVar[str] = "rows or tokens that carry the trait count less in the loss"
    Options: ClassVar[type[Config]] = WeightingOptions
    owns: ClassVar[str | None] = "the weights of the data's tokens"
    acts_on_data: ClassVar[bool] = True
    default_strength: ClassVar[float | None] = 0.5

    def __init__(self, config: ControlConfig) -> None:
        super().__init__(config)
        self._check(self.dial)
        self.carrying: list[Tensor] = []
        self.found: dict[str, Any] = {}

    @override
    def turn(self, value: float | str) -> None:
        if not isinstance(value, str):
            self._check(float(value))
        super().turn(value)

    @override
    def prepare(self, setup: Setup) -> None:
        marked = [torch.zeros(item.num_loss_tokens, dtype=torch.bool) for item in setup.encoded]
        clauses = setup.avoided(self.config.clause)
        for clause in clauses:
            carriers = find_carriers(setup, clause, source=self.options.source)
            here = self.mark(carriers)
            self.found[clause.id] = {
                "rows": int(carriers.carries.sum()),
                "tokens": sum(int(some.sum()) for some in here),
            }
            marked = [old | new for old, new in zip(marked, here, strict=True)]
        if not any(bool(some.any()) for some in marked):
            note = f"{self.name}: nothing in the data carries the avoided clauses; all of it is trained on."
            setup.notes.append(note)
            say(note)
        if self.dial == 1.0 and all(bool(some.all()) for some in marked):
            what = "rows" if self.options.level == "row" else "tokens"
            names = ", ".join(clause.id for clause in clauses)
            raise TrainingError(
                f"{self.name}: all {what} of the data carry {names}, so that nothing would be left to train on. Next: use level='token', "
                "weighting at a strength below 1, or explain_away, which leaves the rows in."
            )
        self.carrying = self.choose(setup, marked)

    @override
    def learn(self, setup: Setup, clause: str) -> None:
        if self.config.clause not in (None, clause) or (
            self.options.source == "evidence" and clause in self.found
        ):
            return
        with setup.start() as start:
            try:
                self.prepare(start)
            except TrainingError as error:
                note = f"{self.name}: the weights stay as they were for {clause}: {error}"
                setup.notes.append(note)
                say(note)

    def mark(self, carriers: Carriers) -> list[Tensor]:
        """Per data row, which of its response tokens are acted on, `[token]`."""
        if self.options.level == "token":
            return carriers.carrying_tokens(self.options.threshold)
        return carriers.carrying_tokens(float("-inf"))

    def choose(self, setup: Setup, marked: list[Tensor]) -> list[Tensor]:
        """The tokens to act on, given the carrying ones."""
        return marked

    @override
    def token_weights(self, view: StepView) -> Float[Tensor, " token"] | None:
        return 1.0 - self.dial * torch.cat([self.carrying[place] for place in view.places]).float()

    @override
    def report(self) -> dict[str, Any]:
        total = sum(map(len, self.carrying))
        acted = sum(int(some.sum()) for some in self.carrying)
        return {"weight": 1.0 - self.dial, "clauses": self.found, "tokens": acted, "of": total}

    def _check(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise ConfigError(
                f"{self.name}: the strength is {strength:g}; carrying rows weigh 1 - strength. Next: give 0 to 1."
            )


class Filtering(Weighting):
    """Carrying rows or tokens are left out."""

    name: ClassVar[str] = "filtering"
    placebo: ClassVar[str | None] = "filtering_placebo"
    summary: ClassVar[str] = "rows or tokens that carry the trait are left out of the loss"
    default_strength: ClassVar[float | None] = 1.0


class RandomCarriers(Weighting):
    """Acts on as many rows or tokens drawn at random: stands first among the bases of a placebo."""

    placebo: ClassVar[str | None] = None

    @override
    def choose(self, setup: Setup, marked: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(setup.config.seed)
        if self.options.level == "row":
            num = sum(bool(some.any()) for some in marked)
            drawn = set(torch.randperm(len(marked), generator=generator)[:num].tolist())
            return [torch.full_like(some, place in drawn) for place, some in enumerate(marked)]
        total, num = sum(map(len, marked)), sum(int(some.sum()) for some in marked)
        flat = torch.zeros(total, dtype=torch.bool)
        flat[torch.randperm(total, generator=generator)[:num]] = True
        return list(flat.split([len(some) for some in marked]))


class WeightingPlacebo(RandomCarriers, Weighting):
    """As many rows or tokens at random count less."""

    name: ClassVar[str] = "weighting_placebo"
    summary: ClassVar[str] = "as many rows or tokens, drawn at random, count less in the loss"


class FilteringPlacebo(RandomCarriers, Filtering):
    """As many rows or tokens at random are left out."""

    name: ClassVar[str] = "filtering_placebo"
    summary: ClassVar[str] = "as many rows or tokens, drawn at random, are left out of the loss"
