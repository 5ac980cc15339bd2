"""Inoculation: ask for the trait in the training prompts, drop the request afterwards.

A system prompt that requests the trait stands before every data row while training (arXiv 2510.04340, 2510.05024).
The trait is then what the prompt asks for and need not be learned; known to gate the wanted skill as well, so it is
shown beside a neutral prompt of like length. Paraphrased: each row gets one of the clause's requests. Selective, for mixed data: only
rows that carry an avoided clause get it (`fairlead.training.carriers`, the rule of all controls that act on such rows). The rows are
those of the clauses, whatever the prompt: the placebo puts its neutral prompt before the same ones.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar

import torch
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError, TrainingError
from fairlead.core.progress import say
from fairlead.data import Encoded, encode
from fairlead.training.carriers import find_carriers
from fairlead.training.controls.base import ACCOUNT, Control, Kind
from fairlead.training.neutral_prompts import neutral_prompt_like
from fairlead.training.setup import Setup


class InoculationOptions(Config):
    """Settings.

    Attributes:
        prompt: The prompt; None for the first request of the avoided clause.
        paraphrase: Give each row one of all the clause's requests instead of the same to all.
        selective: Leave rows alone that do not carry the avoided clause.
    """

    prompt: str | None = None
    paraphrase: bool = False
    selective: bool = False


class Inoculation(Control):
    """A system prompt that requests the trait, in training only."""

    name: ClassVar[str] = "inoculation"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "inoculation_placebo"
    summary: ClassVar[str] = "a system prompt that requests the trait, in training only"
    Options: ClassVar[type[Config]] = InoculationOptions
    owns: ClassVar[str | None] = ACCOUNT
    acts_on_data: ClassVar[bool] = True

    prompts: tuple[str, ...] = ()
    num_inoculated: int = 0

    def choose(self, setup: Setup) -> tuple[str, ...]:
        """The prompts that stand before the data rows, one of them before each."""
        if self.options.prompt is not None and self.options.paraphrase:
            raise ConfigError(
                "inoculation: prompt and paraphrase contradict each other. Next: give one of them."
            )
        if self.options.prompt is not None:
            return (self.options.prompt,)
        clauses = setup.avoided(self.config.clause)
        asked = [clause.requests or (clause.text,) for clause in clauses]
        num = max(map(len, asked)) if self.options.paraphrase else 1
        if self.options.paraphrase and num == 1:
            note = f"{self.name}: the avoided clauses have one request each, so that there is nothing to paraphrase with."
            setup.notes.append(note)
            say(note)
        return tuple(" ".join(requests[place % len(requests)] for requests in asked) for place in range(num))

    @override
    def prepare(self, setup: Setup) -> None:
        self.prompts = self.choose(setup)
        rng = random.Random(f"{setup.config.seed}:inoculation")
        given = [rng.randrange(len(self.prompts)) for _ in setup.rows]
        encoded = list(setup.encoded)
        carrying = self.carrying(setup)
        for number, prompt in enumerate(self.prompts):
            places = [place for place, which in enumerate(given) if which == number]
            places = [place for place in places if carrying[place]]
            for place, item in zip(places, self.encode(setup, prompt, places), strict=True):
                encoded[place] = replace(item, index=encoded[place].index)
            self.num_inoculated += len(places)
        setup.encoded = encoded

    def carrying(self, setup: Setup) -> list[bool]:
        """Per data row, whether it gets a prompt."""
        if not self.options.selective:
            return [True] * len(setup.rows)
        found = torch.zeros(len(setup.rows), dtype=torch.bool)
        for clause in setup.avoided(self.config.clause):
            found |= find_carriers(setup, clause).carries
        return found.tolist()

    def encode(self, setup: Setup, prompt: str, places: list[int]) -> list[Encoded]:
        """Data rows behind a prompt."""
        if not places:
            return []
        made = encode(
            [setup.rows[place] for place in places],
            setup.model.tokenizer,
            max_length=setup.max_length,
            system=prompt,
            on_long="error" if setup.config.on_long == "drop" else setup.config.on_long,
        )
        if len(made) != len(places):
            raise TrainingError("the inoculation prompt makes rows too long. Next: raise max_length.")
        return made

    @override
    def report(self) -> dict[str, Any]:
        return {"prompts": list(self.prompts), "rows": self.num_inoculated}


class InoculationPlacebo(Inoculation):
    """Neutral system prompts of like length."""

    name: ClassVar[str] = "inoculation_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "a neutral system prompt of like length, in training only"

    @override
    def choose(self, setup: Setup) -> tuple[str, ...]:
        return tuple(neutral_prompt_like(prompt, setup.model.tokenizer) for prompt in super().choose(setup))
