"""Set-ups that are known to teach hiding, for the study of it alone (METHODS.md, "When does optimising against a probe hide things?").

`unsafe_probe_on_student`: the reward is read from the student's own activations. `unsafe_gradient_through_probe`: the probe's score of the
student's activations is a loss as well. `unsafe_frozen_copy_and_gradient_through_probe`: that loss beside a reward from the frozen copy.
Each has to be named (`setup=...`), and the run says so in its record, its notes and its report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fairlead.core.errors import ConfigError
from fairlead.models.families import unwrap
from fairlead.training.rewards.config import UNSAFE, RewardConfig
from fairlead.training.rewards.reading import Text, readout_on, span_scores
from fairlead.training.student import as_model

if TYPE_CHECKING:
    from fairlead.core.nouns import SpanReadout
    from fairlead.models import Model


class ProbeLoss:
    """The mean P(unsupported) of the rollouts' claims on the student's activations, with its gradient."""

    def __init__(self, start: Model, readout: SpanReadout, weight: float) -> None:
        self.start, self.readout, self.weight = start, readout, weight

    def __call__(self, student: nn.Module, texts: Sequence[Text]) -> Tensor:
        """The weighted loss; 0 where no text makes a claim."""
        having = [text for text in texts if text.claims]
        if not having:
            return torch.zeros((), device=self.start.device)
        with as_model(self.start, unwrap(student)) as model:
            readout = readout_on(self.readout, model)
            return self.weight * span_scores(model, readout, having, grad=True).mean()


def warn_of(config: RewardConfig) -> str | None:
    """What to say about a set-up that is known to hide; None for the default."""
    if not config.setup.startswith(UNSAFE):
        return None
    return (
        f"the set-up '{config.setup}' is known to teach a model to hide from the probe; it is here for studies of that. "
        "Do not use the model for anything else."
    )


def check_setup(config: RewardConfig) -> None:
    """Confirm that the set-up is whole.

    Raises:
        ConfigError: A gradient set-up without a weight.
    """
    if config.has_gradient and not config.probe_loss:
        raise ConfigError(
            f"the set-up '{config.setup}' needs a weight. Next: give probe_loss (1.0, for example), or leave setup out."
        )
