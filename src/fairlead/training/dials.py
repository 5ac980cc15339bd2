"""Live dials: a running training reads turns of its dials from its folder and records each with the step it took effect.

Whoever turns a dial (`request_move`: the command line, a page, an agent) appends a line to `dial_requests.jsonl`. Before
every step the training reads what is new, makes the move and writes it to `moves.jsonl` with the number of steps done. A
resumed run makes the recorded moves again at their steps; a replay is given them as `TrainConfig.moves`. Of several processes that
train together the first reads and records; all make the same moves.

Moves of controls change what is learned; of the moves of the training itself only "stop" does. A control may turn
another's dial itself (`Dials.move`; the feedback controller does): its moves are recorded with its name, and a resumed run or a
replay leaves them to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from fairlead.core.config import describe_validation
from fairlead.core.errors import ConfigError, RunError
from fairlead.core.progress import say
from fairlead.core.run import RUN_FILE, atomic_path, part_path, read_json
from fairlead.training.config import ControlConfig, DialMove
from fairlead.training.controls import control_class
from fairlead.training.controls.base import Control
from fairlead.training.processes import is_first, on_first

REQUESTS_FILE = "dial_requests.jsonl"
MOVES_FILE = "moves.jsonl"
TRAINING = "training"
TRAINING_VALUES = ("pause", "go", "save", "stop")
LOOK_EVERY = 0.2  # seconds between two looks for requests while the training is paused


class Dials:
    """The dials of one training at work.

    Args:
        folder: The run folder.
        controls: The training's controls.
        planned: Moves to make at their steps.
        done: Optimizer steps that a resumed run has behind it; the moves up to there are made at once.

    Raises:
        ConfigError: A planned move names no dial of this training.
    """

    def __init__(
        self, folder: Path, controls: Sequence[Control], *, planned: Sequence[DialMove] = (), done: int = 0
    ) -> None:
        self.folder, self.controls = folder, tuple(controls)
        turned = [control for control in self.controls if control.default_strength is not None]
        names = {TRAINING, *(name for control in turned for name in (control.key, control.name))}
        planned = [move for move in planned if not move.by]
        for move in planned:
            if move.name not in names:
                raise ConfigError(
                    f"this training has no dial '{move.name}'. Next: use one of {', '.join(sorted(names))}."
                )
        if is_first():
            mend(folder / MOVES_FILE)
            keep_moves(folder / MOVES_FILE, lambda move: not move.get("by") or move["step"] < done)
        recorded = on_first(lambda: read_moves(folder))
        self.num_read = on_first(
            lambda: 1 + max((line.get("request", -1) for line in _lines(folder / MOVES_FILE)), default=-1)
        )
        known = recorded or list(planned)
        for move in known:
            if move.step < done and move.name != TRAINING:
                self.make(move)
        self.ahead = sorted((move for move in known if move.step >= done), key=lambda move: move.step)
        if not recorded and planned:
            for move in planned:
                self._record(move, None)

    def turn(self, step: int, *, pause: Callable[[float], None] = time.sleep) -> frozenset[str]:
        """Make the moves that are due before step `step` + 1; returns what the training itself has to do: "save", "stop"."""
        todo = set()
        while self.ahead and self.ahead[0].step <= step:
            todo |= self.make(self.ahead.pop(0))
        paused = False
        while True:
            for place, request in on_first(self._requests):
                try:
                    move = DialMove.make(request, step=step)
                    todo |= self.make(move)
                except ConfigError as error:
                    say(f"dial: {error}")
                    continue
                finally:
                    self.num_read = place + 1
                self._record(move, place)
                paused = {"pause": True, "go": False, "stop": False}.get(str(move.value), paused)
            if not paused:
                return frozenset(todo)
            pause(LOOK_EVERY)

    def make(self, move: DialMove) -> set[str]:
        """Make one move."""
        if move.name == TRAINING:
            return {str(move.value)} & {"save", "stop"}
        meant = [control for control in self.controls if move.name in (control.key, control.name)]
        if not meant:
            raise ConfigError(f"this training has no control '{move.name}'.")
        for control in meant:
            control.turn(move.value)
        if not move.by:
            say(f"dial: {move.name} {move.value} after step {move.step}")
        return set()

    def move(self, step: int, name: str, value: float, by: str) -> None:
        """Turn a dial for the control `by`, after step `step`, and record it."""
        made = DialMove(step=step, name=name, value=value, by=by)
        self.make(made)
        self._record(made, None)

    def _requests(self) -> list[tuple[int, dict[str, Any]]]:
        path = self.folder / REQUESTS_FILE
        if not path.is_file():
            return []
        return [(place, line) for place, line in enumerate(_lines(path)) if place >= self.num_read]

    def _record(self, move: DialMove, request: int | None) -> None:
        if not is_first():
            return
        line = move.model_dump(mode="json", exclude_defaults=True) | (
            {} if request is None else {"request": request}
        )
        with open(self.folder / MOVES_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_moves(folder: Path) -> list[DialMove]:
    """The moves made in a run, in their order."""
    return [
        DialMove.make({key: value for key, value in line.items() if key != "request"})
        for line in _lines(folder / MOVES_FILE)
    ]


def request_move(run: str | Path, name: str, value: str) -> DialMove:
    """Ask a running training to turn a dial; it does so before its next step.

    Args:
        run: The run folder as given to the training (not its `.part` folder).
        name: A control of the run, or "training".
        value: A strength, "on" or "off"; for the training "pause", "go", "save" or "stop".

    Returns:
        The request (its step is 0: the training records the step).

    Raises:
        RunError: No training is under way there.
        ConfigError: It has no such dial, or the value is none.
    """
    folder = unfinished(run)
    names = dial_names(folder)
    if name not in names:
        raise ConfigError(f"{folder}: has no dial '{name}'. Next: use one of {', '.join(names)}.")
    wanted: float | str = value
    if value not in ("on", "off", *TRAINING_VALUES):
        try:
            wanted = float(value)
        except ValueError:
            raise ConfigError(f"'{value}' is no value of a dial. Next: give a number, on or off.") from None
    if (name == TRAINING) != (wanted in TRAINING_VALUES):
        allowed = ", ".join(TRAINING_VALUES) if name == TRAINING else "a number, on or off"
        raise ConfigError(f"'{value}' is no value of {name}. Next: give {allowed}.")
    try:
        move = DialMove(step=0, name=name, value=wanted)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(describe_validation(error, name)) from error
    path = folder / REQUESTS_FILE
    with FileLock(str(path) + ".lock"), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "value": move.value}) + "\n")
    return move


def unfinished(run: str | Path) -> Path:
    """The folder of a training that is under way.

    Raises:
        RunError: There is none, or it is finished.
    """
    final = Path(run).resolve()
    folder = part_path(final)
    if not (folder / RUN_FILE).is_file():
        state = "is finished" if (final / RUN_FILE).is_file() else "is no run"
        raise RunError(
            f"{final}: {state}; dials are turned while a training runs. Next: give its --out folder."
        )
    return folder


def dial_names(folder: Path) -> list[str]:
    """Names of the dials of a run: its controls that have a strength, and "training".

    Raises:
        RunError: It is not a training.
    """
    about = read_json(folder / RUN_FILE)
    if about["study"] != "train":
        raise RunError(
            f"{folder}: holds a '{about['study']}' run, not a training. Next: give the folder of a training."
        )
    configs = [ControlConfig.make(values) for values in about["config"]["controls"]]
    turned = [config for config in configs if control_class(config).default_strength is not None]
    names = [c.name for c in turned]
    keys = [c.name if c.clause is None else f"{c.name}:{c.clause}" for c in turned]
    return [*dict.fromkeys([*names, *keys]), TRAINING]


def mend(path: Path) -> None:
    """Drop a half-written last line (of a killed process), which the next line would be glued to."""
    if path.is_file() and (text := path.read_text("utf-8")) and not text.endswith("\n"):
        with atomic_path(path) as temporary:
            temporary.write_text(text[: text.rfind("\n") + 1], "utf-8")


def keep_moves(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the recorded moves that are not wanted."""
    lines = _lines(path)
    kept = [line for line in lines if wanted(line)]
    if len(kept) < len(lines):
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a JSONL file; a half-written last one is left for the next look."""
    if not path.is_file():
        return []
    return [
        json.loads(line) for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
