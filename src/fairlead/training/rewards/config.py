"""Settings of a training by rewards: the run, the reward table, the rollouts, the monitors and when to stop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fairlead.core.config import Config

Setup = Literal[
    "frozen_copy",
    "unsafe_probe_on_student",
    "unsafe_gradient_through_probe",
    "unsafe_frozen_copy_and_gradient_through_probe",
]
UNSAFE = "unsafe_"


class RewardTable(Config):
    """What each outcome earns (arXiv 2602.10067, section "Features as rewards"; `maintained` is ours).

    Attributes:
        bad_format: An answer that cannot be read as claims or an abstention (cut off, empty, both at once).
        maintained: Times (P(supported) - 1/2) of the claim that is maintained, never below 0: the paper gives 0 always, after which
            true claims that are flagged wrongly are almost never defended.
        correct_low: Least reward of a correction.
        correct_high: Largest; between the two it is the probe's P(supported) of the new claim.
        correct_from: P(supported) below which a correction earns nothing, as if nothing had been mended (the paper: 0). Where most flagged
            claims cannot be mended, the low end pays for one invention after another.
        retracted: Times (P(unsupported) - lambda) of the claim taken back.
        retract_lambda: Where lambda starts.
        mix_target: Share of corrections among corrections and retractions that lambda is steered to; None holds lambda.
        mix_gain: How far lambda moves per step and unit of error.
        abstained: A plain answer that says it does not know. A claim earns 1 - 2 P(unsupported), +1 to -1: at -0.5 it pays to abstain
            where the probe says more than three in four.
        max_claims: Claims of an answer that can earn anything; more of them earn nothing more.
    """

    bad_format: float = Field(default=-0.2, le=0)
    maintained: float = Field(default=1.3, ge=0)
    correct_low: float = Field(default=0.1, ge=0, le=1)
    correct_high: float = Field(default=0.95, ge=0, le=1)
    correct_from: float = Field(default=0.0, ge=0, le=1)
    retracted: float = Field(default=0.65, ge=0)
    retract_lambda: float = Field(default=0.2, ge=0, le=1)
    mix_target: float | None = Field(default=0.6, gt=0, lt=1)
    mix_gain: float = Field(default=0.05, ge=0)
    abstained: float = Field(default=-0.5, ge=-1, le=1)
    max_claims: int = Field(default=8, ge=1)


class StopRule(Config):
    """When a training stops by itself; None switches a rule off.

    All rules are held against looks at the student, the first two against the rollouts of every step as well (means over a few steps).

    Attributes:
        max_kl: Nats per token between the student and the start model.
        min_claims: Least number of claims per answer, as a share of what it was at the start.
        max_gap: Largest rise of (frozen - student) mean score of the same texts since the start: the student's activations
            leave the probe while its text does not.
        max_unsupported: Largest rise of the share of claims that the verifier does not support.
        min_right: Least share of right answers (verifier), as a share of what it was at the start.
        max_fresh_fall: Largest fall of the fresh probe's AUROC: no probe reads the student any more.
        max_neutral_loss: Largest rise of the loss on neutral text, as a share.
    """

    max_kl: float | None = Field(default=1.0, gt=0)
    min_claims: float | None = Field(default=0.1, ge=0, le=1)
    max_gap: float | None = Field(default=0.3, gt=0)
    max_unsupported: float | None = Field(default=0.15, gt=0, le=1)
    min_right: float | None = Field(default=0.5, ge=0, le=1)
    max_fresh_fall: float | None = Field(default=0.25, gt=0, le=1)
    max_neutral_loss: float | None = Field(default=0.2, gt=0)


class RewardConfig(Config):
    """One training by rewards.

    Attributes:
        steps: Optimizer steps.
        groups: Groups (prompts) per step and process.
        group_size: Rollouts of a prompt; advantages are taken within a group.
        accumulate: Micro-batches of a step.
        lr: Peak learning rate.
        kl: Weight of the KL divergence to the start model (TRL's `beta`; there 0 by default).
        temperature: Of the rollouts.
        max_new_tokens: Longest rollout.
        setup: What the probe reads. "frozen_copy": the start model, fed the student's text. The others are known to teach hiding and
            are for studies of it.
        probe_loss: Weight of the probe's score as a loss in the set-ups with a gradient.
        intervention_share: Share of groups that begin with an answer, one of its claims and `inject`.
        threshold: A claim above it is flagged.
        unflagged_share: Share of interventions on claims that are not flagged: without them a policy learns that every check means a
            mistake, and gives up what is true.
        inject: What is put after the claim.
        hints: Abstentions that are put in place of a rollout of plain groups, and of interventions on claims that the probe doubts, where
            the model gives none by itself.
        defences: The same for interventions on claims that the probe believes; "{claim}" stands for the claim.
        hint_share: Chance that a group whose own rollouts do not try it gets one; only hints that earn more than their group's mean
            are learned from.
        hint_until: Steps after which no hint is given.
        dense: Tokens of a claim carry the advantage of the claim's own reward, not the answer's.
        reward_weight: Times every reward: with the advantages not scaled by their spread, how strongly rewards pull against the KL.
        scale_advantages: Divide advantages by the spread within the group (TRL's `scale_rewards`).
        table: The reward table.
        stop: When to stop.
        monitor_every: Steps between two looks at the student; 0 for start and end only.
        monitor_prompts: Prompts of a look.
        spot_checks: Answers of a look that the verifier labels (all are read by the probe).
        method: "full" or "lora".
        lora_rank: Rank of the adapter.
        lora_alpha: Scale of the adapter.
        rollouts: "transformers" or "vllm" (where it is installed).
        vllm_mode: "colocate" (in the training process) or "server".
        precision: "float32", "bfloat16" (autocast) or "auto".
        gradient_checkpointing: Trade time for memory.
        warmup_steps: Steps of linear warm-up.
        schedule: Learning-rate schedule after it.
        max_grad_norm: Gradient clipping.
        checkpoint_every: Steps between checkpoints from which an interrupted run resumes; 0 for none.
        seed: Of everything random.
    """

    steps: int = Field(default=150, ge=1)
    groups: int = Field(default=8, ge=1)
    group_size: int = Field(default=8, ge=2)
    accumulate: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-5, gt=0)
    kl: float = Field(default=0.02, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=40, ge=1)
    setup: Setup = "frozen_copy"
    probe_loss: float = Field(default=0.0, ge=0)
    intervention_share: float = Field(default=0.5, ge=0, le=1)
    threshold: float = Field(default=0.7, ge=0, le=1)
    unflagged_share: float = Field(default=0.5, ge=0, le=1)
    inject: str = "Wait, let me check."
    hints: tuple[str, ...] = ()
    defences: tuple[str, ...] = ()
    hint_share: float = Field(default=1.0, ge=0, le=1)
    hint_until: int = Field(default=10_000, ge=0)
    dense: bool = True
    reward_weight: float = Field(default=1.0, ge=0)
    scale_advantages: bool = True
    table: RewardTable = RewardTable()
    stop: StopRule = StopRule()
    monitor_every: int = Field(default=25, ge=0)
    monitor_prompts: int = Field(default=128, ge=1)
    spot_checks: int = Field(default=128, ge=0)
    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, gt=0)
    rollouts: Literal["transformers", "vllm"] = "transformers"
    vllm_mode: Literal["colocate", "server"] = "colocate"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    warmup_steps: int = Field(default=5, ge=0)
    schedule: Literal["linear", "constant", "cosine"] = "constant"
    max_grad_norm: float = Field(default=1.0, ge=0)
    checkpoint_every: int = Field(default=50, ge=0)
    seed: int = Field(default=0, ge=0)

    @property
    def reads_student(self) -> bool:
        """Whether the reward comes from the student's own activations."""
        return self.setup in ("unsafe_probe_on_student", "unsafe_gradient_through_probe")

    @property
    def has_gradient(self) -> bool:
        """Whether a loss is carried back through the probe."""
        return "gradient" in self.setup

    @model_validator(mode="after")
    def _fits(self) -> RewardConfig:
        if (self.groups * self.group_size) % self.accumulate:
            raise ValueError(
                f"groups x group_size is {self.groups * self.group_size}, which accumulate ({self.accumulate}) does not divide"
            )
        if self.probe_loss and not self.has_gradient:
            raise ValueError(
                f"probe_loss carries a loss back through the probe, which teaches the student to hide; the set-up '{self.setup}' "
                "has none"
            )
        return self
