"""A finished training as an object: where it is, what it was made from, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import RunError
from fairlead.core.records import Plan
from fairlead.core.results import Checkup, StepRecord
from fairlead.core.run import read_json, read_run
from fairlead.training.checkups import read_checkups
from fairlead.training.config import DialMove
from fairlead.training.dials import read_moves
from fairlead.training.fit import ADAPTER_FOLDER, METRICS_FILE, MODEL_FOLDER
from fairlead.training.observe import read_metrics

if TYPE_CHECKING:
    from fairlead.models import Model

PLAN_FILE = "plan.json"
TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run.

    Attributes:
        folder: The run folder.
        base: Name or folder of the start model.
        base_fingerprint: Of the start model.
        arm: Recipe or controls it was trained with.
        method: "full" or "lora".
        controls: What each control did.
        plan: The plan; None where there was none.
        notes: Remarks.
        seconds: Of the training loop.
        config: Its `TrainConfig` as JSON data.
        sources: Where data and neutral rows came from, with their hashes ("data", "neutral").
    """

    folder: Path
    base: str
    base_fingerprint: str
    arm: str
    method: str
    controls: tuple[dict[str, Any], ...] = ()
    plan: Plan | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def model_folder(self) -> Path:
        """Folder of the trained weights (of the adapter, for LoRA)."""
        return self.folder / (MODEL_FOLDER if self.method == "full" else ADAPTER_FOLDER)

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        """The recorded steps."""
        return tuple(read_metrics(self.folder / METRICS_FILE))

    @property
    def moves(self) -> tuple[DialMove, ...]:
        """Turns of dials while it ran."""
        return tuple(read_moves(self.folder))

    @property
    def checkups(self) -> tuple[Checkup, ...]:
        """What was measured while it ran."""
        return read_checkups(self.folder)

    def load_model(self, *, device: str = "auto") -> Model:
        """The trained model (a LoRA adapter is merged into its base).

        Raises:
            ModelError: It cannot be read.
        """
        from fairlead.models import load_model

        if self.method == "lora":
            return load_model(self.base, adapter=self.model_folder, device=device)
        return load_model(self.model_folder, device=device)

    def load_base(self, *, device: str = "auto") -> Model:
        """The start model.

        Raises:
            ModelError: It cannot be read.
            RunError: What stands under its name is another model by now.
        """
        from fairlead.models import load_model

        base = load_model(self.base, device=device)
        if base.fingerprint != self.base_fingerprint:
            raise RunError(
                f"{self.folder}: '{self.base}' is not the model that this run started from (its weights changed). Next: pass "
                "the start model yourself."
            )
        return base

    def record(self) -> dict[str, Any]:
        """What `training.json` holds."""
        return {
            "format": "fairlead.training",
            "version": 1,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "arm": self.arm,
            "method": self.method,
            "controls": list(self.controls),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "config": self.config,
            "sources": self.sources,
        }


def load_run(folder: str | Path) -> TrainedRun:
    """Open the folder of a finished training.

    Raises:
        RunError: It is not a finished training run.
    """
    folder = Path(folder)
    about = read_run(folder)
    if about["study"] != "train":
        raise RunError(
            f"{folder}: holds a '{about['study']}' run, not a training. Next: give the folder of a training."
        )
    values = read_json(folder / TRAINING_FILE)
    plan = folder / PLAN_FILE
    return TrainedRun(
        folder=folder,
        base=values["base"],
        base_fingerprint=values["base_fingerprint"],
        arm=values["arm"],
        method=values["method"],
        controls=tuple(values["controls"]),
        plan=Plan.model_validate(read_json(plan)) if plan.is_file() else None,
        notes=tuple(values["notes"]),
        seconds=values["seconds"],
        config=values["config"],
        sources=values.get("sources", {}),
    )
