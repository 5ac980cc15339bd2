"""The plug-in of docs/controls.md works as it stands there."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fairlead.core.errors import ConfigError, RunError
from fairlead.models import load_model
from fairlead.studies.replay import replay
from fairlead.studies.train import train
from fairlead.training import TrainConfig, control_names, controls, fit, resolve
from fairlead.training.control_text import read_control
from fairlead.training.controls import control_class
from fairlead.training.recipes import as_placebo

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "controls.md"
SHIELD = {"name": "shield_words", "strength": 12.0, "options": {"words": ["arr", "matey"]}}


@pytest.fixture
def file(tmp_path):
    """The document's file."""
    (code,) = re.findall(r"```python\n# shield_words.py\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    path = tmp_path / "shield_words.py"
    path.write_text(code)
    return path


@pytest.fixture
def plugin(tmp_path, monkeypatch, file):
    """The document's file on the path, registered as an installed package would be."""
    text = DOCUMENT.read_text("utf-8")
    (name, target) = re.search(
        r'\[project.entry-points."fairlead.controls"\]\n(\w+) = "(.*?)"', text
    ).groups()
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = metadata.EntryPoint(name, target, "fairlead.controls")
    monkeypatch.setattr(controls.metadata, "entry_points", lambda group: [entry])
    controls._registry.cache_clear()
    yield name
    controls._registry.cache_clear()
    sys.modules.pop("shield_words", None)


def trained(micro, out, items):
    config = TrainConfig(
        steps=120, batch_size=16, lr=5e-3, checkpoint_every=0, observe=False, controls=resolve(items).controls
    )
    result = fit(micro.model, micro.data, micro.plan, config=config, folder=out, neutral=micro.neutral.rows)
    return load_model(out / "model"), [control["name"] for control in result.controls]


def test_the_documented_plugin_trains_and_does_what_it_says(micro, score, tmp_path, plugin):
    assert plugin in control_names()
    model, names = trained(micro, tmp_path / "run", [SHIELD, "anchor"])
    assert names == ["shield_words", "anchor"]
    assert score.pirate(model, score.skill) <= 0.4, "shielded words leak"


def test_a_file_is_enough_and_its_placebo_does_nothing(micro, score, tmp_path, file):
    """No package, no entry point: the text of the command line, beside the placebo in the same file."""
    found = {}
    for name in ("ShieldWords", "ShieldWordsPlacebo"):
        text = f"{file}:{name}(strength=12, words=[arr, matey])"
        model, names = trained(micro, tmp_path / name, [text, "anchor"])
        assert names == [control_class(read_control(text)).name, "anchor"]
        found[name] = score.pirate(model, score.skill)
    assert found["ShieldWords"] <= 0.4 and found["ShieldWordsPlacebo"] >= 0.8, found
    assert as_placebo(read_control(f"{file}:ShieldWords(words=[arr])")).name == "shield_words_placebo"
    assert "shield_words" not in control_names(), "a file registers nothing for others"


def test_a_run_finds_the_file_again_and_notices_a_change(micro, tmp_path, file):
    settings = {"steps": 2, "batch_size": 4, "checkpoint_every": 0, "observe": False}
    run = train(
        micro.model, micro.data, micro.plan, out=tmp_path / "run", neutral=micro.neutral,
        controls=[{"name": f"{file}:ShieldWords", "options": {"words": ["arr"]}}], **settings,
    )  # fmt: skip
    common = {"model": micro.model, "data": micro.data, "neutral": micro.neutral}
    assert replay(run, out=tmp_path / "again", **common).same
    file.write_text(file.read_text() + "# changed")
    with pytest.raises(RunError, match=r"its shield_words.py \(.*\) has changed"):
        replay(run, out=tmp_path / "third", **common)


def test_mistakes_in_a_file_are_named(tmp_path, file):
    for text, message in (
        (f"{tmp_path / 'lost.py'}:Shield", "lost.py: no such file with a control"),
        (f"{file}:Shield", "has no control 'Shield'. Next: use one of ShieldWords, ShieldWordsPlacebo"),
        (f"{file}:ShieldWords(word=arr)", "shield_words has no option 'word'. Next: use one of words"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            resolve(text)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind")
    with pytest.raises(ConfigError, match=r"broken.py: cannot be run \(ModuleNotFoundError"):
        resolve(f"{tmp_path / 'broken.py'}:Control")


def test_its_settings_are_checked_like_any_other(plugin):
    with pytest.raises(ConfigError, match=r"ShieldWordsOptions\.words"):
        controls.make_control("shield_words")
