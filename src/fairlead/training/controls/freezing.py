"""Freezing: only some layers, attention heads, neurons or weights are trained.

Selects: all else keeps the start model's values, to the last bit (`fairlead.training.holding`). What to train is for the user to
say, or for a localisation method. Heads and neurons that are not listed are chosen by a simple one: those are held still that
tell the avoided clause's examples from their counterparts best (difference of their mean activations at the response tokens over
the standard deviation; for a head the root mean square over its dimensions). It finds what shows the trait, which need not be what
learns it. The placebo trains as many, drawn at random, as a selection says something only beside a random one of equal size. With LoRA
layers, heads and neurons are held as exactly, as whole rows and columns of the adapted weights; a mask is refused.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError, ModelError, TrainingError
from fairlead.models import unit_activations, unit_masks, units_of
from fairlead.training.batching import StepState
from fairlead.training.config import ControlConfig
from fairlead.training.controls.base import Control, Kind
from fairlead.training.directions import contrast_rows
from fairlead.training.holding import adapter_masks, hold_entries
from fairlead.training.setup import Setup

Unit = tuple[int, int]
_LAYER = re.compile(r"\.(\d+)\.")  # the first number in a parameter's name is its layer's


class FreezingOptions(Config):
    """Settings.

    Attributes:
        what: What is chosen: "layers", attention "heads", MLP "neurons", or a random "mask" over all weights.
        layers: Layers to train: their numbers, or the "first_half" or "last_half" of all.
        units: Heads or neurons to train, as (layer, number); None to hold those still that tell the avoided clause best.
        share: Share of heads, neurons or weights that is trained, where none are listed.
        outside: Train what is none of these, too (embeddings, norms; beside heads the MLPs); None: not beside layers, but beside heads
            and neurons.
    """

    what: Literal["layers", "heads", "neurons", "mask"] = "layers"
    layers: tuple[int, ...] | Literal["first_half", "last_half"] = "last_half"
    units: tuple[Unit, ...] | None = None
    share: float = Field(default=0.75, gt=0, lt=1)
    outside: bool | None = None


class Freezing(Control):
    """Only what was chosen is trained."""

    name: ClassVar[str] = "freezing"
    kind: ClassVar[Kind] = "selects"
    placebo: ClassVar[str | None] = "freezing_placebo"
    summary: ClassVar[str] = (
        "only chosen layers, heads, neurons or weights are trained, the rest stays as it was"
    )
    Options: ClassVar[type[Config]] = FreezingOptions
    owns: ClassVar[str | None] = "the choice of what is trained"

    def __init__(self, config: ControlConfig) -> None:
        super().__init__(config)
        if self.options.units is not None and self.options.what not in ("heads", "neurons"):
            raise ConfigError(
                f"{self.name}: units are heads or neurons, not {self.options.what}. Next: set what, or leave units out."
            )
        self.chosen: frozenset[Any] = frozenset()
        self.masks: dict[
            nn.Parameter, Tensor
        ] = {}  # of the start model's weights, which LoRA adapts in place
        self.num_trained = 0

    @override
    def prepare(self, setup: Setup) -> None:
        what = self.options.what
        if what == "mask" and setup.config.method == "lora":
            raise ConfigError(
                f"{self.name}: with LoRA rows and columns of weights change as a whole, so that a mask of single weights cannot be held. "
                "Next: what='layers', 'heads' or 'neurons', or method='full'."
            )
        self.seed = setup.config.seed
        if what == "layers":
            self.chosen = self.choose(setup, self._layers(setup), range(setup.model.num_layers))
        elif what != "mask":
            try:
                layers = units_of(setup.model.hf, what)
            except ModelError as error:
                raise ConfigError(f"{self.name}: {error}") from error
            there = [(number, unit) for number, layer in enumerate(layers) for unit in range(layer.num)]
            self.chosen = self.choose(setup, self._units(setup, there), there)
            self.masks = unit_masks(layers, self.chosen) if setup.config.method == "lora" else {}

    def choose(self, setup: Setup, real: frozenset[Any], there: Collection[Any]) -> frozenset[Any]:
        """What to train, given the real choice and all there is."""
        return real

    @override
    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:
        trained: dict[nn.Parameter, Tensor] = {}
        units = {}
        if self.masks:
            units = adapter_masks(module, self.masks)
        elif self.options.what in ("heads", "neurons"):
            units = unit_masks(units_of(module, self.options.what), self.chosen)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                trained[parameter] = units.get(parameter, self._mask(name, parameter))
        self.num_trained = sum(int(mask.sum()) for mask in trained.values())
        if not self.num_trained:
            raise TrainingError(
                f"{self.name}: nothing is left to train. Next: choose other {self.options.what}."
            )
        hold_entries(stack, trained)

    @override
    def report(self) -> dict[str, Any]:
        found = {"what": self.options.what, "num_trained": self.num_trained}
        if self.options.what == "layers":
            return {"layers": sorted(self.chosen), **found}
        return found | (
            {"chosen": sorted(self.chosen)} if len(self.chosen) <= 1024 else {"num": len(self.chosen)}
        )

    def _mask(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Which entries of a parameter that no unit owns are trained."""
        if self.options.what == "mask":
            seed = random.Random(f"{self.seed}:{self.name}:{name}").randrange(1 << 62)
            noise = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed))
            return noise < self.options.share
        layer = _LAYER.search(name)
        if self.options.what == "layers" and layer is not None:
            wanted = int(layer.group(1)) in self.chosen
        else:
            wanted = self.options.what != "layers" if self.options.outside is None else self.options.outside
        return torch.tensor(wanted).expand(parameter.shape)  # takes no memory

    def _layers(self, setup: Setup) -> frozenset[int]:
        total, wanted = setup.model.num_layers, self.options.layers
        half = {"first_half": range(total // 2), "last_half": range(total // 2, total)}
        chosen = frozenset(half[wanted] if isinstance(wanted, str) else wanted)
        if not chosen or not chosen <= set(range(total)):
            raise ConfigError(
                f"freezing: layers {sorted(chosen)} are not layers of {setup.model.name} (0 to {total - 1}). Next: name some of these."
            )
        return chosen

    def _units(self, setup: Setup, there: list[Unit]) -> frozenset[Unit]:
        if self.options.units is not None:
            chosen = frozenset(self.options.units)
            if not chosen or not chosen <= set(there):
                wrong = sorted(chosen - set(there))
                raise ConfigError(
                    f"{self.name}: {setup.model.name} has no {self.options.what} {wrong}; the last is {there[-1]}. "
                    "Next: name (layer, number) pairs, both counted from 0."
                )
            return chosen
        scores = torch.zeros(len(there))
        for clause in setup.avoided(self.config.clause):
            shown, instead, _ = contrast_rows(setup, clause)
            pairs = zip(
                unit_activations(setup.model, setup.encode(shown), self.options.what),
                unit_activations(setup.model, setup.encode(instead), self.options.what),
                strict=True,
            )
            scores = torch.maximum(scores, torch.cat([standardised_difference(a, b) for a, b in pairs]))
        num = max(1, round(self.options.share * len(there)))
        return frozenset(there[place] for place in scores.argsort(stable=True)[:num].tolist())


class FreezingPlacebo(Freezing):
    """As many layers, heads, neurons or weights, drawn at random."""

    name: ClassVar[str] = "freezing_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "as many layers, heads, neurons or weights, drawn at random, are trained"

    @override
    def choose(self, setup: Setup, real: frozenset[Any], there: Collection[Any]) -> frozenset[Any]:
        rng = random.Random(f"{setup.config.seed}:{self.name}")
        return frozenset(rng.sample(sorted(there), len(real)))


def standardised_difference(one: Tensor, other: Tensor) -> Tensor:
    """Difference of mean activations `[token, unit, d]` over the pooled standard deviation, `[unit]` (root mean square over `d`)."""
    spread = ((one.var(0, correction=0) + other.var(0, correction=0)) / 2).sqrt()
    difference = (one.mean(0) - other.mean(0)) / spread.clamp_min(1e-6)
    return difference.square().mean(-1).sqrt()
