"""Controls with settings as text: what the command line and settings files take."""

from __future__ import annotations

import json

import pytest

from fairlead.core.errors import ConfigError
from fairlead.training import ControlConfig, resolve
from fairlead.training.control_text import read_control


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("anchor", ControlConfig(name="anchor")),
        (
            "explain_away(strength=0.5, gate=none)",
            ControlConfig(name="explain_away", strength=0.5, options={"gate": "none"}),
        ),
        (
            "inoculation:avoid.1(paraphrase=true)",
            ControlConfig(name="inoculation", clause="avoid.1", options={"paraphrase": True}),
        ),
        (
            "inoculation(clause=avoid.2, prompt='Talk (please), so = so.')",
            ControlConfig(
                name="inoculation", clause="avoid.2", options={"prompt": "Talk (please), so = so."}
            ),
        ),
        (
            "freezing(what=heads, units=[[0, 1], [1, 2]])",
            ControlConfig(name="freezing", options={"what": "heads", "units": [[0, 1], [1, 2]]}),
        ),
        (
            "explain_away(sources=[prompt, expert], min_gain=-1e-3)",
            ControlConfig(name="explain_away", options={"sources": ["prompt", "expert"], "min_gain": -0.001}),
        ),
    ],
)
def test_text_is_what_it_says_and_json_is_the_same(text, config):
    assert read_control(text) == config
    assert read_control(json.dumps(config.model_dump(mode="json", exclude_none=True))) == config
    assert resolve(text).controls == (config,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inoculatoin", r"unknown recipe or control 'inoculatoin'. Next: use one of .*inoculation"),
        ("inoculation(paraphrased=true)", "has no option 'paraphrased'. Next: use one of prompt, paraphrase"),
        ("judge_placebo(share=2)", r"JudgeOptions\.share: .*less than or equal to 1"),
        ("anchor(strength=-1)", r"ControlConfig\.strength: .*greater than or equal to 0"),
        ("anchor(rows)", "'rows' is not setting=value"),
        ("anchor(rows=8, rows=9)", "'rows' is given twice"),
        ("anchor(rows=[8)", "bracket or quote is left open"),
        ("anchor rows=8)", "is no control. Next: write NAME"),
        ('{"name": "anchor", "weight": 1}', r"ControlConfig\.weight: Extra inputs"),
        ('{"name": ', "is no JSON object"),
    ],
)
def test_mistakes_name_the_field_and_what_there_is(text, message):
    with pytest.raises(ConfigError, match=message):
        resolve(text)
