"""Training by rewards under `accelerate launch`, two processes: each asks its own questions, the controller is one, the first writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from reward_world import DoubtOf, run

from fairlead.models import load_model
from fairlead.training.rewards.fit import read_steps
from fairlead.training.rewards.monitors import read_looks

SCRIPT = """
import importlib.util, sys
from pathlib import Path
folder, model, word, place = sys.argv[1:]
spec = importlib.util.spec_from_file_location("reward_world", place)
world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(world)
from fairlead.models import load_model
from fairlead.training import processes
processes.join()
start = load_model(model, device="cpu")
found = world.run(start, world.DoubtOf(start, word), Path(folder), groups=2, threshold=0.5)
values = processes.gather([found.steps[-1].retract_lambda, found.frozen_sha256, len(found.looks)])
assert values[0] == values[1], values
"""


@pytest.mark.slow
def test_two_processes_share_one_training(micro, tmp_path):
    word = "b1"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    place = Path(__file__).with_name("reward_world.py")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
         "--main_process_port", "0", str(script),
         str(tmp_path / "two"), str(micro.folder), word, str(place)],
        capture_output=True, text=True, timeout=500, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    steps, looks = read_steps(tmp_path / "two"), read_looks(tmp_path / "two")
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6], "each step is recorded once"
    assert [look.step for look in looks] == [0, 3, 6]
    alone = run(micro.model, DoubtOf(micro.model, word), tmp_path / "one", groups=4, threshold=0.5)
    for one, two in zip(alone.steps, steps, strict=True):
        assert sum(one.outcomes.values()) + one.hints == sum(two.outcomes.values()) + two.hints == 16
    assert load_model(tmp_path / "two" / "model").fingerprint != micro.model.fingerprint
