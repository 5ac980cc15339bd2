"""A training by rewards killed at any moment, also while it saves, goes on to the steps of the uninterrupted one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fairlead.models import load_model
from fairlead.training.rewards.fit import STEPS_FILE, read_steps
from fairlead.training.rewards.monitors import read_looks

STEPS, KILLS = 14, 2
SCRIPT = f"""
import importlib.util, sys
from pathlib import Path
folder, model, place = sys.argv[1:]
spec = importlib.util.spec_from_file_location("reward_world", place)
world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
from fairlead.models import load_model
start = load_model(model, device="cpu")
world.run(start, world.DoubtOf(start, "b1"), Path(folder), steps={STEPS}, threshold=0.5, checkpoint_every=1, resume=True)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_at_the_same_steps(micro, tmp_path):
    script, place = tmp_path / "script.py", Path(__file__).with_name("reward_world.py")
    script.write_text(SCRIPT)

    def start(name):
        words = [sys.executable, str(script), str(tmp_path / name), str(micro.folder), str(place)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def done(name):
        path = tmp_path / name / STEPS_FILE
        return path.read_text().count("\n") if path.is_file() else 0

    whole = start("whole")
    assert whole.wait(400) == 0, whole.stderr.read()[-2000:]
    rng, killed_at = random.Random(1), []
    for _ in range(KILLS):
        process, wanted = start("cut"), done("cut") + rng.randint(2, 4)
        while process.poll() is None and not done("cut") >= wanted:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)  # somewhere in a step or in a save
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(done("cut"))
    assert killed_at[-1] < STEPS, f"it was to be killed before its end: {killed_at}"
    last = start("cut")
    assert last.wait(400) == 0, last.stderr.read()[-2000:]
    one, two = (
        [step.model_copy(update={"seconds": 0.0}) for step in read_steps(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert one == two, f"killed after {killed_at}"
    assert read_looks(tmp_path / "whole") == read_looks(tmp_path / "cut")
    first, second = (load_model(tmp_path / name / "model").hf.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)
