"""Settings of a training: the run itself and the controls on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fairlead.core.config import Config


class ControlConfig(Config):
    """One control on a training.

    Attributes:
        name: A registered control (`fairlead.training.control_names()`).
        clause: `Clause.id` of the spec that it serves; None for every avoided clause (or all, as the control says).
        strength: The control's main dial (lambda, weight or coefficient); None for its default.
        options: Its other settings; unknown keys are an error.
        file: File that defines the control, where it is the user's own and not registered.
    """

    name: str
    clause: str | None = None
    strength: float | None = Field(default=None, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)
    file: str | None = None


class DialMove(Config):
    """One turn of a dial during a training.

    Attributes:
        step: Optimizer steps done when it takes effect (0: before the first).
        name: A control of the run (`explain_away`, or `explain_away:avoid.1` where one clause has its own), or "training".
        value: The control's new strength, "off" (0) or "on" (its strength at the start); for the training "pause", "go", "save" or "stop".
        by: The control that made it; empty for a person, an agent or a plan. A replay leaves these to the control.
    """

    step: int = Field(ge=0)
    name: str
    value: Annotated[float, Field(ge=0)] | Literal["off", "on", "pause", "go", "save", "stop"]
    by: str = ""


class TrainConfig(Config):
    """One training run.

    Attributes:
        steps: Optimizer steps.
        batch_size: Data rows in a micro-batch of one process. An optimizer step has batch_size x accumulate x processes of
            them; rows that controls add come on top, their number is that of the whole step.
        lr: Peak learning rate of AdamW.
        method: "full" or "lora".
        controls: What acts on the training, in order.
        use_data: False leaves the data out of the loss (a control: the spec's examples alone).
        seed: Order of the data, draws of extra rows, adapter initialisation, dropout.
        max_length: Longest row in tokens; None for the model's limit.
        on_long: What to do with a longer row.
        warmup_steps: Steps of linear warm-up.
        schedule: Learning-rate schedule after the warm-up.
        weight_decay: Of AdamW.
        max_grad_norm: Gradient clipping.
        accumulate: Micro-batches per optimizer step.
        lora_rank: Rank of the adapter.
        lora_alpha: Scale of the adapter.
        precision: "float32", "bfloat16" (autocast) or "auto" (bfloat16 on a GPU that has it).
        checkpoint_every: Steps between checkpoints from which an interrupted run resumes; 0 for none.
        observe: Record the pressure on avoided concepts.
        observe_every: Steps between two observations.
        gradient_checkpointing: Trade time for memory.
        packing: Lay the rows of a micro-batch end to end instead of padding them: the same losses, less work on ragged rows where
            attention takes packed rows at no cost (flash attention).
        moves: Turns of dials to make at their steps (a replay's; those made while it runs are recorded beside).
    """

    steps: int = Field(default=200, ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=5e-4, gt=0)
    method: Literal["full", "lora"] = "full"
    controls: tuple[ControlConfig, ...] = ()
    use_data: bool = True
    seed: int = Field(default=0, ge=0)
    max_length: int | None = Field(default=None, ge=2)
    on_long: Literal["error", "truncate", "drop"] = "error"
    warmup_steps: int = Field(default=10, ge=0)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    accumulate: int = Field(default=1, ge=1)
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every: int = Field(default=100, ge=0)
    observe: bool = True
    observe_every: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    packing: bool = False
    moves: tuple[DialMove, ...] = ()
