"""A guard on disk: a probe and the calibration of its threshold, in one folder (`guard.json` and `probe/`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fairlead.core.config import describe_validation
from fairlead.core.errors import ConfigError
from fairlead.core.nouns import Readout, SpanReadout
from fairlead.core.run import read_json, write_json
from fairlead.guard.asking_again import OtherWays, other_systems
from fairlead.guard.calibration import Calibration
from fairlead.guard.guard import Guard
from fairlead.probes import load_probe, load_span_probe, probe_folder
from fairlead.probes.suitable import check_label

if TYPE_CHECKING:
    from fairlead.models import Model

GUARD_FILE = "guard.json"
PROBE_FOLDER = "probe"
FORMAT, VERSION = "fairlead.guard", 1
LOADERS: dict[Any, Any] = {"fairlead.probe": load_probe, "fairlead.span_probe": load_span_probe}


def load_readout(
    folder: str | Path, model: Model, *, label: str | None = None, any_model: bool = False
) -> SpanReadout | Readout:
    """The probe in a folder, whichever kind it is; it must belong to the model (unless `any_model`), and tell "unsupported" or `label`.

    Raises:
        ConfigError: No probe there, a broken one, or one of something that is not unwanted.
        ModelError: It was made for another model.
    """
    folder = probe_folder(folder)
    if not (folder / "probe.json").is_file():
        raise ConfigError(
            f"{folder}: holds no probe (no probe.json). Next: pass the folder of a probe, of `probe fit` or of a guard."
        )
    about = read_json(folder / "probe.json")
    kind = about.get("format") if isinstance(about, dict) else None
    if kind not in LOADERS:
        raise ConfigError(
            f"{folder}: not a probe of a kind that is known here ({kind}). Next: update fairlead."
        )
    probe = LOADERS[kind](folder, model=model, any_model=any_model)
    check_label(probe, label, where=str(folder))
    return probe


def save_guard(
    folder: str | Path, probe: str | Path, calibration: Calibration, model: Model, *, label: str | None = None
) -> Path:
    """Write `guard.json` and a copy of the probe into a folder that exists."""
    folder = Path(folder)
    shutil.copytree(probe_folder(probe), folder / PROBE_FOLDER, dirs_exist_ok=True)
    write_json(
        folder / GUARD_FILE,
        {
            "format": FORMAT,
            "version": VERSION,
            "model_fingerprint": model.fingerprint,
            "segments": "sentences",
            "label": label,
            "calibration": calibration.model_dump(mode="json"),
        },
    )
    return folder


def load_guard(
    folder: str | Path,
    model: Model,
    *,
    threshold: float | None = None,
    label: str | None = None,
    any_model: bool = False,
    other_ways: OtherWays = other_systems,
) -> Guard:
    """A guard of a folder that `save_guard` wrote, or of a probe's folder (without a calibration).

    Args:
        folder: Of the guard or the probe.
        model: The model to guard.
        threshold: In the place of the calibrated one.
        label: What the probe tells, where that is not "unsupported"; a guard that was calibrated with one keeps it.
        any_model: See `Guard`.
        other_ways: See `Guard`.

    Raises:
        ConfigError: Neither is there, it is broken, or its probe tells something else.
        ModelError: Made for another model.
    """
    folder = Path(folder)
    calibration, place = read_calibration(folder), folder
    if calibration is not None:
        label, place = label or read_json(folder / GUARD_FILE).get("label"), folder / PROBE_FOLDER
    readout = load_readout(place, model, label=label, any_model=any_model)
    settings = {"any_model": any_model, "other_ways": other_ways}
    return Guard(model, readout, threshold=threshold, calibration=calibration, **settings)


def read_calibration(folder: str | Path) -> Calibration | None:
    """How the threshold of a guard's folder was found; None for any other folder.

    Raises:
        ConfigError: It is broken, or of an unknown version.
    """
    folder = Path(folder)
    if not (folder / GUARD_FILE).is_file():
        return None
    about = read_json(folder / GUARD_FILE)
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != VERSION:
        raise ConfigError(f"{folder}: not a guard of a version that is known here. Next: update fairlead.")
    try:
        return Calibration(**about["calibration"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: broken guard ({error}). Next: calibrate it again.") from error
    except ValidationError as error:
        raise ConfigError(f"{folder}: {describe_validation(error, 'calibration')}") from error
