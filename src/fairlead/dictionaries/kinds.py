"""The registry of dictionary kinds: what a kind must offer to the trainer.

A kind is an object with the methods of `Kind`; it lives in a file of its own and registers itself by name. The trainer owns
the loop (scaling, Adam, schedule, dead latents, threshold, checkpoints); a kind owns its parameters, loss and gradients.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fairlead.core.errors import ConfigError
from fairlead.dictionaries.config import DictionaryConfig

Params = dict[str, Tensor]


class StepState(NamedTuple):
    """What a step may know of the run so far.

    Attributes:
        threshold: Moving average of the smallest kept activation; 0 before it starts.
        dead: `[d_dict]` bool: latents that have not fired within the dead window.
        together: Whether other processes hold the rest of the batch; kinds with `trains_together = True` select over all of it.
    """

    threshold: float
    dead: Tensor
    together: bool = False


class StepResult(NamedTuple):
    """What a step found; the numbers may be tensors without dimensions, so that a device is not waited for each by itself.

    Attributes:
        loss: Aux part included.
        grads: One gradient per parameter.
        fired: `[d_dict]` bool: latents active on the batch.
        least: Smallest kept activation.
        squared_error: Sum over the batch of squared reconstruction error.
        variance: Sum over the batch of squared distance to the batch mean.
        num_active: Active (token, latent) pairs.
    """

    loss: float | Tensor
    grads: Params
    fired: Tensor
    least: float | Tensor
    squared_error: float | Tensor
    variance: float | Tensor
    num_active: int | Tensor


class Kind(Protocol):
    """One kind of dictionary; activations `x_ND` come scaled to mean norm `sqrt(d_model)`."""

    def start(self, x_ND: Tensor, config: DictionaryConfig, generator: torch.Generator) -> Params:
        """Initial parameters from the first batch."""
        ...

    def step(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> StepResult:
        """Loss and gradients on a batch."""
        ...

    def constrain(self, params: Params) -> None:
        """Put the parameters back on their constraint set after an update (in place)."""
        ...

    def export(self, params: Params, threshold: float, scale: float) -> Params:
        """Weights of the file layout in the units of the model; `x = scale * h` in training."""
        ...


_KINDS: dict[str, Kind] = {}


def register_kind(name: str, kind: Kind) -> None:
    """Make a kind known to `DictionaryConfig.kind`."""
    _KINDS[name] = kind


def fold_scale(params: Params, threshold: Tensor | float, scale: float) -> Params:
    """Weights trained on `x = scale * h`, for `h`: activations, biases and thresholds shrink by `scale`, the matrices stay.

    Args:
        params: The matrices and `b_enc`, `b_dec`; anything else is left out.
        threshold: One for all latents, or one each.
        scale: What the activations were multiplied by in training.
    """
    found = {name: params[name].clone() for name in ("W_enc", "W_dec", "W_skip") if name in params}
    found |= {name: params[name] / scale for name in ("b_enc", "b_dec")}
    return found | {"threshold": torch.zeros_like(params["b_enc"]) + threshold / scale}


def find_kind(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ConfigError: No such kind; lists those that exist.
    """
    if name not in _KINDS:
        raise ConfigError(
            f"DictionaryConfig.kind: '{name}' is not known. Next: choose one of {', '.join(sorted(_KINDS))}."
        )
    return _KINDS[name]
