"""Checkups: the suite's measures of the student at chosen steps of a training, `checkups.jsonl`.

They show when a skill or a leak comes, without a training for each length. What is measured is the student as it is at that step, under
the learning-rate schedule of the whole training. Nothing random is drawn and nothing is changed: a training with checkups takes the same
steps as one without.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fairlead.core.errors import ConfigError
from fairlead.core.progress import say
from fairlead.core.results import Checkup
from fairlead.data.suite import Suite
from fairlead.training import processes
from fairlead.training.student import as_model
from fairlead.training.verification import Resolvers, measure_answers, measure_losses

if TYPE_CHECKING:
    from fairlead.models import Model

CHECKUPS_FILE = "checkups.jsonl"


@dataclass(frozen=True)
class CheckupPlan:
    """When to measure, and what.

    Attributes:
        steps: After which steps.
        suite: What to ask and how to check.
        resolvers: Ground truth of an organism, for suites that need it.
    """

    steps: Collection[int]
    suite: Suite
    resolvers: Resolvers = field(default_factory=Resolvers)


class Checkups:
    """Measures the student and appends to the run's file; a resumed run drops what came after its checkpoint."""

    def __init__(self, plan: CheckupPlan, folder: Path, start: Model, *, done: int = 0) -> None:
        self.plan, self.path, self.start = plan, folder / CHECKUPS_FILE, start
        if processes.is_first():
            kept = [one for one in read_checkups(folder) if one.step <= done]
            self.path.write_text("".join(map(_line, kept)), "utf-8")

    def look(self, step: int, student: nn.Module) -> None:
        """Measure after a step that is among the plan's.

        Raises:
            ConfigError: The student is spread over processes, so that none can ask it.
        """
        if step not in self.plan.steps:
            return
        if processes.is_sharded(student):
            raise ConfigError(
                "a sharded student cannot be asked while it trains. Next: leave out --verify-at."
            )
        processes.on_first(lambda: self._measure(step, student))

    def _measure(self, step: int, student: nn.Module) -> None:
        with as_model(self.start, student) as model, torch.random.fork_rng():
            measures, _, _ = measure_answers(model, self.plan.suite, resolvers=self.plan.resolvers)
            measures |= measure_losses(model, self.plan.suite)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(Checkup(step=step, measures=measures)))
        skills = [
            f"{key} {one.value:.2f}" for key, one in measures.items() if key.startswith(("skill", "leak"))
        ]
        say(f"step {step}: {', '.join(skills)}")


def read_checkups(folder: Path) -> tuple[Checkup, ...]:
    """The checkups of a run folder; an unfinished last line is left out, a missing file gives none."""
    found: list[Checkup] = []
    if (folder / CHECKUPS_FILE).is_file():
        for line in (folder / CHECKUPS_FILE).read_text("utf-8").splitlines():
            try:
                found.append(Checkup.model_validate_json(line))
            except ValueError:
                break
    return tuple(found)


def _line(one: Checkup) -> str:
    return json.dumps(one.model_dump(mode="json"), separators=(",", ":")) + "\n"
