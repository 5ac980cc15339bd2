"""The one door to TRL's GRPO: a training by rewards is a run of `GRPOTrainer`.

What is ours: a rollout function and a reward function (both TRL's own interface), a callback, and three overridden methods: telemetry;
`_generate_and_score_completions`, whose advantages `[rollout]` become `[rollout, token]` where claims have rewards of their own (TRL's
loss takes that shape "to support subclasses"); and `compute_loss`, which adds a loss through the probe in the set-ups that say so and is
TRL's otherwise. `tests/training/test_rewards_contract.py` fails loudly if TRL changes under it.

Traps handled here: `beta` is 0 by default and with it no reference exists; with `beta` > 0 TRL loads the reference from
`config._name_or_path`, which is set to a saved copy of the start model; rollouts run in training mode (dropout is switched off);
generation and step are aligned and the order of the questions is laid out beforehand, so that a resumed run draws what an uninterrupted
one draws; the fused head that TRL leaves on the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fairlead.core.errors import MissingDependencyError, RunError, TrainingError
from fairlead.core.progress import Meter
from fairlead.training.adapter import STATE_KEY, last_checkpoint, quiet_transformers, release, shared_settings
from fairlead.training.processes import num_processes
from fairlead.training.rewards.advantages import dense_advantages
from fairlead.training.rewards.config import RewardConfig
from fairlead.training.rewards.rollout import Rollouts
from fairlead.training.rewards.scoring import ProbeReward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig, GRPOTrainer

    from fairlead.training.rewards.hiding import ProbeLoss

OnStep = Callable[[int, dict[str, float]], bool]  # (step, TRL's metrics) -> whether to stop


def make_grpo(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rollouts: Rollouts,
    reward: ProbeReward,
    *,
    config: RewardConfig,
    start: Path,
    folder: Path,
    probe_loss: ProbeLoss | None = None,
    on_step: OnStep | None = None,
) -> GRPOTrainer:
    """A GRPOTrainer whose rollouts and rewards are ours.

    Args:
        student: Trained in place.
        tokenizer: Its tokenizer.
        rollouts: What is asked.
        reward: What it earns.
        config: Settings.
        start: Folder with the start model, from which TRL loads the reference.
        folder: For checkpoints.
        probe_loss: A loss through the probe (set-ups known to hide).
        on_step: Called after each optimizer step; True ends the training.

    Raises:
        TrainingError: TRL refuses the settings.
        MissingDependencyError: vLLM is asked for and not installed.
    """
    import datasets
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState, PrinterCallback
    from trl import GRPOTrainer

    class RewardTrainer(GRPOTrainer):
        """GRPOTrainer with rewards per claim."""

        meter: Meter
        failure: Exception | None = None

        def _send_telemetry(self) -> None:
            return

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: checkpoints are ours."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            advantages, width = output["advantages"], output["completion_ids"].shape[1]
            if config.dense:
                output["advantages"] = dense_advantages(reward.latest, advantages, width=width, config=config)
            elif config.hints:
                hinted = torch.tensor([one.setting.hinted for one in reward.latest], device=advantages.device)
                output["advantages"] = torch.where(hinted, advantages.clamp_min(0), advantages)
            if probe_loss is not None:
                output["fl_row"] = torch.arange(len(reward.latest), device=advantages.device)
            return output

        def compute_loss(
            self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Tensor:
            rows = inputs.pop("fl_row", None)
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if probe_loss is not None and rows is not None:
                texts = [reward.latest[row].text for row in rows.tolist()]
                loss = loss + probe_loss(model, texts) / self.current_gradient_accumulation_steps
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is not finite after step {self.state.global_step}. Next: lower lr, or raise kl."
                )
            return loss

    class Steps(TrainerCallback, ExportableState):
        """Reports each step, and has the controller's state saved with the Trainer's."""

        found: dict[str, float]

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {STATE_KEY: reward.controller.state()}}

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            metrics = {
                name: sum(values) / len(values)
                for name, values in trainer._metrics["train"].items()
                if name in ("kl", "entropy", "reward_std", "frac_reward_zero_std", "step_time") and values
            }
            trainer._metrics["train"].clear()
            stop = on_step(state.global_step, metrics) if on_step is not None else False
            control.should_training_stop = control.should_training_stop or stop
            meter.advance(
                1, f"reward {reward.summary.get('reward', 0.0):+.3f} kl {metrics.get('kl', 0.0):.3f}"
            )

    meter = Meter("rewards", config.steps, "step")
    student.config._name_or_path = str(start)
    data = datasets.Dataset.from_dict(
        {"prompt": rollouts.order(config.steps * config.groups * num_processes())}
    )
    from fairlead.training.adapter import lora_config
    from fairlead.training.config import TrainConfig

    lora = TrainConfig(method="lora", lora_rank=config.lora_rank, lora_alpha=config.lora_alpha)
    with warnings.catch_warnings(), quiet_transformers():
        warnings.filterwarnings("ignore", message=".*rollout_func.*experimental.*")
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
        try:
            trainer = RewardTrainer(
                model=student,
                reward_funcs=[reward],
                args=grpo_config(student, config, folder),
                train_dataset=data,
                processing_class=tokenizer,
                rollout_func=rollouts,
                peft_config=lora_config(lora) if config.method == "lora" else None,
                callbacks=[Steps()],
            )
        except ValueError as error:
            meter.close()
            raise TrainingError(f"TRL refuses these settings: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.meter = meter
    return trainer


def grpo_config(student: PreTrainedModel, config: RewardConfig, folder: Path) -> GRPOConfig:
    """TRL's settings for ours.

    Raises:
        MissingDependencyError: vLLM is asked for and not installed.
    """
    from trl import GRPOConfig

    if config.rollouts == "vllm":
        check_vllm()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
        return GRPOConfig(
            **shared_settings(student, config, folder),
            per_device_train_batch_size=config.groups * config.group_size // config.accumulate,
            steps_per_generation=config.accumulate,
            num_generations=config.group_size,
            num_iterations=1,
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            shuffle_dataset=False,
            beta=config.kl,
            loss_type="dapo",
            scale_rewards="group" if config.scale_advantages else "none",
            disable_dropout=True,
            use_vllm=config.rollouts == "vllm",
            vllm_mode=config.vllm_mode,
        )


def check_vllm() -> None:
    """Confirm that vLLM can be used.

    Raises:
        MissingDependencyError: It is not installed.
    """
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise MissingDependencyError(
            "vllm", extra="vllm", purpose="drawing rollouts with vLLM (rollouts='vllm')"
        )


def run_grpo(trainer: Any, *, resume: bool = False) -> nn.Module:
    """Train to the end and return the student in evaluation mode, without what TRL left on it.

    Args:
        trainer: From `make_grpo`.
        resume: Go on from the last checkpoint in the trainer's folder, if there is one.

    Raises:
        TrainingError: The loss is not finite.
        RunError: A checkpoint cannot be written.
    """
    checkpoint = last_checkpoint(Path(trainer.args.output_dir)) if resume else None
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except OSError as error:
        raise RunError(
            f"{trainer.args.output_dir}: cannot write a checkpoint ({error.strerror or error}). Next: free space, or set "
            "checkpoint_every to 0, and repeat the command: it resumes."
        ) from error
    finally:
        trainer.meter.close()
        release(trainer.model)
    return trainer.accelerator.unwrap_model(trainer.model).eval()


def check_data(config: RewardConfig, num_questions: int) -> None:
    """Confirm that there are enough questions for a step.

    Raises:
        TrainingError: There are fewer than a step has groups.
    """
    need = config.groups * num_processes()
    if num_questions < need:
        raise TrainingError(
            f"a step asks {need} questions, the data hold {num_questions}. Next: give more questions, or fewer groups."
        )
