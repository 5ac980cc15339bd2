"""Claims about bad input on the command line: exit code 2, one line that says what and where and what next, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli import proof
from fairlead.cli.app import run
from fairlead.core.errors import ConfigError
from fairlead.core.records import Plan, Spec
from fairlead.core.run import Run

ROWS = [
    {"prompt": f"What is {i} plus {i}?", "completion": f"The answer is {2 * i}, I believe."} for i in range(4)
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write("ok.jsonl", *ROWS)
    return tmp_path


def write(name, *rows):
    with open(name, "w") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)


def train(data="ok.jsonl", *options, model="organism:pocket", out="r"):
    words = ["train", model, data, "--controls", "plain", "--steps", "2", "--batch-size", "2"]
    return run([*words, "--device", "cpu", "--out", out, *options])


def refused(capsys, code, *parts):
    err = capsys.readouterr().err
    assert code == 2  # and not an exception: a bug goes through as one
    last = err.strip().splitlines()[-1]
    assert "Next:" in last
    for part in parts:
        assert part in last


def test_a_missing_model(place, capsys):
    refused(capsys, train(model="./nowhere"), "ModelError: ./nowhere: no such model folder")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([], ["bad.jsonl: holds no records"]),
        ([*ROWS, {"prompt": "a", "completion": ""}], ["bad.jsonl:5", "'completion'", "empty"]),
        ([*ROWS, {"prompt": "word " * 5000, "completion": "b"}], ["bad.jsonl:5", "1 of 5", "longer than"]),
    ],
    ids=["empty", "an empty answer", "over-long"],
)
def test_bad_rows_are_named_and_leave_nothing_in_the_way_of_the_mended_file(place, capsys, rows, parts):
    write("bad.jsonl", *rows)
    refused(capsys, train("bad.jsonl"), "DataError", *parts)
    assert not (place / "r").exists() and not (place / "r.part").exists()


def test_a_length_beyond_the_model(place, capsys):
    refused(
        capsys, train("ok.jsonl", "--max-length", "1000000"), "ConfigError: max_length is 1000000", "at most"
    )
    assert not (place / "r.part").exists()


def test_a_loss_that_is_not_finite_and_the_finished_run_beside_it(place, capsys):
    assert train(out="good") == 0
    before = {p: p.read_bytes() for p in (place / "good").rglob("*") if p.is_file()}
    capsys.readouterr()
    refused(capsys, train("ok.jsonl", "--steps", "4", "--lr", "1e30"), "TrainingError: step", "lower lr")
    refused(capsys, train(out="good"), "RunError", "exists already")
    assert not (place / "r").exists()
    assert {p: p.read_bytes() for p in (place / "good").rglob("*") if p.is_file()} == before


def test_a_run_folder_that_another_holds(place, capsys):
    with Run.start("r", study="train", config={}):
        refused(capsys, train(), "RunError", "another process is writing this run")


def test_a_dictionary_of_another_site(place, capsys):
    words = [
        "dict",
        "train",
        "organism:pocket",
        "ok.jsonl",
        "--tokens",
        "1000",
        "--latents",
        "16",
        "--k",
        "2",
    ]
    assert run([*words, "--site", "layers.1.resid_post", "--device", "cpu", "--out", "d"]) == 0
    capsys.readouterr()
    preview = ["preview", "organism:pocket", "ok.jsonl", "--dictionary", "d", "--device", "cpu", "--out", "p"]
    refused(capsys, run([*preview, "--site", "layers.0.resid_post"]), "made for site layers.1.resid_post")
    assert not (place / "p.part").exists() and (place / "d" / "cfg.json").is_file()


def test_controls_are_not_chosen_in_several_processes(place, monkeypatch):
    """An expert trained in one of them alone would wait for the others without end."""
    plan = Plan(spec=Spec(clauses=()), decisions=())
    write("plan.json", plan.model_dump(mode="json"))
    monkeypatch.setattr("fairlead.training.processes.num_processes", lambda: 2)
    with pytest.raises(ConfigError, match="run `fairlead plan` first"):
        proof._plan(None, None, Path("plan.json"), None, None, Path("r"), arms=["auto"])
