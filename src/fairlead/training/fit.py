"""One training from start to saved model: prepare the controls, train through TRL, save.

The start model is left as it was: full fine-tuning works on a copy, LoRA takes its adapter off again at the end.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import ConfigError, DictionaryError, RunError, TrainingError
from fairlead.core.progress import say
from fairlead.core.records import Plan
from fairlead.core.results import StepRecord
from fairlead.core.run import atomic_path
from fairlead.data import ChatData, Row, encode
from fairlead.training.adapter import (
    checkpoint_controls,
    checkpoint_step,
    make_trainer,
    quiet_transformers,
    release,
    run_trainer,
    whole_weights,
)
from fairlead.training.batching import Composer, check_packing
from fairlead.training.checkups import CheckupPlan, Checkups
from fairlead.training.combinations import check_combination
from fairlead.training.config import DialMove, TrainConfig
from fairlead.training.controls import make_control
from fairlead.training.dials import Dials, read_moves
from fairlead.training.observe import MetricsFile, PressureObserver, read_metrics
from fairlead.training.processes import is_first, on_first
from fairlead.training.session import Session
from fairlead.training.setup import Setup

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class FitResult:
    """What a training left behind.

    Attributes:
        steps: One record per step.
        controls: Per control its name, kind, placebo and report.
        moves: Turns of dials while it ran.
        notes: Remarks.
        seconds: Of the training loop.
    """

    steps: tuple[StepRecord, ...]
    controls: tuple[dict[str, Any], ...]
    moves: tuple[DialMove, ...]
    notes: tuple[str, ...]
    seconds: float


def fit(
    model: Model,
    data: ChatData,
    plan: Plan | None,
    *,
    config: TrainConfig,
    folder: Path,
    neutral: Sequence[Row] = (),
    dictionary: Dictionary | None = None,
    cache: Path | None = None,
    checkups: CheckupPlan | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a copy of `model` and save it under `folder`.

    Args:
        model: The start model; unchanged afterwards.
        data: What to train on.
        plan: Decisions and spec, for the controls and the observer.
        config: Settings.
        folder: Receives `model/` (or `adapter/`), `metrics.jsonl` and, while it runs, `checkpoints/`.
        neutral: Neutral rows for the anchor.
        dictionary: For observation and for controls that use it.
        cache: Folder for offsets and references; inside `folder` and removed at the end where None.
        checkups: Steps after which the student is measured, and how (`checkups.jsonl`).
        resume: Go on from the last checkpoint in `folder`.

    Raises:
        DataError: The data cannot be encoded.
        ConfigError: Controls that do not go together.
        TrainingError: A control lacks what it needs, or the loss is not finite.
    """
    if not model.is_causal:
        raise TrainingError(f"{model.name} is an encoder; training needs a causal model.")
    setup = prepare(
        model,
        data,
        plan,
        config=config,
        neutral=neutral,
        dictionary=dictionary,
        cache=cache or folder / "cache",
    )
    checkpoints = folder / CHECKPOINTS
    done = on_first(lambda: checkpoint_step(checkpoints)) if resume else 0
    observer = make_observer(model, plan, dictionary, config=config, notes=setup.notes)
    for remark in check_combination(config.controls, use_data=config.use_data):
        setup.notes.append(remark)
        say(remark)
    controls = [make_control(item) for item in config.controls]
    dials = Dials(folder, controls, planned=config.moves, done=done)
    setup.controls, setup.observer, setup.move = controls, observer, dials.move
    for control in controls:
        control.prepare(setup)
    if config.packing:
        check_packing(model.hf, setup.encoded, name=model.name, pad_id=model.pad_id)
    session = Session(
        controls, pad_id=model.pad_id, seed=config.seed, use_data=config.use_data, packing=config.packing
    )
    composer = Composer(setup.encoded, pad_id=model.pad_id, packing=config.packing)
    if done:
        say(f"going on after step {done}")
        session.restore(on_first(lambda: checkpoint_controls(checkpoints)))
    metrics = MetricsFile(folder / METRICS_FILE, keep_steps=done) if is_first() else None
    measured = Checkups(checkups, folder, model, done=done) if checkups is not None else None
    student = copy.deepcopy(model.hf) if config.method == "full" else model.hf

    def on_pre_step(step: int) -> None:
        if observer is not None:
            observer.read(session.state, step)

    def on_step(step: int, seconds: float) -> str:
        state = session.state
        if observer is not None:
            observer.bring_together()
        pressure = dict(observer.latest) if observer is not None else {}
        if metrics is not None:
            metrics.add(
                StepRecord(
                    step=step,
                    loss=state.loss,
                    seconds=seconds,
                    pressure=pressure,
                    kept=dict(observer.latest_kept) if observer is not None else {},
                    parts=dict(state.parts),
                )
            )
        if measured is not None and trainer.model is not None:
            measured.look(step, trainer.model)
        note = f"loss {state.loss:.3f}"
        return note + (f" pressure {sum(pressure.values()):+.4f}" if pressure else "")

    start = time.perf_counter()
    try:
        with ExitStack() as stack:
            if config.method == "lora":
                stack.enter_context(_adapter_off_again(model))
            trainer = make_trainer(
                student,
                model.tokenizer,
                composer,
                session,
                config=config,
                folder=checkpoints,
                on_begin=dials.turn,
                on_pre_step=on_pre_step,
                on_step=on_step,
            )
            if observer is not None:
                stack.enter_context(observer.attached(student))
            trained = run_trainer(trainer, session, resume=bool(done))
            weights = whole_weights(trainer)
            on_first(lambda: save(trained, model, folder, method=config.method, weights=weights))
    except KeyboardInterrupt:
        kept = checkpoint_step(checkpoints)
        say(f"interrupted at step {session.state.step}; repeat the same command to go on after step {kept}.")
        raise
    finally:
        if metrics is not None:
            metrics.close()
    if is_first():
        shutil.rmtree(checkpoints, ignore_errors=True)
        if cache is None:
            shutil.rmtree(folder / "cache", ignore_errors=True)
    steps = on_first(lambda: tuple(read_metrics(folder / METRICS_FILE)))
    if len(steps) < config.steps:
        setup.notes.append(f"stopped by hand after step {len(steps)} of {config.steps}.")
    return FitResult(
        steps=steps,
        moves=on_first(lambda: tuple(read_moves(folder))),
        controls=tuple(
            {"name": c.name, "kind": c.kind, "placebo": c.placebo, "strength": c.strength, **c.report()}
            for c in controls
        ),
        notes=tuple(setup.notes),
        seconds=time.perf_counter() - start,
    )


def prepare(
    model: Model,
    data: ChatData,
    plan: Plan | None,
    *,
    config: TrainConfig,
    neutral: Sequence[Row] = (),
    dictionary: Dictionary | None = None,
    cache: Path | None = None,
) -> Setup:
    """Encode the data and gather what controls may use.

    Raises:
        ConfigError: `max_length` is beyond what the model takes.
        DataError: The data cannot be encoded.
    """
    if config.max_length is not None and config.max_length > model.max_length:
        raise ConfigError(
            f"max_length is {config.max_length}, but {model.name} takes at most {model.max_length} tokens. "
            f"Next: choose at most {model.max_length}, or leave it out."
        )
    encoded = encode(
        data, model.tokenizer, max_length=config.max_length or model.max_length, on_long=config.on_long
    )
    return Setup(
        model=model,
        rows=[item.row for item in encoded],
        encoded=encoded,
        config=config,
        plan=plan,
        neutral=tuple(neutral),
        dictionary=dictionary,
        cache=cache,
    )


def make_observer(
    model: Model, plan: Plan | None, dictionary: Dictionary | None, *, config: TrainConfig, notes: list[str]
) -> PressureObserver | None:
    """The observer of the plan's avoided concepts; None (with a note) where there is nothing to observe with."""
    if not config.observe or plan is None:
        return None
    watched = {concept.id: concept for concept in plan.concepts if concept.latents}
    concepts = [watched[d.concept] for d in plan.avoided() if d.concept in watched]
    kept = [watched[d.concept] for d in plan.kept() if d.concept in watched]
    if not concepts:
        return None
    if dictionary is None:
        notes.append("pressure was not observed: the plan's dictionary is not at hand.")
        return None
    try:
        dictionary.check(model)
    except DictionaryError as error:
        raise TrainingError(f"cannot observe with this plan's dictionary: {error}") from error
    return PressureObserver(dictionary, concepts, kept=kept, every=config.observe_every)


def save(
    trained: Any, model: Model, folder: Path, *, method: str, weights: dict[str, Any] | None = None
) -> Path:
    """Save the trained model (or its adapter) with the tokenizer, all or nothing; `weights` in place of its own.

    Raises:
        RunError: The disk is full or the place cannot be written.
    """
    target = folder / (MODEL_FOLDER if method == "full" else ADAPTER_FOLDER)
    with quiet_transformers(), atomic_path(target) as temporary:
        temporary.mkdir(parents=True)
        try:
            trained.save_pretrained(temporary, **({} if weights is None else {"state_dict": weights}))
            model.tokenizer.save_pretrained(temporary)
        except Exception as error:
            if isinstance(error, OSError) or "SafetensorError" not in type(error).__name__:
                raise
            raise RunError(
                f"{target}: cannot write the weights ({error}). Next: free space and repeat the same command."
            ) from error
    return target


@contextmanager
def _adapter_off_again(model: Model) -> Any:
    """Give the start model its own modules back after a LoRA training."""
    requires = {name: p.requires_grad for name, p in model.hf.named_parameters()}
    try:
        yield
    finally:
        strip_adapter(model.hf)
        release(model.hf)
        for name, parameter in model.hf.named_parameters():
            parameter.requires_grad_(requires.get(name, True))
        model.hf.eval()


def strip_adapter(hf: Any) -> None:
    """Replace PEFT's layers inside a model by the layers they wrap."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(hf.named_modules()):
        if isinstance(module, BaseTunerLayer) and "." in name:
            parent, _, child = name.rpartition(".")
            setattr(hf.get_submodule(parent), child, module.get_base_layer())
    if hasattr(hf, "peft_config"):
        del hf.peft_config
    hf._hf_peft_config_loaded = False
