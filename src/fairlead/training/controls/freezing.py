"""Freezing: only some layers are trained.

Selects: the parameters of all other layers, and those outside the layers (embeddings, head, last norm), keep the start model's
values. Which layers is for the user to say, or for a localisation method. The placebo trains as many layers drawn at random, as a
selection says something only beside a random one of equal size.
"""

from __future__ import annotations

import random
import re
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

from torch import nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError, TrainingError
from fairlead.training.batching import StepState
from fairlead.training.controls.base import Control, Kind
from fairlead.training.setup import Setup

_LAYER = re.compile(r"\.(\d+)\.")  # the first number in a parameter's name is its layer's


class FreezingOptions(Config):
    """Settings.

    Attributes:
        layers: Layers to train: their numbers, or the "first_half" or "last_half" of all.
        outside: Train embeddings, head and norms outside the layers, too.
    """

    layers: tuple[int, ...] | Literal["first_half", "last_half"] = "last_half"
    outside: bool = False


class Freezing(Control):
    """Only chosen layers are trained."""

    name: ClassVar[str] = "freezing"
    kind: ClassVar[Kind] = "selects"
    placebo: ClassVar[str | None] = "freezing_placebo"
    summary: ClassVar[str] = "only chosen layers are trained, the rest keeps the start model's weights"
    Options: ClassVar[type[Config]] = FreezingOptions

    layers: frozenset[int]

    @override
    def prepare(self, setup: Setup) -> None:
        total, wanted = setup.model.num_layers, self.options.layers
        half = {"first_half": range(total // 2), "last_half": range(total // 2, total)}
        chosen = frozenset(half[wanted] if isinstance(wanted, str) else wanted)
        if not chosen or not chosen <= set(range(total)):
            raise ConfigError(
                f"freezing: layers {sorted(chosen)} are not layers of {setup.model.name} (0 to {total - 1}). Next: name some of these."
            )
        self.layers = self.choose(setup, chosen)

    def choose(self, setup: Setup, layers: frozenset[int]) -> frozenset[int]:
        """The layers to train, given the real ones."""
        return layers

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        self.num_trained = 0
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            found = _LAYER.search(name)
            if self.options.outside if found is None else int(found.group(1)) in self.layers:
                self.num_trained += parameter.numel()
                continue
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        if not self.num_trained:
            raise TrainingError("freezing: nothing is left to train. Next: name other layers.")

    @override
    def report(self) -> dict[str, Any]:
        return {"layers": sorted(self.layers), "num_trained": self.num_trained}


class FreezingPlacebo(Freezing):
    """As many layers, drawn at random."""

    name: ClassVar[str] = "freezing_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "as many layers, drawn at random, are trained"

    @override
    def choose(self, setup: Setup, layers: frozenset[int]) -> frozenset[int]:
        rng = random.Random(f"{setup.config.seed}:{self.name}")
        return frozenset(rng.sample(range(setup.model.num_layers), len(layers)))
