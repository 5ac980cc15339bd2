"""The public face: what `import fairlead` offers, and that it costs no heavy import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import fairlead

PUBLIC = """
Catalogue CatalogueError ClaimSpan ClaimedAnswer EditSet Guard Policy SpanProbe SpanReadout Variant autosteer fit_span_probe
load_probe load_span_probe
ChatData Clause Comparison Concept Config ConfigError DataError Decision Dictionary DictionaryConfig
DictionaryError Direction FairleadError JudgeError LLMError LinearReadout Measure Menu MenuLine
MissingDependencyError Model ModelError OrganismError Plan Probe Readout Run RunError Site SiteError Spec
SpecError TrainingError Verification __version__ build_concepts compare connect decide fit_probe load_data
load_dictionary load_model load_spec load_suite parse_spec plan_controls preview train train_dictionary train_rewards
verify write_report
""".split()

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "sklearn",
    "scipy",
    "pandas",
    "plotly",
    "pydantic",
)


def test_the_public_surface_is_what_it_was():
    assert sorted(fairlead.__all__) == sorted(PUBLIC), "a public name came or went: say so in CHANGELOG.md"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_can_be_imported(name):
    assert getattr(fairlead, name) is not None
    if name != "__version__":
        assert callable(getattr(fairlead, name)), f"{name} is a module, not what the module defines"


def test_types_and_run_time_agree_on_where_names_live():
    tree = ast.parse(Path(fairlead.__file__).read_text(encoding="utf-8"))
    typed = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(home, name) for home, names in fairlead._HOMES.items() for name in names}
    assert typed == lazy


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fairlead.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import fairlead",
        "from fairlead.cli.app import run; run(['--help'])",
        "from fairlead.cli.app import app",
    ],
)
def test_neither_the_import_nor_the_help_loads_a_heavy_package(code):
    light = set(HEAVY) - ({"pydantic"} if "cli" in code else set())  # typer itself may use pydantic
    script = (
        f"import contextlib, io, json, sys\nwith contextlib.redirect_stdout(io.StringIO()):\n    {code}\n"
    )
    script += "print(json.dumps(list(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not light & set(json.loads(answer.stdout)), (
        f"`{code}` must stay light: move the import into the function"
    )


def test_telemetry_of_the_hub_and_of_trl_is_off_by_default():
    script = "import os\nos.environ.pop('HF_HUB_DISABLE_TELEMETRY', None)\nimport fairlead\nprint(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "1"
