"""A training killed at any moment, also while it saves, goes on to the trajectory of the uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from micro_world import make_dictionary

from fairlead.studies.train import train
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


def files_of(micro, folder, plan) -> list[str]:
    """Model, data, neutral rows and plan as files."""
    for name, data in (("data", micro.data), ("neutral", micro.neutral)):
        lines = [json.dumps(row.as_record()) for row in data.rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "plan.json").write_text(plan.model_dump_json())
    return [str(micro.folder), *(str(folder / f) for f in ("data.jsonl", "neutral.jsonl", "plan.json"))]


KILLED_WHILE_SAVING = """
import json, os, signal, sys
import safetensors.torch, transformers.modeling_utils
from transformers import TrainerState
from fairlead.core.records import Plan
from fairlead.studies.train import train
folder, model, data, neutral, plan, settings, what, step = sys.argv[1:]
save_weights, save_state = transformers.modeling_utils.safe_save_file, TrainerState.save_to_json

def die_with(path, text):
    with open(path, "wb") as file:
        file.write(text)
    os.kill(os.getpid(), signal.SIGKILL)

def half_weights(tensors, path, *args, **kwargs):
    if f"checkpoint-{step}" in str(path):
        die_with(path, safetensors.torch.save(tensors)[:5000])
    return save_weights(tensors, path, *args, **kwargs)

def half_state(self, path):
    save_state(self, path)
    if f"checkpoint-{step}" in str(path):
        die_with(path, open(path, "rb").read()[:200])

if what == "weights":
    transformers.modeling_utils.safe_save_file = half_weights
else:
    TrainerState.save_to_json = half_state
train(model, data, Plan.model_validate(json.load(open(plan))), out=folder, neutral=neutral, **json.loads(settings))
"""


def test_killed_in_the_middle_of_a_save_it_ends_at_the_same_trajectory(micro, tmp_path):
    """Twice: while the weights of a checkpoint are written, then while its state is; feedback and observation are on."""
    make_dictionary(micro.model).save(tmp_path / "dictionary")
    update = {"uptakes": {"c0": 0.01}, "dictionary": str(tmp_path / "dictionary")}
    files = files_of(micro, tmp_path, plan := micro.plan.model_copy(update=update))
    feedback = {"name": "feedback", "options": {"every": 1, "dead_band": 0.0}}
    settings = {
        "steps": 8,
        "batch_size": 8,
        "lr": 3e-3,
        "checkpoint_every": 2,
        "controls": ["explain_away", "anchor", feedback],
    }
    script = tmp_path / "script.py"
    script.write_text(KILLED_WHILE_SAVING)
    for what, step, kept in (("weights", "4", 2), ("state", "6", 4)):
        words = [sys.executable, script, tmp_path / "cut", *files, json.dumps(settings), what, step]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        checkpoints = tmp_path / "cut.part" / "checkpoints"
        assert checkpoint_step(checkpoints) == kept, f"killed at step {step}: {list(checkpoints.iterdir())}"
        assert (checkpoints / f"checkpoint-{step}").is_dir() or list(checkpoints.glob(f"*{step}*")), (
            "not in a save"
        )
    model, data, neutral, _ = files
    one, two = (
        train(model, data, plan, out=tmp_path / name, neutral=neutral, **settings)
        for name in ("whole", "cut")
    )
    for a, b in zip(one.steps, two.steps, strict=True):
        assert a.loss == b.loss and a.pressure == b.pressure, f"step {a.step}"
    assert one.moves == two.moves and len(one.moves) > 3, "feedback has turned its dial"
    assert one.controls == two.controls
    first, second = (run.load_model().hf.state_dict() for run in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_at_the_same_trajectory(micro, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    files = files_of(micro, tmp_path, micro.plan)

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
