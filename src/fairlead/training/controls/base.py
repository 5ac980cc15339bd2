"""The interface of a control: what it may do to a training, and when.

A control declares whether it `shapes` the landscape (supplies or explains away what must not be learned), `blocks` the gradient or
`selects` what is trained, and names its placebo: the same machinery without the content, beside which its effect is reported.

In order: `prepare` (once, with the frozen start model: change rows, compute tables, bring a pool of rows), `hooks` (for the
whole training: site hooks on the student), and per optimizer step `before_step`, per
micro-batch `adjust_logits` and `token_weights` (data rows only) and `pool_loss` (its own rows).
Whatever a control does ends with the training: the saved model has none of it.
"""

from __future__ import annotations

from abc import ABC
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError
from fairlead.core.progress import say
from fairlead.training.config import ControlConfig

if TYPE_CHECKING:
    from fairlead.training.batching import RowPool, StepState, StepView
    from fairlead.training.setup import Setup

Kind = Literal["shapes", "blocks", "selects"]
ACCOUNT = "the account of the trait"  # what owners of it supply or explain away, the weights need not learn


class NoOptions(Config):
    """A control without further settings."""


class Control(ABC):
    """One actuator on a training.

    Attributes:
        name: Its name in the registry.
        kind: "shapes", "blocks" or "selects".
        placebo: Name of the control or recipe that is the same without the content; None where it is itself one.
        summary: One sentence.
        owns: What no second control of the same clause may own beside it (`training.combinations`); None for nothing.
        acts_on_data: Whether it does nothing but change what the data rows teach.
        Options: Settings beyond `strength`.
        default_strength: Used where `strength` is None; None where the control has no dial.
        relieves: Whether a higher strength means less pressure on the avoided concepts: what a feedback controller may turn.
        strength: The dial as resolved.
        options: The settings as resolved.
        pool: Rows it adds to every batch; set in `prepare`.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = ""
    owns: ClassVar[str | None] = None
    acts_on_data: ClassVar[bool] = False
    Options: ClassVar[type[Config]] = NoOptions
    default_strength: ClassVar[float | None] = None
    relieves: ClassVar[bool] = False

    def __init__(self, config: ControlConfig) -> None:
        self.config = config
        self.options: Any = self.read_options(config.options)
        if config.strength is not None and self.default_strength is None:
            say(f"{self.name}: has no strength; {config.strength} is ignored.")
        self.strength = self.start
        self.pool: RowPool | None = None

    @classmethod
    def read_options(cls, values: dict[str, Any]) -> Config:
        """The options from a mapping.

        Raises:
            ConfigError: It has no such option (lists those there are), or a value is out of range.
        """
        known = cls.Options.model_fields
        if unknown := sorted(set(values) - set(known)):
            has = f"use one of {', '.join(known)}" if known else "leave it out, it has no options"
            raise ConfigError(f"{cls.name} has no option '{unknown[0]}'. Next: {has}.")
        return cls.Options.make(values)

    @property
    def start(self) -> float | None:
        """The strength at the start of the training; None where it has no dial."""
        return self.default_strength if self.config.strength is None else self.config.strength

    @property
    def key(self) -> str:
        """What its dial goes by: its name, with the clause where it serves one."""
        return self.name if self.config.clause is None else f"{self.name}:{self.config.clause}"

    @property
    def dial(self) -> float:
        """The strength of a control that has one; read it at every step, it may be turned while the training runs."""
        assert self.strength is not None
        return self.strength

    def turn(self, value: float | str) -> None:
        """Turn the dial: a strength, "off" (0) or "on" (as at the start).

        Raises:
            ConfigError: The control has no dial, or the value is none of these.
        """
        if self.default_strength is None:
            raise ConfigError(
                f"{self.name} has no dial: it has no strength that could be turned. Next: start another run."
            )
        if isinstance(value, str) and value not in ("on", "off"):
            raise ConfigError(f"{self.name} takes a strength, 'on' or 'off', not '{value}'.")
        self.strength = {"on": self.start, "off": 0.0}[value] if isinstance(value, str) else float(value)

    def prepare(self, setup: Setup) -> None:  # noqa: B027 (a control need not prepare)
        """Look at model, rows and spec; change `setup.encoded`, set `self.pool`, compute tables."""

    def hooks(self, stack: ExitStack, module: nn.Module, state: StepState) -> None:  # noqa: B027
        """Place site hooks on the student; they act only where `is_data_forward` holds and gradients are on."""

    def adjust_logits(
        self, logits: Float[Tensor, "token vocab"], view: StepView
    ) -> Float[Tensor, "token vocab"] | None:
        """The logits that the loss on data rows sees; None to leave them."""
        return None

    def reach(self, view: StepView) -> Bool[Tensor, " token"] | None:
        """Which of the data rows' predicted tokens belong to rows it acts on, in the order of `view.targets`; None for all.

        Its dial can answer for the pressure of these rows only.
        """
        return None

    def token_weights(self, view: StepView) -> Float[Tensor, " token"] | None:
        """Weights of the data rows' predicted tokens in the loss, in the order of `view.targets`; None for 1 each.

        The weighted sum is divided by the number of *all* data tokens of the step: what is left pulls as it does in the plain arm.
        """
        return None

    def pool_loss(self, logits: Float[Tensor, "token vocab"], targets: Tensor, rows: list[int]) -> Tensor:
        """Weighted loss on its own rows (a scalar)."""
        raise TypeError(f"control '{self.name}' brings rows of its own and must define pool_loss")

    def before_step(self, step: int, student: nn.Module) -> None:  # noqa: B027 (most controls act in the loss alone)
        """Called before every optimizer step with the number of steps done; may change the pool's rows."""

    def learn(self, setup: Setup, clause: str) -> None:  # noqa: B027
        """Called when the judge in the loop has found a concept to avoid for a clause; `setup.plan` has the decision."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of it, as JSON data; what `prepare` computes anew is not part of it."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take over what `state` returned, after `prepare`."""

    @property
    def touches_logits(self) -> bool:
        """Whether it overrides `adjust_logits`."""
        return type(self).adjust_logits is not Control.adjust_logits

    @property
    def weighs_tokens(self) -> bool:
        """Whether it overrides `token_weights`."""
        return type(self).token_weights is not Control.token_weights

    def report(self) -> dict[str, Any]:
        """What it did, as JSON data for the run."""
        return {}


def is_data_forward(hidden: Tensor, state: StepState) -> bool:
    """Whether a value at a site belongs to the data rows of the running training step."""
    return state.view is not None and hidden.shape[:2] == state.view.target_mask.shape
