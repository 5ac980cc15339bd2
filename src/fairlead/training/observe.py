"""The observer of a training: pressure on each avoided concept, and one line per step in `metrics.jsonl`.

Pressure is the uptake on the data rows of the batch: minus the sum over positions of <dL/dh, d_f> a_f(h) at the
dictionary's site, summed over the concept's latents, with L the data's loss per token as the student sees it
(controls included). It is read from the activations and gradients of the training step itself, for the avoided
latents only: two thin matrix products more. The readings of a step's micro-batches are summed, those of several processes
averaged (each scales its loss by their number), so that the pressure is that of the whole batch, however it is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fairlead.core.records import Concept
from fairlead.core.results import StepRecord
from fairlead.gradients import PressureGauge
from fairlead.models import watch
from fairlead.training.batching import StepState

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Tap


class PressureObserver:
    """Reads the pressure on concepts from a training step.

    Args:
        dictionary: Where the concepts live.
        concepts: The concepts to watch.
        every: Steps between two readings.
    """

    def __init__(self, dictionary: Dictionary, concepts: Sequence[Concept], *, every: int = 1) -> None:
        self.site, self.every = dictionary.site, every
        self.concepts = tuple(concepts)
        self._gauge = PressureGauge(dictionary, self.concepts)
        self._tap: Tap | None = None
        self.latest: dict[str, float] = {}
        self._step = -1

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
            self._step, self.latest = step, {}
        tap, view = self._tap, state.last
        if tap is None or tap.value is None or tap.grad is None or view is None or step % self.every:
            return
        if tap.value.shape[:2] != view.target_mask.shape:
            return
        real = view.target_mask.flip(1).cumsum(1).flip(1) > 0  # positions up to the last predicted token
        hidden, grad = tap.value[real], tap.grad[real]
        for name, value in self.pressure(hidden, grad).items():
            self.latest[name] = self.latest.get(name, 0.0) + value
        tap.clear()

    def pressure(self, hidden: Tensor, grad: Tensor) -> dict[str, float]:
        """Uptake per concept from activations and gradients `[position, d]`."""
        sums = self._gauge(hidden, grad, num_loss_tokens=1)  # the loss is a mean over tokens already
        return dict(zip([concept.id for concept in self.concepts], sums.tolist(), strict=True))


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
