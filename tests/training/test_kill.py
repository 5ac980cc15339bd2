"""A training killed at any moment, also while it saves, goes on to the trajectory of the uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from fairlead.training import load_run
from fairlead.training.adapter import STATE_FILE, checkpoint_step, last_checkpoint
from fairlead.training.dials import MOVES_FILE, mend, read_moves

STEPS, KILLS = 30, 3
SCRIPT = f"""
import json, sys
from fairlead.core.records import Plan
from fairlead.studies.train import train
folder, model, data, neutral, plan = sys.argv[1:]
own = {{"name": "own_counterparts", "options": {{"news": 0.5, "start": 0.0, "times": 10, "each_time": 4}}}}
train(model, data, Plan.model_validate(json.load(open(plan))), out=folder, neutral=neutral, steps={STEPS}, batch_size=8,
      lr=3e-3, checkpoint_every=1, observe=False, controls=["explain_away", "anchor", own])
"""


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    for step in (3, 6, 9):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / STATE_FILE).write_text(json.dumps({"global_step": step}))
    assert checkpoint_step(tmp_path) == 9
    (tmp_path / "checkpoint-9" / STATE_FILE).write_text('{"global_step": 9, "log_hi')
    assert checkpoint_step(tmp_path) == 6
    (tmp_path / "checkpoint-6" / STATE_FILE).unlink()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert checkpoint_step(tmp_path / "nowhere") == 0


def test_a_half_written_move_is_dropped(tmp_path):
    whole = '{"step": 2, "name": "anchor", "value": 0.5, "request": 0}\n'
    (tmp_path / MOVES_FILE).write_text(whole + '{"step": 3, "na')
    mend(tmp_path / MOVES_FILE)
    assert (tmp_path / MOVES_FILE).read_text() == whole and len(read_moves(tmp_path)) == 1


@pytest.mark.slow
def test_killed_again_and_again_it_ends_at_the_same_trajectory(micro, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    for name, data in (("data", micro.data), ("neutral", micro.neutral)):
        lines = [json.dumps(row.as_record()) for row in data.rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "plan.json").write_text(micro.plan.model_dump_json())
    files = [str(micro.folder), *(str(tmp_path / f) for f in ("data.jsonl", "neutral.jsonl", "plan.json"))]

    def start(name):
        words = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / name), *files]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def steps_done(name):
        metrics = tmp_path / f"{name}.part" / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.is_file() else 0

    whole = start("whole")
    assert whole.wait(300) == 0, whole.stderr.read()[-2000:]
    rng, killed_at = random.Random(0), []
    for _ in range(KILLS):
        process, wanted = start("cut"), rng.randint(steps_done("cut") + 2, STEPS - 4)
        while process.poll() is None and steps_done("cut") < wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)  # somewhere in a step or in a save
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(steps_done("cut"))
    assert (tmp_path / "cut.part").is_dir(), f"it was to be killed before its end: {killed_at}"
    last = start("cut")
    assert last.wait(300) == 0, last.stderr.read()[-2000:]
    one, two = (load_run(tmp_path / name) for name in ("whole", "cut"))
    gaps = [abs(a.loss - b.loss) for a, b in zip(one.steps, two.steps, strict=True)]
    assert max(gaps) == 0.0, (
        f"killed after {killed_at}; first difference at step {next(i for i, g in enumerate(gaps, 1) if g)}"
    )
    assert one.controls == two.controls
