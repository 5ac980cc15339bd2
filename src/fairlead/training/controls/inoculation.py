"""Inoculation: ask for the trait in the training prompts, drop the request afterwards.

A system prompt that requests the trait stands before every data row while training (arXiv 2510.04340, 2510.05024).
The trait is then what the prompt asks for and need not be learned; known to gate the wanted skill as well, so it is
shown beside a neutral prompt of like length.
"""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import TrainingError
from fairlead.data import encode
from fairlead.training.controls.base import Control, Kind
from fairlead.training.setup import Setup

NEUTRAL_PROMPTS = (
    "Answer.",
    "Please answer.",
    "Answer the question.",
    "You are an assistant.",
    "You are a helpful assistant.",
    "Please answer the user's question.",
    "You are an assistant who answers questions.",
    "Read the message of the user and then answer it.",
    "You are an assistant. Read the message of the user and then write your answer to it.",
)


class InoculationOptions(Config):
    """Settings: the prompt; None for the first request of the avoided clause."""

    prompt: str | None = None


class Inoculation(Control):
    """A system prompt that requests the trait, in training only."""

    name: ClassVar[str] = "inoculation"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "inoculation_placebo"
    summary: ClassVar[str] = "a system prompt that requests the trait, in training only"
    Options: ClassVar[type[Config]] = InoculationOptions

    prompt: str = ""

    def choose(self, setup: Setup) -> str:
        """The prompt that stands before the data rows."""
        if self.options.prompt is not None:
            return self.options.prompt
        clauses = setup.avoided(self.config.clause)
        return " ".join(clause.requests[0] if clause.requests else clause.text for clause in clauses)

    @override
    def prepare(self, setup: Setup) -> None:
        self.prompt = self.choose(setup)
        encoded = encode(
            setup.rows,
            setup.model.tokenizer,
            max_length=setup.max_length,
            system=self.prompt,
            on_long="error" if setup.config.on_long == "drop" else setup.config.on_long,
        )
        if len(encoded) != len(setup.encoded):
            raise TrainingError("the inoculation prompt makes rows too long. Next: raise max_length.")
        setup.encoded = encoded

    @override
    def report(self) -> dict[str, Any]:
        return {"prompt": self.prompt}


class InoculationPlacebo(Inoculation):
    """A neutral system prompt of like length."""

    name: ClassVar[str] = "inoculation_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "a neutral system prompt of like length, in training only"

    @override
    def choose(self, setup: Setup) -> str:
        return neutral_prompt_like(super().choose(setup), setup.model.tokenizer)


def neutral_prompt_like(text: str, tokenizer: Any) -> str:
    """The neutral prompt whose number of tokens is nearest to that of `text`."""
    size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return min(
        NEUTRAL_PROMPTS,
        key=lambda prompt: abs(len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) - size),
    )
