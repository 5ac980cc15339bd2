"""Replay a training, turns of its dials included, and branch from it.

A replay trains again from the run's own record: the same start model, data, plan, settings and moves at their steps. On the same
machine and versions its losses are the same to the last bit; what differs is said. A branch repeats the run up to a step and
goes on from there with other moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fairlead.core.errors import RunError
from fairlead.core.run import sha256_file, sha256_json
from fairlead.data import ChatData, load_data
from fairlead.studies.train import as_neutral, find_dictionary, train_config
from fairlead.training import DialMove, TrainConfig, TrainedRun, load_run
from fairlead.training.dials import TRAINING

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model


class Replay(NamedTuple):
    """A repeated training beside the first.

    Attributes:
        run: The new run.
        same: Whether all losses are equal.
        first_difference: The first step whose loss differs; None where none does.
        max_difference: Largest difference of two losses.
    """

    run: TrainedRun
    same: bool
    first_difference: int | None
    max_difference: float


def replay(
    run: TrainedRun | str | Path,
    *,
    out: str | Path,
    model: Model | None = None,
    data: ChatData | str | Path | None = None,
    neutral: ChatData | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    overwrite: bool = False,
) -> Replay:
    """Repeat a training and compare the trajectories.

    Args:
        run: A finished training or its folder.
        out: Folder of the new run.
        model: The start model; loaded by its recorded name where None.
        data: The data; loaded from where they were where None.
        neutral: The neutral rows; likewise.
        dictionary: The plan's dictionary; loaded from where the plan says where None.
        overwrite: Replace a finished run in `out`.

    Raises:
        RunError: Model, data, neutral rows, dictionary or the file of a control are not those of the run any more.
    """
    run = run if isinstance(run, TrainedRun) else load_run(run)
    again = _repeat(
        run,
        run.moves,
        out=out,
        model=model,
        data=data,
        neutral=neutral,
        dictionary=dictionary,
        overwrite=overwrite,
    )
    pairs = list(zip(run.steps, again.steps, strict=False))
    gaps = [abs(one.loss - two.loss) for one, two in pairs]
    first = next((one.step for (one, _), gap in zip(pairs, gaps, strict=True) if gap > 0), None)
    return Replay(again, first is None and len(run.steps) == len(again.steps), first, max(gaps, default=0.0))


def branch(
    run: TrainedRun | str | Path,
    *,
    at: int,
    out: str | Path,
    moves: Sequence[DialMove] = (),
    model: Model | None = None,
    data: ChatData | str | Path | None = None,
    neutral: ChatData | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    overwrite: bool = False,
) -> TrainedRun:
    """Repeat a training up to a step and go on with other moves.

    Args:
        run: A finished training or its folder.
        at: Steps to repeat; the run's own moves from there on are dropped, and a stop.
        out: Folder of the new run.
        moves: What happens instead (steps before `at` are an error).
        model: As in `replay`.
        data: As in `replay`.
        neutral: As in `replay`.
        dictionary: As in `replay`.
        overwrite: Replace a finished run in `out`.

    Raises:
        RunError: The run has no such step, or model or data are not those of the run any more.
    """
    run = run if isinstance(run, TrainedRun) else load_run(run)
    steps = TrainConfig.make(run.config).steps
    if not 0 <= at < steps:
        raise RunError(f"{run.folder}: has steps 0 to {steps - 1}, not {at}. Next: choose one of these.")
    early = [move for move in moves if move.step < at]
    if early:
        raise RunError(
            f"the move {early[0].name} {early[0].value} at step {early[0].step} lies before the branch at {at}."
        )
    # a stop ended the run; the branch goes on
    kept = [move for move in run.moves if move.step < at and (move.name, move.value) != (TRAINING, "stop")]
    return _repeat(
        run,
        [*kept, *moves],
        out=out,
        model=model,
        data=data,
        neutral=neutral,
        dictionary=dictionary,
        overwrite=overwrite,
    )


def _repeat(
    run: TrainedRun,
    moves: Sequence[DialMove],
    *,
    out: str | Path,
    model: Model | None,
    data: ChatData | str | Path | None,
    neutral: ChatData | str | Path | None,
    dictionary: Dictionary | str | Path | None,
    overwrite: bool,
) -> TrainedRun:
    model = run.load_base() if model is None else model
    rows = data if isinstance(data, ChatData) else load_data(data or _source(run, "data"))
    _check(run, "data", rows.sha256)
    wanted = run.sources.get("neutral", {}).get("sha256", "")
    if neutral is None and wanted:
        neutral = load_data(_source(run, "neutral"))
    if wanted:
        _check(run, "neutral", sha256_json([row.as_record() for row in as_neutral(neutral)]))
    config = TrainConfig.make({**run.config, "moves": tuple(moves)})
    if "dictionary" in run.sources:
        dictionary = dictionary or _kept_dictionary(run)
        dictionary = find_dictionary(run.plan, dictionary)
        _check(run, "dictionary", dictionary.sha256 if dictionary is not None else "")
    for control in config.controls:
        if (
            control.file is not None and Path(control.file).is_file()
        ):  # a lost one is named by whoever loads it
            _check(run, Path(control.file).name, sha256_file(control.file))
    return train_config(
        model,
        rows,
        run.plan,
        out=out,
        config=config,
        arm=run.arm,
        neutral=neutral,
        dictionary=dictionary,
        overwrite=overwrite,
    )


def _kept_dictionary(run: TrainedRun) -> str | None:
    """The folder from which the run had its dictionary; None where it is gone or was never there."""
    path = run.sources["dictionary"]["path"]
    return path if path and Path(path).is_dir() else None


def _source(run: TrainedRun, name: str) -> str:
    path = run.sources.get(name, {}).get("path", "")
    if not path:
        raise RunError(
            f"{run.folder}: does not say where its {name} rows came from. Next: pass {name}=... yourself."
        )
    return path


def _check(run: TrainedRun, name: str, found: str) -> None:
    recorded = run.sources.get(name, {}).get("sha256", "")
    if recorded and recorded != found:
        what, have = (f"{name} rows", "have") if name in ("data", "neutral") else (name, "has")
        raise RunError(
            f"{run.folder}: its {what} ({run.sources[name]['path'] or 'given in Python'}) {have} changed since, or cannot be found. "
            "Next: restore the file, or pass what it was trained with."
        )
