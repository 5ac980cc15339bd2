"""`fairlead guard` from labelled answers to a page: calibrate, run, view, serve; and the page itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import requests

from fairlead.cli.app import run
from fairlead.core.errors import ConfigError
from fairlead.guard import Guard, GuardedAnswer, Policy
from fairlead.guard.audit import AuditLog, read_audit
from fairlead.guard.folder import load_guard
from fairlead.probes import Probe, examples_of, fit_span_probe
from fairlead.probes.labelled import load_claims
from fairlead.probes.seen import held_out
from fairlead.reports import render_guarded, render_served
from fairlead.studies.claims import label_answer
from fairlead.studies.guard import GuardedExchange, GuardedRun, calibrate_to_folder, read_guarded


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pocket, readout, world):
    """A probe (as good as random) and labelled answers."""
    place = tmp_path_factory.mktemp("guard-cli")
    Probe(readout.readout.direction, 0.0, "logistic", model_fingerprint=pocket.fingerprint).save(
        place / "probe"
    )
    items = world.items("fact", 40, seed=2, split="any", min_exposures=40)
    items += world.items("fact", 20, seed=2, split="any", max_exposures=0)
    texts = pocket.generate([item.question for item in items])
    answers = [
        label_answer(world, item, text, id=f"a{n}")
        for n, (item, text) in enumerate(zip(items, texts, strict=True))
    ]
    (place / "answers.jsonl").write_text("".join(answer.model_dump_json() + "\n" for answer in answers))
    return place


@pytest.fixture(scope="module")
def calibrated(folder):
    words = [
        "guard",
        "calibrate",
        "organism:pocket",
        str(folder / "answers.jsonl"),
        "--probe",
        str(folder / "probe"),
    ]
    assert run([*words, "--fpr", "0.4", "--out", str(folder / "guard")]) == 0
    return folder / "guard"


def test_calibrate_run_and_view(folder, calibrated, capsys):
    capsys.readouterr()
    words = [
        "guard",
        "run",
        "organism:pocket",
        str(folder / "answers.jsonl"),
        "--probe",
        str(calibrated),
        "--verify",
        "world",
    ]
    assert run([*words, "--policy", "correct", "--out", str(folder / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_answers"] == 60 and found["interventions"]["correct"] >= 5
    assert found["supported"] + found["unsupported"] == 60 and found["unsupported"] >= 20
    read = read_guarded(folder / "run")
    assert read.calibration is not None and read.summary() == {k: found[k] for k in read.summary()}
    flagged = sum(bool(e.plain.flagged) for e in read.exchanges if e.plain_verdicts[0].label == "supported")
    assert flagged == found["supported_flagged"] <= 0.4 * found["supported"], "the rate that was asked for"
    for exchange in read.exchanges:
        assert exchange.guarded.text.startswith(exchange.plain.text)
    assert run(["guard", "view", str(folder / "run"), "--out", str(folder / "page.html"), "--json"]) == 0
    assert (folder / "page.html").read_text() == (folder / "run" / "page.html").read_text()


def test_the_page_shows_the_worst_first_and_runs_nothing(folder, calibrated):
    if not (folder / "run").is_dir():
        pytest.skip("needs the run above")
    found = read_guarded(folder / "run")
    page = render_guarded(found)
    kinds = re.findall(r'data-kinds=" ([a-z_ ]+) "', page)
    assert len(kinds) == 60
    ranks = [2 if "missed" in one else 1 if "false" in one else 0 for one in kinds]
    assert ranks == sorted(ranks, reverse=True) and set(ranks) == {0, 1, 2}
    assert page.count('class="given"') > found.summary()["interventions"]["correct"]
    hostile = found.exchanges[0].model_copy(
        update={"messages": ({"role": "user", "content": "</p><script>alert(1)</script>"},)}
    )
    page = render_guarded(found.model_copy(update={"exchanges": (hostile,)}))
    assert (
        "<script>alert" not in page
        and "script-src 'sha256-" in page
        and "http" not in page.split("<main>")[1].split("<script>")[0]
    )


def test_the_page_of_a_log(tmp_path, guard, questions, capsys):
    answers = guard.answer(questions)
    with AuditLog(tmp_path / "audit.jsonl") as log:
        for question, answer in zip(questions, answers, strict=True):
            log.write("answer", {"prompt": question, "answer": answer.model_dump(mode="json")})
        log.write("cancelled", {"prompt": "gone"})
    with open(tmp_path / "audit.jsonl", "ab") as handle:
        handle.write(b"torn")
    assert run(["guard", "view", str(tmp_path / "audit.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_answers"] == len(questions) and found["damage"][0]["reason"].startswith("torn")
    page = render_served(read_audit(tmp_path / "audit.jsonl")[0])
    assert page.count('<article class="card guarded"') == len(questions) and "gone" not in page
    assert render_served([]).count("No answers yet") == 1
    read = [
        GuardedExchange(messages=(), guarded=GuardedAnswer(**answer.model_dump(mode="json")))
        for answer in answers
    ]
    assert [exchange.guarded for exchange in read] == answers, "JSON keeps everything"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["guard", "run", "organism:pocket", "answers.jsonl", "--probe", "nowhere"], "holds no probe"),
        (
            ["guard", "run", "organism:pocket", "answers.jsonl", "--probe", "probe", "--policy", "punish"],
            "kind",
        ),
        (
            ["guard", "run", "organism:pocket", "answers.jsonl", "--probe", "probe", "--verify", "me"],
            "--verify",
        ),
        (
            ["guard", "calibrate", "organism:pocket", "answers.jsonl", "--probe", "probe", "--fpr", "0.001"],
            "too few",
        ),
        (
            ["guard", "calibrate", "organism:pocket", "answers.jsonl", "--probe", "probe", "--fpr", "2"],
            "between 0 and 1",
        ),
        (["guard", "calibrate", "organism:pocket", "nothing.jsonl", "--probe", "probe"], "nothing.jsonl"),
        (["guard", "serve", "organism:pocket", "--probe", "probe", "--host", "0.0.0.0"], "API key"),
        (["guard", "serve", "organism:pocket", "--probe", "probe", "--sync", "weekly"], "--sync"),
        (["guard", "view", "nothing"], "no such run folder or audit log"),
    ],
)
def test_what_is_refused_says_why(folder, monkeypatch, capsys, words, says):
    monkeypatch.chdir(folder)
    assert run(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in last and "Next:" in last


def test_a_probe_of_something_wanted_guards_only_where_its_user_says_so(
    folder, pocket, readout, tmp_path, capsys
):
    direction = replace(readout.readout.direction, name="right")
    Probe(direction, 0.0, "logistic", model_fingerprint=pocket.fingerprint).save(tmp_path / "right")
    words = ["guard", "calibrate", "organism:pocket", str(folder / "answers.jsonl"), "--fpr", "0.4"]
    words += ["--probe", str(tmp_path / "right"), "--out", str(tmp_path / "guard")]
    assert run(words) == 2 and "tells the probability of 'right'" in capsys.readouterr().err
    assert run([*words, "--label", "right"]) == 0
    assert load_guard(tmp_path / "guard", pocket).readout.readout.name == "right", (
        "a guard keeps what was confirmed"
    )
    with pytest.raises(ConfigError, match="--label right"):
        load_guard(tmp_path / "right", pocket)


def test_people_of_the_fit_set_no_threshold_however_few_answers_are_wanted(folder, pocket, tmp_path, capsys):
    answers = load_claims(folder / "answers.jsonl")
    examples = examples_of(answers)
    fitted = fit_span_probe(
        pocket,
        examples,
        kind="mean_difference",
        sites=("layers.3.resid_post",),
        calibration="none",
        test_share=0.5,
    )
    fitted.probe.save(tmp_path / "probe")
    kept = held_out(answers, fitted.probe)
    common = {"target": 0.4, "overwrite": True}
    whole = calibrate_to_folder(
        pocket, folder / "answers.jsonl", tmp_path / "probe", out=tmp_path / "g", **common
    )
    assert whole.num_true + whole.num_false == len(kept) < len(answers)
    few = calibrate_to_folder(
        pocket,
        folder / "answers.jsonl",
        tmp_path / "probe",
        out=tmp_path / "g",
        max_records=len(kept) - 3,
        **common,
    )
    assert few.num_true + few.num_false == len(kept) - 3, (
        "people are left out first, then answers are counted"
    )


def test_serve_as_a_command_until_it_is_told_to_stop(folder, calibrated, tmp_path):
    (tmp_path / "keys").write_text("secret\n\nother\n")
    words = [
        sys.executable,
        *"-m fairlead.cli guard serve organism:pocket --name pocket".split(),
        "--port",
        "0",
    ]
    words += [
        "--probe",
        str(calibrated),
        "--api-keys",
        str(tmp_path / "keys"),
        "--log",
        str(tmp_path / "log.jsonl"),
        "--json",
    ]
    errors = open(tmp_path / "stderr", "w+")  # noqa: SIM115
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ})
    try:
        end, address = time.monotonic() + 60, None
        while address is None:
            assert time.monotonic() < end and server.poll() is None, (tmp_path / "stderr").read_text()
            address = re.search(r"http://[\d.:]+", (tmp_path / "stderr").read_text())
            time.sleep(0.05)
        url, headers = address.group(), {"Authorization": "Bearer other"}
        body = {
            "model": "pocket",
            "messages": [{"role": "user", "content": "Hello!"}],
            "temperature": 0,
            "max_tokens": 24,
        }
        assert requests.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 401
        answer = requests.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30).json()
        said = answer["choices"][0]["message"]["content"]
        until = time.monotonic() + 20
        while (
            said not in (page := requests.get(url, headers=headers, timeout=30).text)
            and time.monotonic() < until
        ):
            time.sleep(0.05)
        assert said in page and "Served answers" in page
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate(timeout=30)
    finally:
        server.kill()
        errors.close()
    assert server.returncode == 0 and json.loads(out)["answers"] == 1
    records, damage = read_audit(tmp_path / "log.jsonl")
    assert [r.kind for r in records] == ["answer"] and not damage


def test_the_page_tells_what_other_answers_upheld(pocket, readout, questions):
    guard = Guard(pocket, readout, threshold=0.0)
    policy = Policy(kind="retract", ask_again=2, uphold=0.0)
    answers = guard.answer(questions[:2], policy=policy)
    exchanges = [
        GuardedExchange(messages=({"role": "user", "content": "q"},), guarded=answer) for answer in answers
    ]
    run = GuardedRun(model="pocket", policy=policy, threshold=0.0, exchanges=tuple(exchanges))
    page = render_guarded(run)
    assert "acted on 0 of 2 answers; in 2 a flagged claim was upheld" in page
    assert (
        "upheld by other answers: " in page
        and "of 2 other answers hold" in page
        and "only marked" not in page
    )
