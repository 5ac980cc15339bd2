"""Reports of run folders: what is found, what wins, and clear errors."""

from __future__ import annotations

import json

import pytest

from fairlead.core.errors import RunError
from fairlead.core.run import write_json
from fairlead.reports import report_run
from fairlead.reports.runs import RunInfo, read_steps


def put(folder, name, record):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", record.model_dump(mode="json"))


def test_a_run_folder_becomes_a_report(make, tmp_path):
    put(tmp_path / "run", "menu", make.menu())
    write_json(
        tmp_path / "run" / "run.json",
        {
            "study": "preview",
            "seed": 7,
            "command": ["/x/bin/fairlead", "preview", "a b"],
            "versions": {"torch": "9.9"},
        },
    )
    path = report_run(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text("utf-8")
    assert "preview, seed 7" in text and "torch 9.9" in text and "fairlead preview &#39;a b&#39;" in text


def test_several_folders_and_levels_are_gathered(make, tmp_path):
    put(tmp_path / "a", "menu", make.menu())
    put(tmp_path / "b", "comparison", make.comparison(seeds=(0,)))
    put(tmp_path / "b" / "decide", "plan", make.plan())
    put(tmp_path / "b" / "arms" / "plain-0", "verification", make.verification("one of many", make.base))
    put(tmp_path / "b" / "old.part", "menu", make.menu(lines=()))
    path = report_run([tmp_path / "a", tmp_path / "b"], tmp_path / "out" / "r.html", title="Both")
    text = path.read_text("utf-8")
    assert all(f'<section id="{name}"' in text for name in ("menu", "decisions", "arms", "pressure"))
    assert "Both" in text and "Separate verification" not in text


def test_a_lone_training_shows_its_pressure(make, tmp_path):
    folder = tmp_path / "train"
    put(folder, "verification", make.verification("m", make.base))
    steps = make.comparison(arms=("plain",), seeds=(0,)).arms[0].steps
    lines = [json.dumps(s.model_dump(mode="json")) for s in steps]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9', "utf-8")
    assert len(read_steps(folder / "metrics.jsonl")) == len(steps), "an unfinished last line is left out"
    assert '<section id="pressure"' in report_run(folder).read_text("utf-8")
    (folder / "metrics.jsonl").write_text("{}\n" + lines[0] + "\n", "utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl:1"):
        report_run(folder)


def test_errors_name_the_file_and_the_next_step(make, tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        report_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"none of menu\.json"):
        report_run(tmp_path)
    guarded, reward = tmp_path / "guarded", tmp_path / "reward"
    for folder, file in ((guarded, "page.html"), (reward, "reward.json")):
        folder.mkdir()
        (folder / file).touch()
    with pytest.raises(RunError, match=r"open .*guarded.page\.html"):
        report_run(guarded)
    with pytest.raises(RunError, match="fairlead reward page"):
        report_run(reward)
    with pytest.raises(RunError, match="no run folder given"):
        report_run([])
    (tmp_path / "menu.json").write_text('{"format": "fairlead.plan"}', "utf-8")
    with pytest.raises(RunError, match=r"menu\.json: .*Menu\.format"):
        report_run(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_commands_are_shown_as_typed():
    assert RunInfo("x", {"command": ["/usr/bin/fairlead", "a b"]}).command == "fairlead 'a b'"
    assert RunInfo("x", {}).command == "" and RunInfo("x", {"command": "text"}).command == ""
