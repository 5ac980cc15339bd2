"""The observer of a training: pressure on each avoided and kept concept, and one line per step in `metrics.jsonl`.

Pressure is the uptake on the data rows of the batch: minus the sum over positions of <dL/dh, d_f> a_f(h) at the
dictionary's site, summed over the concept's latents, with L the data's loss per token as the student sees it
(controls included). It is read from the activations and gradients of the training step itself, for these concepts'
latents only: two thin matrix products more. The readings of a step's micro-batches are summed, those of several processes
averaged (each scales its loss by their number), so that the pressure is that of the whole batch, however it is cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fairlead.core.records import Concept
from fairlead.core.results import StepRecord
from fairlead.gradients import PressureGauge
from fairlead.models import watch
from fairlead.training.batching import StepState, StepView
from fairlead.training.processes import mean, num_processes

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Tap


class PressureObserver:
    """Reads the pressure on concepts from a training step.

    Args:
        dictionary: Where the concepts live.
        concepts: The avoided concepts.
        kept: The concepts to keep, watched as well.
        every: Steps between two readings.

    Attributes:
        latest: The last reading of the avoided concepts, by id; empty where the last step was not read.
        latest_kept: The same of the kept ones.
        reaches: What the dial of a control can answer for, by the control's key: of a micro-batch's predicted tokens, those of
            the rows it acts on (`Control.reach`).
        latest_reached: The last reading of the avoided concepts on those rows alone, by the control's key.
        listeners: Called at every reading with the step and the data rows' activations and gradients `[position, d]`.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        concepts: Sequence[Concept],
        *,
        kept: Sequence[Concept] = (),
        every: int = 1,
    ) -> None:
        self.site, self.every = dictionary.site, every
        self.dictionary, self.concepts, self.kept = dictionary, tuple(concepts), tuple(kept)
        self.listeners: list[Callable[[int, Tensor, Tensor], None]] = []
        self._gauge = PressureGauge(dictionary, (*self.concepts, *self.kept))
        self._tap: Tap | None = None
        self.reaches: dict[str, Callable[[StepView], Tensor | None]] = {}
        self.forget()

    def watch(self, concept: Concept, *, kept: bool = False) -> None:
        """Watch one more concept from the next reading on."""
        if kept:
            self.kept = (*self.kept, concept)
        else:
            self.concepts = (*self.concepts, concept)
        self._gauge = PressureGauge(self.dictionary, (*self.concepts, *self.kept))

    def forget(self) -> None:
        """Begin a new reading, whatever its step."""
        self._begin(-1)

    def _begin(self, step: int) -> None:
        self._step = step
        self.latest: dict[str, float] = {}
        self.latest_kept: dict[str, float] = {}
        self.latest_reached: dict[str, dict[str, float]] = {}

    def bring_together(self) -> None:
        """Average the readings of a step over the processes (all must ask)."""
        if num_processes() > 1:
            self.latest, self.latest_kept = mean(self.latest), mean(self.latest_kept)
            # by what may be read, not by what was: a process that read nothing must ask as often
            self.latest_reached = {key: mean(self.latest_reached.get(key, {})) for key in self.reaches}

    @contextmanager
    def attached(self, module: nn.Module) -> Iterator[None]:
        """Watch the student's site for the length of a training."""
        with watch(module, [self.site]) as taps:
            self._tap = taps[str(self.site)]
            try:
                yield
            finally:
                self._tap = None

    @torch.no_grad()
    def read(self, state: StepState, step: int) -> None:
        """Add the reading of the micro-batch whose backward pass has just run to its step's."""
        if step != self._step:
            self._begin(step)
        tap, view = self._tap, state.last
        if tap is None or tap.value is None or tap.grad is None or view is None or step % self.every:
            return
        if tap.value.shape[:2] != view.target_mask.shape:
            return
        real = view.target_mask.flip(1).cumsum(1).flip(1) > 0  # positions up to the last predicted token
        hidden, grad = tap.value[real], tap.grad[real]
        found = self.pressure(hidden, grad)
        for latest, concepts in ((self.latest, self.concepts), (self.latest_kept, self.kept)):
            for concept in concepts:
                latest[concept.id] = latest.get(concept.id, 0.0) + found[concept.id]
        for key, reach in self.reaches.items():
            tokens = reach(view)
            if tokens is None or bool(tokens.all()):
                reached = found
            else:
                within = tokens.to(real.device)[next_target(view.target_mask)[real]]
                reached = self.pressure(hidden[within], grad[within])
            latest = self.latest_reached.setdefault(key, {})
            for concept in self.concepts:
                latest[concept.id] = latest.get(concept.id, 0.0) + reached[concept.id]
        for listen in self.listeners:
            listen(step, hidden, grad)
        tap.clear()

    def pressure(self, hidden: Tensor, grad: Tensor) -> dict[str, float]:
        """Uptake per concept from activations and gradients `[position, d]`."""
        sums = self._gauge(hidden, grad, num_loss_tokens=1)  # the loss is a mean over tokens already
        return dict(zip([concept.id for concept in (*self.concepts, *self.kept)], sums.tolist(), strict=True))


def next_target(target_mask: Tensor) -> Tensor:
    """For each position `[row, seq]` the number of the next predicted token, itself included, among all in row-major order.

    Right up to a row's last predicted token; the number of tokens, where none follows.
    """
    flat = target_mask.flatten().long()
    return (flat.cumsum(0) - flat).view_as(target_mask)


class MetricsFile:
    """`metrics.jsonl`: one `StepRecord` per line; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, *, keep_steps: int = 0) -> None:
        self.path = path
        kept = [record for record in read_metrics(path) if record.step <= keep_steps] if keep_steps else []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (held open over the training)
        for record in kept:
            self._write(record)

    def add(self, record: StepRecord) -> None:
        """Append one step."""
        self._write(record)
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, record: StepRecord) -> None:
        self._file.write(json.dumps(record.model_dump(mode="json"), separators=(",", ":")) + "\n")


def read_metrics(path: Path) -> list[StepRecord]:
    """The steps of a `metrics.jsonl`; an unfinished last line is left out, a missing file gives none."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(StepRecord.model_validate_json(line))
        except ValueError:
            break
    return records
