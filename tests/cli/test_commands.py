"""Claims about the command line as a whole: help, errors, settings files, exit codes, output streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.cli import spec as spec_commands
from fairlead.cli.app import run
from fairlead.cli.tree import examples, walk

ROOT = Path(__file__).resolve().parents[2]


COMMANDS = dict(walk())
NAMES = [" ".join(words) for words in COMMANDS]


def test_the_table_of_contents_has_the_nouns_and_verbs_of_the_design():
    wanted = [
        "demo", "preview", "decide", "plan", "train", "compare", "verify", "report",
        "dial", "replay", "branch", "dict train", "dict harvest", "dict evaluate",
        "concepts build", "concepts search", "concepts show", "concepts neighbours", "concepts contrast",
        "concepts inspect", "concepts page", "concepts steer", "concepts autosteer", "concepts attribute", "concepts diff",
        "probe claims", "probe fit", "probe evaluate", "probe score",
        "guard calibrate", "guard run", "guard serve", "guard view", "reward train", "reward page",
        "spec check", "spec init", "organism build", "organism data", "organism measure", "organism claims",
    ]  # fmt: skip
    assert sorted(NAMES) == sorted(wanted)


@pytest.mark.parametrize("words", COMMANDS, ids=NAMES)
def test_every_command_has_json_config_an_example_and_a_sentence(words):
    command = COMMANDS[words]
    options = {name for p in command.params for name in p.opts}
    assert {"--json", "--config"} <= options
    assert examples(command), "its help needs an `Example:`"
    assert "JSON:" in command.help, "its help must document its JSON"
    assert all(p.help for p in command.params if p.name != "help"), "every option says what it does"


def test_an_error_is_one_line_with_exit_code_2_and_no_traceback(capsys):
    assert run(["spec", "check", "no-such.md"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("SpecError: no-such.md") and "Traceback" not in err and "Next:" in err


def test_with_json_an_error_is_an_object_on_standard_output(capsys):
    assert run(["spec", "check", "no-such.md", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "SpecError" and "no-such.md" in error["message"]


def test_debugging_shows_the_error_itself(monkeypatch):
    monkeypatch.setenv("FAIRLEAD_DEBUG", "1")
    with pytest.raises(ValueError, match=r"no-such\.md"):
        run(["spec", "check", "no-such.md"])


def test_wrong_usage_is_exit_code_2_and_points_at_the_help(capsys):
    assert run(["spec", "check"]) == 2
    assert "fairlead spec check --help" in capsys.readouterr().err
    assert run(["nonsense"]) == 2
    assert run(["train", "a", "b", "--steps", "0"]) == 2


def test_an_interrupted_command_says_that_it_can_be_repeated(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fairlead.data.load_spec", stop)
    assert run(["spec", "check", str(tmp_path / "spec.md")]) == 130
    assert "repeat the same command" in capsys.readouterr().err


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(monkeypatch):
    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("fairlead.data.load_spec", broken)
    with pytest.raises(ValueError, match="a bug"):
        run(["spec", "check", "spec.md"])


def test_the_spec_to_start_from_is_understood_and_never_overwrites(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["spec", "init", "my.md"]) == 0
    assert (tmp_path / "my.md").read_text() == spec_commands.TEMPLATE
    capsys.readouterr()
    assert run(["spec", "check", "my.md", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["command"] == "spec check" and answer["run"] is None
    assert [clause["kind"] for clause in answer["spec"]["clauses"]] == ["keep", "avoid"]
    (tmp_path / "my.md").write_text("mine")
    assert run(["spec", "init", "my.md"]) == 2
    assert (tmp_path / "my.md").read_text() == "mine"


@pytest.fixture
def settings_seen(monkeypatch, tmp_path):
    """Runs `organism data` with a study that only notes its settings."""
    seen = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fairlead.studies.organism_data.organism_data", lambda out, **settings: seen.update(settings, out=out)
    )

    def call(text: str, *words: str, name: str = "settings.toml") -> dict:
        (tmp_path / name).write_text(text)
        assert run(["organism", "data", "pocket", "--config", name, *words]) == 0
        return seen

    return call


def test_a_settings_file_gives_defaults_and_the_command_line_wins(settings_seen):
    seen = settings_seen('num = 7\ntrait = "formal"\nout = "there"', "--trait", "emoji")
    assert (seen["num"], seen["trait"], seen["out"]) == (7, "emoji", Path("there"))


def test_a_table_named_after_the_command_goes_before_the_top_level_and_other_tables_are_left(settings_seen):
    seen = settings_seen("num = 7\n[organism.data]\nnum = 8\n[train]\nsteps = 3")
    assert seen["num"] == 8


def test_settings_may_be_json(settings_seen):
    assert settings_seen('{"num": 9}', name="settings.json")["num"] == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [("nmu = 7", "'nmu' is not a setting"), ("num = ", "settings.toml"), ('num = "many"', "num")],
)
def test_a_bad_settings_file_is_an_error_that_names_the_setting(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    Path("settings.toml").write_text(text)
    assert run(["organism", "data", "pocket", "--config", "settings.toml"]) == 2
    assert message in capsys.readouterr().err


def test_what_a_library_prints_does_not_mix_with_the_result(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def chatty(out, **_):
        print("library noise")

    monkeypatch.setattr("fairlead.studies.organism_data.organism_data", chatty)
    assert run(["organism", "data", "pocket", "--out", "there", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["run"] == "there"
    assert "library noise" in err
    assert run(["organism", "data", "pocket", "--out", "there"]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == "there", "the run folder comes last"


def test_the_run_folder_is_the_next_free_one(tmp_path, monkeypatch):
    from fairlead.cli.output import run_folder

    monkeypatch.chdir(tmp_path)
    assert run_folder(None, "train") == Path("runs/train-1")
    Path("runs/train-1").mkdir(parents=True)
    Path("runs/train-2.part").mkdir()
    assert run_folder(None, "train") == Path("runs/train-2"), "an unfinished run is gone on with"
    assert run_folder(Path("mine"), "train") == Path("mine")


def test_the_demo_ends_with_its_report_and_an_unfinished_one_is_gone_on_with(monkeypatch, capsys, tmp_path):
    from types import SimpleNamespace

    from fairlead.core.results import Comparison, Verification

    monkeypatch.chdir(tmp_path)
    Path("runs/demo-1").mkdir(parents=True)  # interrupted: no report yet
    comparison = Comparison(model="m", data="d", base=Verification(model="m", measures={}), arms=())
    monkeypatch.setattr("fairlead.studies.demo.demo", lambda out, **_: SimpleNamespace(comparison=comparison))
    monkeypatch.setattr("fairlead.reports.report_run", lambda runs, file, **_: file.write_text("x") and file)
    assert run(["demo"]) == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == str(Path("runs/demo-1"))
    Path("runs/demo-2").mkdir()
    capsys.readouterr()
    assert run(["demo", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["run"] == str(Path("runs/demo-2")), "a finished demo is not written over"
    assert answer["report"].endswith("report.html") and answer["comparison"]["model"] == "m"


def test_the_reference_page_is_up_to_date():
    check = [sys.executable, str(ROOT / "scripts" / "cli_reference.py"), "--check"]
    answer = subprocess.run(check, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Runs a command with a settings file up to its study, which only notes what it is given."""
    seen = {}

    class Enough(Exception):
        pass

    def note(*args, **settings):
        seen.update(settings)
        raise Enough

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fairlead.models.load_model", lambda *args, **kwargs: None)
    monkeypatch.setattr("fairlead.studies.probes.fit_probes", note)
    monkeypatch.setattr("fairlead.studies.rewards.train_rewards", note)

    def call(text: str, *words: str) -> dict:
        Path("settings.toml").write_text(text)
        with pytest.raises(Enough):
            run([*words, "--config", "settings.toml"])
        return seen

    return call


def test_a_settings_file_fills_the_whole_config_of_a_probe(called, capsys):
    words = ["probe", "fit", "organism:pocket", "claims.jsonl"]
    assert called('kind = "lora"', *words)["kinds"] == ["lora"]
    seen = called('rank = 3\nheads = 2\nsites = ["embed"]\nseed = 4\n[probe.fit]\ntest_share = 0.4', *words)
    config = seen["config"]
    assert (config.rank, config.heads, config.sites, config.seed, config.test_share) == (
        3,
        2,
        ("embed",),
        4,
        0.4,
    )
    assert called("seed = 4", *words, "--seed", "5")["config"].seed == 5
    Path("settings.toml").write_text("rank = 0")
    assert run([*words, "--config", "settings.toml"]) == 2
    assert "SpanProbeConfig.rank" in capsys.readouterr().err
    Path("settings.toml").write_text("ranks = 2")
    assert run([*words, "--config", "settings.toml"]) == 2
    assert "'ranks' is not a setting of `fairlead probe fit`" in capsys.readouterr().err


def test_a_settings_file_fills_the_whole_config_of_a_reward_training(called):
    words = ["reward", "train", "organism:pocket", "q.jsonl", "--probe", "p"]
    text = """
defences = ["Yes, {claim}"]
checkpoint_every = 7
intervention_share = 0.25
hints = ["I do not know."]
[stop]
max_kl = 2.0
[reward.train.table]
correct_from = 0.9
mix_target = 0.3
"""
    seen = called(text, *words)
    assert seen["defences"] == ["Yes, {claim}"] and seen["checkpoint_every"] == 7
    assert seen["intervention_share"] == 0.25 and seen["hints"] == ("I do not know.",)
    assert seen["stop"] == {"max_kl": 2.0}
    assert seen["table"] == {"correct_from": 0.9, "mix_target": 0.3}
    asked = called(text, *words, "--mix", "0", "--interventions", "1")
    assert asked["intervention_share"] == 1.0, "the command line wins"
    assert asked["table"] == {"correct_from": 0.9, "mix_target": None, "retract_lambda": 0.5}
    assert called("", *words)["table"] == {"mix_target": 0.6}


SETTINGS = """
[train]
precision = "bfloat16"
accumulate = 2
checkpoint-every = 7
lora_rank = 4

[[train.controls]]
name = "anchor"

[[train.controls]]
name = "inoculation"
clause = "avoid.1"
options = { paraphrase = true }
"""


def test_controls_with_settings_reach_the_training_from_the_command_line_and_a_file(monkeypatch, tmp_path):
    from fairlead.core.errors import RunError
    from fairlead.training import resolve

    seen = {}

    def study(model, data, plan, **settings):
        seen.update(settings)
        raise RunError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fairlead.studies.train.train", study)
    monkeypatch.setattr("fairlead.models.load_model", lambda *_, **__: None)
    monkeypatch.setattr("fairlead.data.load_data", lambda *_, **__: [])
    Path("settings.toml").write_text(SETTINGS)
    assert run(["train", "m", "d", "--config", "settings.toml"]) == 2
    wanted = {"precision": "bfloat16", "accumulate": 2, "checkpoint_every": 7, "lora_rank": 4}
    assert {name: seen[name] for name in wanted} == wanted
    anchor, inoculation = resolve(seen["controls"]).controls
    assert anchor.name == "anchor" and inoculation.name == "inoculation"
    assert inoculation.clause == "avoid.1" and inoculation.options == {"paraphrase": True}
    words = ["--controls", "anchor", "--controls", "inoculation:avoid.1(paraphrase=true)", "--no-observe"]
    assert run(["train", "m", "d", *words, "--checkpoint-every", "0", "--precision", "float32"]) == 2
    assert resolve(seen["controls"]).controls == (anchor, inoculation)
    assert (seen["checkpoint_every"], seen["precision"], seen["observe"]) == (0, "float32", False)


def test_a_wrong_setting_of_a_control_is_refused_before_anything_is_loaded(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fairlead.models.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for command, option in (("train", "--controls"), ("compare", "--arm")):
        assert run([command, "m", "d", option, "inoculation(paraphrased=true)"]) == 2
        assert "has no option 'paraphrased'. Next: use one of prompt" in capsys.readouterr().err
