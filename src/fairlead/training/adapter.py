"""The one door to TRL: a Fairlead training is a run of `SFTTrainer`.

What is ours: a data set of row places, a collator (`Composer`) and two overridden methods: `compute_loss`, which hands
TRL's own loss through where no control touches it, and `get_batch_samples`, which tells each micro-batch its part of the
step. Everything else (optimizer, schedule, clipping, accumulation, autocast, LoRA, distributed training, checkpoints) is
TRL's and transformers'.
`tests/training/test_adapter_contract.py` fails loudly if TRL changes under it.

Traps handled here: TRL's telemetry (the method is overridden and the environment variable set), `bf16=True` and
gradient checkpointing as defaults, printing of logs to standard output, tokenising the data again, a NaN that the
Trainer would average away, and the patched `forward` that TRL leaves on the model.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fairlead.core.errors import RunError, TrainingError
from fairlead.core.progress import Meter
from fairlead.core.run import read_json
from fairlead.models.families import unwrap
from fairlead.training.batching import Composer, step_parts
from fairlead.training.config import TrainConfig
from fairlead.training.processes import is_sharded, whole_tensor
from fairlead.training.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTTrainer

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

STATE_FILE, STATE_KEY = "trainer_state.json", "fairlead_controls"
OnBegin = Callable[[int], frozenset[str]]  # steps done -> "save", "stop"
OnStep = Callable[[int, float], str]  # (step, seconds) -> note for the progress display


def make_trainer(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    composer: Composer,
    session: Session,
    *,
    config: TrainConfig,
    folder: Path,
    on_begin: OnBegin | None = None,
    on_pre_step: Callable[[int], None] | None = None,
    on_step: OnStep | None = None,
) -> SFTTrainer:
    """An SFTTrainer whose loss is the session's.

    Args:
        hf: The student; trained in place.
        tokenizer: Its tokenizer.
        composer: Makes the batches.
        session: Computes the loss.
        config: Settings.
        folder: For checkpoints.
        on_begin: Called before each optimizer step with the number of steps done; what it returns ("save", "stop") is done after it.
        on_pre_step: Called after the backward pass of each micro-batch, with the number of steps done.
        on_step: Called after each optimizer step.
    """
    import datasets
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState, PrinterCallback
    from trl import SFTTrainer

    class ComposedTrainer(SFTTrainer):
        """SFTTrainer with Fairlead's loss."""

        meter: Meter

        def _send_telemetry(self) -> None:
            return

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            """TRL's micro-batches of an optimizer step, each told which part of it is its own."""
            batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
            places = [batch["fl_places"].tolist() for batch in batches]
            for batch, part in zip(batches, step_parts(places), strict=True):
                batch["fl_part"] = part
            return batches, num_items

        def compute_loss(
            self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if return_outputs or "fl_targets" not in inputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            own = super().compute_loss
            scaled = self.args.average_tokens_across_devices and num_items_in_batch is not None
            return session.loss(
                model,
                inputs,
                num_items=num_items_in_batch,
                plain=lambda batch: own(model, batch, num_items_in_batch=num_items_in_batch),
                accumulate=self.current_gradient_accumulation_steps,
                processes=self.accelerator.num_processes if scaled else 1,
            )

    class Steps(TrainerCallback, ExportableState):
        """Tells the controls of each step, reports it, and has the controls' state saved with the Trainer's."""

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {STATE_KEY: session.controls_state()}}

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            todo = on_begin(state.global_step) if on_begin is not None else frozenset()
            control.should_save = control.should_save or "save" in todo
            control.should_training_stop = control.should_training_stop or "stop" in todo
            self.start = time.perf_counter()
            session.before_step(state.global_step, model)

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.on_pre_optimizer_step(args, state, control)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if on_pre_step is not None:
                on_pre_step(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            session.state.step = state.global_step
            session.end_step()
            if on_step is not None:
                meter.advance(1, on_step(state.global_step, time.perf_counter() - self.start))

    meter = Meter("training", config.steps, "step")
    data = datasets.Dataset.from_dict({"place": list(range(len(composer.data)))})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
        trainer = ComposedTrainer(
            model=hf,
            args=sft_config(hf, config, folder),
            data_collator=composer,
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=lora_config(config) if config.method == "lora" else None,
            callbacks=[Steps()],
        )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and "FULL" in str(plugin.state_dict_type) and config.checkpoint_every:
        raise TrainingError(
            "checkpoints of sharded processes cannot be written as whole weights. Next: set fsdp_state_dict_type to "
            "SHARDED_STATE_DICT in accelerate's settings, or checkpoint_every to 0."
        )
    trainer.remove_callback(PrinterCallback)
    trainer.meter = meter
    return trainer


def shared_settings(model: nn.Module, config: Any, folder: Path) -> dict[str, Any]:
    """What all of TRL's trainers are told, from a `TrainConfig` or a `RewardConfig`; nothing is logged, reported or pushed."""
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    bf16 = config.precision == "bfloat16" or (
        config.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported()
    )
    return {
        "output_dir": str(folder),
        "max_steps": config.steps,
        "gradient_accumulation_steps": config.accumulate,
        "learning_rate": config.lr,
        "lr_scheduler_type": config.schedule if config.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": min(config.warmup_steps, config.steps),
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "save_strategy": "steps" if 0 < config.checkpoint_every < config.steps else "no",
        "save_steps": config.checkpoint_every or 500,
        "save_total_limit": 1,
        "push_to_hub": False,
    }


def sft_config(hf: PreTrainedModel, config: TrainConfig, folder: Path) -> Any:
    """TRL's settings for ours."""
    from trl import SFTConfig

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
        return SFTConfig(
            **shared_settings(hf, config, folder),
            per_device_train_batch_size=config.batch_size,
            weight_decay=config.weight_decay,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
        )


def lora_config(config: TrainConfig) -> Any:
    """A LoRA adapter on all linear layers but the head (arXiv 2106.09685)."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  (peft computes with it as a float)
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def run_trainer(trainer: Any, session: Session, *, resume: bool = False) -> nn.Module:
    """Train to the end and return the (possibly wrapped) student in evaluation mode.

    Args:
        trainer: From `make_trainer`.
        session: The same session.
        resume: Go on from the last checkpoint in the trainer's folder, if there is one.

    Raises:
        TrainingError: The loss is not finite.
        RunError: A checkpoint cannot be written.
    """
    checkpoint = last_checkpoint(Path(trainer.args.output_dir)) if resume else None
    try:
        with session.attached(trainer.model), quiet_transformers():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (TrainingError, KeyboardInterrupt):
        raise
    except OSError as error:
        raise RunError(
            f"{trainer.args.output_dir}: cannot write a checkpoint ({error.strerror or error}). Next: free space, or set "
            "checkpoint_every to 0, and repeat the command: it resumes."
        ) from error
    finally:
        trainer.meter.close()
        release(trainer.model)
    model = trainer.accelerator.unwrap_model(trainer.model)
    return model.eval()


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """The weights brought together, where they are spread over several processes (all must ask); None where they are not."""
    if not is_sharded(trainer.model):
        return None
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {name: whole_tensor(value).cpu() for name, value in weights.items()}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers inside the block (ours is shown instead), no alarm about tied weights on a resume."""
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown, trainer_log = is_progress_bar_enabled(), logging.getLogger("transformers.trainer")
    disable_progress_bar()
    not_tied = _NotAboutTiedWeights()
    trainer_log.addFilter(not_tied)
    try:
        yield
    finally:
        trainer_log.removeFilter(not_tied)
        if shown:
            enable_progress_bar()


class _NotAboutTiedWeights(logging.Filter):
    """Checkpoints leave tied weights out, which the Trainer reports as missing keys although it ties them again."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("There were missing keys in the checkpoint model loaded")


def release(module: nn.Module) -> None:
    """Take TRL's patched `forward` off the model again."""
    unwrap(module).__dict__.pop("forward", None)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder; None where there is none.

    The Trainer writes `trainer_state.json` last: where it is missing or cut short, the process was killed while saving.
    """
    found = [
        (int(path.name.rsplit("-", 1)[1]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.rsplit("-", 1)[1].isdigit()
    ]
    return next((path for _, path in sorted(found, reverse=True) if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(read_json(checkpoint / STATE_FILE))
    except RunError:
        return False


def checkpoint_controls(folder: Path) -> dict[str, Any]:
    """State of the controls in the newest checkpoint (`Session.controls_state`)."""
    path = last_checkpoint(folder)
    saved = {} if path is None else read_json(path / STATE_FILE).get("stateful_callbacks", {})
    found = saved.get("Steps", {})
    return (found[-1] if isinstance(found, list) else found).get("attributes", {}).get(STATE_KEY, {})


def checkpoint_step(folder: Path) -> int:
    """Optimizer steps of the newest checkpoint; 0 where there is none."""
    path = last_checkpoint(folder)
    return 0 if path is None else int(path.name.rsplit("-", 1)[1])


def plain_sft(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Any],
    *,
    pad_id: int,
    config: TrainConfig,
    folder: Path,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Fine-tune a model in place on encoded rows, without controls."""
    session = Session()
    composer = Composer(encoded, pad_id=pad_id)
    trainer = make_trainer(hf, tokenizer, composer, session, config=config, folder=folder, on_step=on_step)
    return run_trainer(trainer, session)
