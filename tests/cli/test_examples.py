"""Every command's example runs, in the order of use, on the pocket model, in one folder.

The examples are read from the help itself, so that what a newcomer copies is what was run. Each must end with exit
code 0 and its run folder as the last line of standard output; `--json` is tried on the quick ones.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from fairlead.cli.app import run
from fairlead.cli.tree import examples, walk

COMMANDS = dict(walk())

# Each needs what the ones before it wrote.
ORDER = [
    "spec init",
    "organism data",
    "spec check",
    "dict train",
    "dict harvest",
    "dict evaluate",
    "concepts build",
    "concepts search",
    "concepts show",
    "concepts neighbours",
    "concepts contrast",
    "concepts inspect",
    "concepts page",
    "concepts steer",
    "concepts autosteer",
    "concepts attribute",
    "concepts diff",
    "preview",
    "decide",
    "plan",
    "train",
    "dial",
    "replay",
    "branch",
    "verify",
    "compare",
    "report",
    "organism measure",
    "organism claims",
    "probe claims",
    "probe fit",
    "probe evaluate",
    "probe score",
    "guard calibrate",
    "guard run",
    "guard view",
    "reward train",
    "reward page",
]
SLOW = ["organism build", "demo"]  # above 20 s on one thread
UNTIL_STOPPED = ["guard serve"]  # tests/guard/test_cli.py starts and stops it


def example_words(name: str) -> list[list[str]]:
    """Words of a command's examples, without the program's name."""
    return [shlex.split(line)[1:] for line in examples(COMMANDS[tuple(name.split())])]


def test_no_command_is_left_out():
    assert sorted(ORDER + SLOW + UNTIL_STOPPED) == sorted(" ".join(words) for words in COMMANDS)


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ORDER:
        for words in example_words(name):
            code = run(words)
            out, err = capsys.readouterr()
            assert code == 0, f"fairlead {' '.join(words)}\n{err[-2000:]}"
            if "--out" in words:
                folder = words[words.index("--out") + 1]
                assert Path(out.rstrip().splitlines()[-1]) == Path(folder), "the run folder comes last"
                assert Path(folder).is_dir() and not Path(f"{folder}.part").exists()
    assert (tmp_path / "runs" / "report.html").stat().st_size > 100_000

    for words in (
        ["verify", "runs/train", "--suite", "task/suite.json", "--json"],
        ["decide", "runs/menu", "task/spec.md", "--json"],
    ):
        assert run(words) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["command"] == words[0] and answer["run"]
        assert {"verify": "verification", "decide": "plan"}[words[0]] in answer


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_long_example_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in example_words(name):
        code = run(words)
        out, err = capsys.readouterr()
        assert code == 0, f"fairlead {' '.join(words)}\n{err[-2000:]}"
        assert Path(out.rstrip().splitlines()[-1]).is_dir()
