"""A probe is found in its own folder, in a run folder of `probe fit`, and in a guard."""

from __future__ import annotations

import pytest

from fairlead.core.errors import ConfigError
from fairlead.probes import load_probe, probe_folder


def test_the_probe_of_a_run_folder_is_found(tmp_path):
    own, run = tmp_path / "own", tmp_path / "run"
    for folder in (own, run / "probe"):
        folder.mkdir(parents=True)
        (folder / "probe.json").write_text("{}")
    assert probe_folder(own) == own and probe_folder(run) == run / "probe"
    (own / "probe").mkdir()
    (own / "probe" / "probe.json").write_text("{}")
    assert probe_folder(own) == own, "its own files come first"


def test_a_folder_without_one_is_named(tmp_path):
    assert probe_folder(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_probe(tmp_path)
