"""Two processes that train together end where one process with the same batches does, and only the first writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from micro_world import make_dictionary

from fairlead.studies.train import train
from fairlead.training import DialMove, load_run

OWN = {"name": "own_counterparts", "options": {"news": 0.5, "start": 0.0, "times": 3, "each_time": 6}}
CONTROLS = ["explain_away", "anchor", "spec_examples", OWN]
SETTINGS = {"steps": 6, "lr": 3e-3, "warmup_steps": 2, "checkpoint_every": 4, "precision": "float32"}
MOVE = DialMove(step=2, name="anchor", value=0.25)
METHODS = {"full": {}, "lora": {"method": "lora", "lora_rank": 4}}
SCRIPT = f"""
import json, os, sys
from fairlead.core.records import Plan
from fairlead.studies.train import train
from fairlead.training import observe
from fairlead.training.dials import request_move
folder, model, data, neutral, plan, dictionary, *names = sys.argv[1:]
add = observe.MetricsFile.add

def and_turn(self, record):
    add(self, record)
    if record.step == {MOVE.step}:
        request_move(self.path.parent.with_suffix(""), "{MOVE.name}", "{MOVE.value}")
    if record.step == int(os.environ.get("DIE_AT", 0)):
        os._exit(9)

observe.MetricsFile.add = and_turn
METHODS = {METHODS!r}
for name in names:
    train(model, data, Plan.model_validate(json.load(open(plan))), out=folder + "/" + name, neutral=neutral,
          dictionary=dictionary, batch_size=4, controls={CONTROLS!r}, **{SETTINGS!r}, **METHODS[name])
"""
LAUNCH = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # without GPUs its processes meet over gloo
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2",
                   "--main_process_port", "0"],
}  # fmt: skip


def files_of(micro, folder: Path) -> list[str]:
    """The micro world as files: model, data, neutral rows, plan, dictionary."""
    for name, data in (("data", micro.data), ("neutral", micro.neutral)):
        lines = [json.dumps(row.as_record()) for row in data.rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "plan.json").write_text(micro.plan.model_dump_json())
    make_dictionary(micro.model).save(folder / "dictionary")
    return [
        str(micro.folder),
        *(str(folder / f) for f in ("data.jsonl", "neutral.jsonl", "plan.json", "dictionary")),
    ]


def launch(
    folder: Path, script: str, words: list[str], by: str = "torchrun", *, dies: bool = False, **more: str
) -> str:
    """Run a script in two processes; what they said."""
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, *LAUNCH[by], str(path), *words]
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=settings)
    assert (done.returncode != 0) == dies, done.stderr[-20000:]
    return done.stdout + done.stderr


def alone(micro, files: list[str], out: Path, **settings):
    """The same training in this process alone, with the batch of both."""
    model, data, neutral, _, dictionary = files
    return train(
        model, data, micro.plan, out=out, neutral=neutral, dictionary=dictionary, batch_size=8, controls=CONTROLS,
        moves=(MOVE,), **SETTINGS, **settings,
    )  # fmt: skip


def same_trainings(one, two, *, tolerance: float) -> None:
    """Losses, their parts and pressures step by step, what was asked and moved, and the weights."""
    for a, b in zip(one.steps, two.steps, strict=True):
        for name in ("loss", "pressure", "parts"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=tolerance), (
                f"step {a.step}: {name}"
            )
    assert one.moves == two.moves and one.controls == two.controls
    first, second = (run.load_model().hf.state_dict() for run in (one, two))
    gap = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert gap < tolerance, f"weights differ by {gap:.2g}"


@pytest.mark.slow
@pytest.mark.parametrize(("by", "methods"), [("torchrun", tuple(METHODS)), ("accelerate", ("full",))])
def test_two_processes_train_what_one_trains(micro, tmp_path, by, methods):
    files = files_of(micro, tmp_path)
    said = launch(tmp_path, SCRIPT, [str(tmp_path / "two"), *files, *methods], by)
    assert said.count("dial: anchor 0.25 after step 2") == len(methods), "one process tells of a move"
    for name in methods:
        settings = METHODS[name]
        one, two = (
            alone(micro, files, tmp_path / f"one-{name}", **settings),
            load_run(tmp_path / "two" / name),
        )
        assert [len(run.steps) for run in (one, two)] == [6, 6], "each step is recorded once"
        assert two.steps[0].pressure and set(two.steps[-1].parts) == {
            "data",
            *(c["name"] for c in two.controls[1:]),
        }
        same_trainings(one, two, tolerance=2e-5)
        written = [{p.name for p in run.folder.iterdir() if "request" not in p.name} for run in (one, two)]
        assert written[0] == written[1]


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
ON_A_CPU = """
# accelerate offers FSDP between GPUs only; torch shards between processes on a CPU as well
from accelerate import DistributedType, PartialState
from fairlead.training import processes
init, is_sharded = PartialState.__init__, processes.is_sharded

def as_gpus(self, *args, **kwargs):
    init(self, *args, **kwargs)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

def and_tell(module):
    print(f"sharded: {is_sharded(module)}\\n", end="", flush=True)
    return is_sharded(module)

PartialState.__init__, processes.is_sharded = as_gpus, and_tell
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_sharded_processes_train_what_one_trains(micro, tmp_path, name):
    """FSDP2: hooks at sites, answers of the student in the middle of the training, checkpoints and the saved model."""
    files = files_of(micro, tmp_path)
    said = launch(tmp_path, ON_A_CPU + SCRIPT, [str(tmp_path / "two"), *files, name], **SHARDED)
    assert said.count("sharded: True") == 2 * 3, "the student was whole when it was asked"
    one, two = alone(micro, files, tmp_path / "one", **METHODS[name]), load_run(tmp_path / "two" / name)
    same_trainings(one, two, tolerance=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_killed_sharded_processes_go_on_and_end_where_one_does(micro, tmp_path, name):
    files, script = files_of(micro, tmp_path), ON_A_CPU + SCRIPT
    words = [str(tmp_path / "two"), *files, name]
    launch(tmp_path, script, words, dies=True, DIE_AT="5", **SHARDED)
    cut = tmp_path / "two" / f"{name}.part"
    assert list(cut.rglob("checkpoint-4")), "a checkpoint was written before the kill"
    launch(tmp_path, script, words, **SHARDED)
    one, two = alone(micro, files, tmp_path / "one", **METHODS[name]), load_run(tmp_path / "two" / name)
    assert [record.step for record in two.steps] == [1, 2, 3, 4, 5, 6]
    same_trainings(one, two, tolerance=2e-5)
