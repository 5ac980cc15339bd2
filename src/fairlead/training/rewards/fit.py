"""One training by rewards from start to saved model.

The start model is the frozen copy: the student is a copy of it, the probe reads the start model (in the default set-up), and its
hash is taken before and after; a start model that changed is an error, not a remark.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fairlead.core.config import Record
from fairlead.core.errors import ConfigError, TrainingError
from fairlead.core.progress import say
from fairlead.core.run import read_json
from fairlead.data import Encoded
from fairlead.training import processes
from fairlead.training.adapter import STATE_FILE, STATE_KEY, checkpoint_step, last_checkpoint
from fairlead.training.config import DialMove
from fairlead.training.dials import MOVES_FILE, keep_moves, mend, read_moves
from fairlead.training.fit import CHECKPOINTS, save
from fairlead.training.rewards.claims import Question, Splitter, Verifier, split_sentences
from fairlead.training.rewards.config import RewardConfig
from fairlead.training.rewards.fresh import FreshProbe, fresh_probe
from fairlead.training.rewards.grpo import check_data, make_grpo, run_grpo
from fairlead.training.rewards.hiding import ProbeLoss, check_setup, warn_of
from fairlead.training.rewards.monitors import (
    MONITORS_FILE,
    Look,
    Monitor,
    as_line,
    read_looks,
)
from fairlead.training.rewards.rollout import Rollouts
from fairlead.training.rewards.scoring import ProbeReward
from fairlead.training.rewards.stopping import why_stop, why_stop_now
from fairlead.training.student import as_model

if TYPE_CHECKING:
    from torch import nn

    from fairlead.core.nouns import SpanReadout
    from fairlead.models import Model

STEPS_FILE = "rewards.jsonl"
START = "start"


class RewardStep(Record):
    """One optimizer step.

    Attributes:
        step: From 1.
        reward: Mean of the rollouts.
        score: Mean P(unsupported) of their claims, as the reward read it.
        claims: Per rollout.
        plain_claims: Per plain answer; None where the step asked for none (after a check there is often nothing more to claim).
        kl: TRL's estimate, nats per token; None where the KL has no weight.
        entropy: Nats per token.
        retract_lambda: After the step's move.
        outcomes: Rollouts per outcome.
        hints: Rollouts that were hints.
        seconds: Of the step.
    """

    step: int
    reward: float
    score: float | None = None
    claims: float
    plain_claims: float | None = None
    kl: float | None = None
    entropy: float | None = None
    retract_lambda: float
    outcomes: dict[str, int] = Field(default_factory=dict)
    hints: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class RewardFit:
    """What a training by rewards left behind.

    Attributes:
        steps: One record per step.
        looks: What the monitors saw.
        moves: Moves of lambda.
        stopped: Why it ended before its time; "" where it did not.
        frozen_sha256: Of the frozen copy's weights, the same before and after.
        notes: Remarks.
        seconds: Of the training loop.
    """

    steps: tuple[RewardStep, ...]
    looks: tuple[Look, ...]
    moves: tuple[DialMove, ...]
    stopped: str
    frozen_sha256: str
    notes: tuple[str, ...]
    seconds: float


def spread(questions: Sequence[Question], num: int) -> list[Question]:
    """At most `num` of the questions, from all over the list: files of questions are often sorted."""
    step = max(1.0, len(questions) / num) if num else 1.0
    return [questions[int(place * step)] for place in range(min(num, len(questions)))]


def fit_rewards(
    model: Model,
    questions: Sequence[Question],
    readout: SpanReadout,
    *,
    config: RewardConfig,
    folder: Path,
    monitor_questions: Sequence[Question] | None = None,
    splitter: Splitter = split_sentences,
    verifier: Verifier | None = None,
    neutral: Sequence[Encoded] = (),
    fresh: FreshProbe | None = None,
    resume: bool = False,
) -> RewardFit:
    """Train a copy of `model` by rewards and save it under `folder`.

    Args:
        model: The start model, which is the frozen copy; unchanged afterwards.
        questions: What to ask.
        readout: The probe.
        config: Settings.
        folder: Receives `model/` (or `adapter/`), `rewards.jsonl`, `monitors.jsonl`, `moves.jsonl` and, while it runs, `checkpoints/`.
        monitor_questions: What the monitors ask, from all over the list; `questions` where None.
        splitter: Finds claims.
        verifier: For spot checks.
        neutral: Neutral text for the general loss.
        fresh: Fits a fresh probe for the monitors; one of the probe's own kind where None.
        resume: Go on from the last checkpoint in `folder`.

    Raises:
        ConfigError: The set-up is not whole.
        TrainingError: Too few questions, settings that TRL refuses, a loss that is not finite, a frozen copy that changed.
    """
    check_setup(config)
    check_data(config, len(questions))
    before, notes = weights_sha256(model.hf), [note for note in (warn_of(config),) if note]
    for note in notes:
        say(f"warning: {note}")
    checkpoints = folder / CHECKPOINTS
    done = processes.on_first(lambda: checkpoint_step(checkpoints)) if resume else 0
    trainer: Any = None
    rollouts = Rollouts(model, questions, config=config, readout=readout, splitter=splitter)
    reward = ProbeReward(
        rollouts,
        _student_reader(model, lambda: trainer.model) if config.reads_student else (lambda: model),
        config=config,
        readout=readout,
        splitter=splitter,
        on_move=_move_recorder(folder, done),
    )
    if done:
        say(f"going on after step {done}")
        reward.controller.restore(processes.on_first(lambda: _controller_state(checkpoints)))
    monitor = Monitor(
        model,
        readout,
        spread(questions if monitor_questions is None else monitor_questions, config.monitor_prompts),
        splitter=splitter,
        verifier=verifier,
        spot_checks=config.spot_checks,
        neutral=neutral,
        fresh=fresh or fresh_probe(readout, seed=config.seed),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    record, began = _Record(folder, done, monitor, config, reward), time.perf_counter()
    with _frozen(model) as student:
        trainer = make_grpo(
            student,
            model.tokenizer,
            rollouts,
            reward,
            config=config,
            start=_save_start(model, folder),
            folder=checkpoints,
            probe_loss=ProbeLoss(model, readout, config.probe_loss) if config.has_gradient else None,
            on_step=lambda step, metrics: record.step(step, metrics, trainer.model),
        )
        record.begin(trainer.model)
        try:
            trained: Any = run_grpo(trainer, resume=bool(done))
        except KeyboardInterrupt:
            say(f"interrupted; repeat the same command to go on after step {checkpoint_step(checkpoints)}.")
            raise
    trained.config._name_or_path = model.hf.config._name_or_path
    processes.on_first(lambda: save(trained, model, folder, method=config.method))
    if weights_sha256(model.hf) != before:
        raise TrainingError(
            "the frozen copy changed while the student trained, so the rewards are not what they claim. Next: report this as a bug."
        )
    if processes.is_first():
        shutil.rmtree(checkpoints, ignore_errors=True)
        shutil.rmtree(folder / START, ignore_errors=True)
    return RewardFit(
        steps=tuple(processes.on_first(lambda: read_steps(folder))),
        looks=tuple(processes.on_first(lambda: read_looks(folder))),
        moves=tuple(processes.on_first(lambda: read_moves(folder))),
        stopped=record.stopped,
        frozen_sha256=before,
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )


@contextmanager
def _frozen(model: Model) -> Iterator[Any]:
    """A copy of the model to train; the model itself takes no gradient meanwhile."""
    student = copy.deepcopy(model.hf)
    requires = [parameter.requires_grad for parameter in model.hf.parameters()]
    model.hf.requires_grad_(False)
    try:
        yield student
    finally:
        for parameter, value in zip(model.hf.parameters(), requires, strict=True):
            parameter.requires_grad_(value)


class _Record:
    """Writes steps and looks, and says when to stop; a resumed run drops what came after its checkpoint."""

    def __init__(
        self, folder: Path, done: int, monitor: Monitor, config: RewardConfig, reward: ProbeReward
    ) -> None:
        self.folder, self.monitor, self.config, self.reward = folder, monitor, config, reward
        self.done, self.stopped = done, ""
        self.first: Look | None = None
        self.kls: list[float | None] = []
        self.claims: list[float | None] = []
        if processes.is_first():
            kept = [one for one in read_steps(folder) if one.step <= done]
            looks = [one for one in read_looks(folder) if one.step <= done and done]
            (folder / STEPS_FILE).write_text("".join(map(as_line, kept)), "utf-8")
            (folder / MONITORS_FILE).write_text("".join(map(as_line, looks)), "utf-8")
            self.first = looks[0] if looks else None
            self.kls, self.claims = [one.kl for one in kept], [one.plain_claims for one in kept]
        self.clock = time.perf_counter()

    def begin(self, student: nn.Module) -> None:
        """The look before the first step."""
        if not self.done:
            self._look(0, student)
        self.clock = time.perf_counter()

    def step(self, step: int, metrics: dict[str, float], student: nn.Module) -> bool:
        """Record a step; True where the training is to stop."""
        found = self.reward.summary
        if processes.is_first():
            line = RewardStep(
                step=step,
                reward=found["reward"],
                score=_known(found["score"]),
                claims=found["claims"],
                plain_claims=_known(found["plain_claims"]),
                kl=metrics.get("kl"),
                entropy=metrics.get("entropy"),
                retract_lambda=found["retract_lambda"],
                outcomes={
                    name: int(found[name])
                    for name in (
                        "maintained",
                        "corrected",
                        "retracted",
                        "answered",
                        "abstained",
                        "bad_format",
                    )
                },
                hints=int(found["hints"]),
                seconds=time.perf_counter() - self.clock,
            )
            with open(self.folder / STEPS_FILE, "a", encoding="utf-8") as file:
                file.write(as_line(line))
        every = self.config.monitor_every
        self.kls.append(metrics.get("kl"))
        self.claims.append(_known(found["plain_claims"]))
        early = processes.on_first(lambda: why_stop_now(self.kls, self.claims, self.config.stop))
        if early or step == self.config.steps or (every and step % every == 0):
            self._look(step, student)
        if early and not self.stopped:
            self.stopped = early
            say(f"stopped after step {step}: {early}")
        self.clock = time.perf_counter()
        return bool(self.stopped)

    def _look(self, step: int, student: nn.Module) -> None:
        if processes.is_sharded(student):
            raise ConfigError(
                "a sharded student cannot be asked while it trains. Next: use plain data parallelism (no FSDP)."
            )
        self.stopped = processes.on_first(lambda: self._measure(step, student)) or ""

    def _measure(self, step: int, student: nn.Module) -> str | None:
        with as_model(self.monitor.frozen, student) as model:
            look = self.monitor.look(model, step)
        with open(self.folder / MONITORS_FILE, "a", encoding="utf-8") as file:
            file.write(as_line(look))
        self.first = self.first or look
        reason = why_stop(look, self.first, self.config.stop)
        say(describe_look(look))
        if reason:
            say(f"stopped after step {step}: {reason}")
        return reason


def _known(value: float) -> float | None:
    return None if value != value else value


def describe_look(look: Look) -> str:
    """A look in one line."""
    parts = [f"step {look.step}"]
    for name, value in (
        ("unsupported", look.unsupported),
        ("frozen", look.frozen_score),
        ("student", look.student_score),
        ("claims", look.claims),
        ("abstained", look.abstained),
        ("kl", look.kl),
        ("neutral loss", look.neutral_loss),
    ):
        if value is not None:
            parts.append(f"{name} {value:.3f}")
    return ", ".join(parts)


def weights_sha256(hf: Any) -> str:
    """SHA-256 of all parameters and buffers, every byte."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_steps(folder: Path) -> list[RewardStep]:
    """The steps of a run folder; an unfinished last line is left out, a missing file gives none."""
    found: list[RewardStep] = []
    if (folder / STEPS_FILE).is_file():
        for line in (folder / STEPS_FILE).read_text("utf-8").splitlines():
            try:
                found.append(RewardStep.model_validate_json(line))
            except ValueError:
                break
    return found


def _save_start(model: Model, folder: Path) -> Path:
    """The start model on disk, from which TRL loads its reference."""
    target = folder / START
    processes.on_first(lambda: target if target.is_dir() else model.save(target))
    return target


def _student_reader(start: Model, student: Callable[[], nn.Module]) -> Callable[[], Model]:
    def read() -> Model:
        with as_model(start, student()) as model:
            return model

    return read


def _move_recorder(folder: Path, done: int) -> Callable[[int, float], None]:
    path = folder / MOVES_FILE
    if processes.is_first():
        mend(path)
        if path.is_file():
            keep_moves(path, lambda move: move["step"] < done)

    def record(step: int, value: float) -> None:
        if processes.is_first():
            move = DialMove(step=step, name="retract_lambda", value=value, by="mix")
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(move.model_dump(mode="json")) + "\n")

    return record


def _controller_state(checkpoints: Path) -> dict[str, Any]:
    path = last_checkpoint(checkpoints)
    saved = (
        {} if path is None else read_json(path / STATE_FILE).get("stateful_callbacks", {}).get("Steps", {})
    )
    return (saved[-1] if isinstance(saved, list) else saved).get("attributes", {}).get(STATE_KEY, {})
