"""A finished training by rewards as an object: where it is, what it was made from, what was seen, and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import RunError
from fairlead.core.run import read_json, read_run
from fairlead.training.config import DialMove
from fairlead.training.dials import read_moves
from fairlead.training.fit import ADAPTER_FOLDER, MODEL_FOLDER
from fairlead.training.rewards.config import RewardConfig
from fairlead.training.rewards.fit import RewardStep, read_steps
from fairlead.training.rewards.monitors import Look, read_looks

if TYPE_CHECKING:
    from fairlead.models import Model

REWARD_FILE = "reward.json"
STUDY = "reward"


@dataclass(frozen=True)
class RewardRun:
    """A finished training by rewards.

    Attributes:
        folder: The run folder.
        base: Name or folder of the start model, which was the frozen copy.
        base_fingerprint: Of the start model.
        probe: Where the probe came from.
        frozen_sha256: Of the frozen copy's weights, before and after.
        stopped: Why it ended before its time; "" where it did not.
        notes: Remarks.
        seconds: Of the training.
        config: Its settings.
    """

    folder: Path
    base: str
    base_fingerprint: str
    probe: str = ""
    frozen_sha256: str = ""
    stopped: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    config: RewardConfig = field(default_factory=RewardConfig)

    @property
    def model_folder(self) -> Path:
        """Folder of the trained weights (of the adapter, for LoRA)."""
        return self.folder / (MODEL_FOLDER if self.config.method == "full" else ADAPTER_FOLDER)

    @property
    def steps(self) -> tuple[RewardStep, ...]:
        """The recorded steps."""
        return tuple(read_steps(self.folder))

    @property
    def looks(self) -> tuple[Look, ...]:
        """What the monitors saw."""
        return tuple(read_looks(self.folder))

    @property
    def moves(self) -> tuple[DialMove, ...]:
        """Moves of the controller."""
        return tuple(read_moves(self.folder))

    def load_model(self, *, device: str = "auto") -> Model:
        """The trained model (a LoRA adapter is merged into its base).

        Raises:
            ModelError: It cannot be read.
        """
        from fairlead.models import load_model

        if self.config.method == "lora":
            return load_model(self.base, adapter=self.model_folder, device=device)
        return load_model(self.model_folder, device=device)

    def record(self) -> dict[str, Any]:
        """What `reward.json` holds."""
        return {
            "format": "fairlead.reward",
            "version": 1,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "probe": self.probe,
            "frozen_sha256": self.frozen_sha256,
            "stopped": self.stopped,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "config": self.config.model_dump(mode="json"),
        }


def load_reward_run(folder: str | Path) -> RewardRun:
    """Open the folder of a finished training by rewards.

    Raises:
        RunError: It is none.
    """
    folder = Path(folder)
    about = read_run(folder)
    if about["study"] != STUDY:
        raise RunError(
            f"{folder}: holds a '{about['study']}' run, not a training by rewards. Next: give the folder of `fairlead reward train`."
        )
    values = read_json(folder / REWARD_FILE)
    return RewardRun(
        folder=folder,
        base=values["base"],
        base_fingerprint=values["base_fingerprint"],
        probe=values["probe"],
        frozen_sha256=values["frozen_sha256"],
        stopped=values["stopped"],
        notes=tuple(values["notes"]),
        seconds=values["seconds"],
        config=RewardConfig.make(values["config"]),
    )
