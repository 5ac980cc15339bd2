"""The plug-in of docs/controls.md works as it stands there."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fairlead.core.errors import ConfigError
from fairlead.training import TrainConfig, control_names, controls, fit, resolve

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "controls.md"
SHIELD = {"name": "shield_words", "strength": 12.0, "options": {"words": ["arr", "matey"]}}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The document's file on the path, registered as an installed package would be."""
    text = DOCUMENT.read_text("utf-8")
    (code,) = re.findall(r"```python\n# shield_words.py\n(.*?)```", text, re.S)
    (name, target) = re.search(
        r'\[project.entry-points."fairlead.controls"\]\n(\w+) = "(.*?)"', text
    ).groups()
    (tmp_path / "shield_words.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = metadata.EntryPoint(name, target, "fairlead.controls")
    monkeypatch.setattr(controls.metadata, "entry_points", lambda group: [entry])
    controls._registry.cache_clear()
    yield name
    controls._registry.cache_clear()
    sys.modules.pop("shield_words", None)


def test_the_documented_plugin_trains_and_does_what_it_says(micro, score, tmp_path, plugin):
    assert plugin in control_names()
    arm = resolve([SHIELD, "anchor"])
    config = TrainConfig(
        steps=120, batch_size=16, lr=5e-3, checkpoint_every=0, observe=False, controls=arm.controls
    )
    result = fit(
        micro.model,
        micro.data,
        micro.plan,
        config=config,
        folder=tmp_path / "run",
        neutral=micro.neutral.rows,
    )
    assert [control["name"] for control in result.controls] == ["shield_words", "anchor"]
    from fairlead.models import load_model

    assert score.pirate(load_model(tmp_path / "run" / "model"), score.skill) <= 0.4, "shielded words leak"


def test_its_settings_are_checked_like_any_other(plugin):
    with pytest.raises(ConfigError, match=r"ShieldWordsOptions\.words"):
        controls.make_control("shield_words")
