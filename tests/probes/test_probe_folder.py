"""A probe is found in its own folder, in a run folder of `probe fit`, and in a guard; it knows what it was fitted on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.errors import ConfigError
from fairlead.core.run import sha256_json
from fairlead.probes import SpanProbeConfig, examples_of, load_probe, probe_folder
from fairlead.probes.fitting import held_out, part_of
from fairlead.probes.labelled import load_questions


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


def test_answers_that_a_probe_was_fitted_on_are_told_from_others():
    """Of its own data only the test part is left; other data stay whole, even about the same people."""
    answers = [made(place) for place in range(60)]
    config = SpanProbeConfig.make(sites=("layers.0.resid_post",), seed=3)
    digest = sha256_json([one.model_dump(mode="json") for one in examples_of(answers)])
    probe = SimpleNamespace(config=config, data_sha256=digest)
    kept = held_out(answers, probe)
    assert 0 < len(kept) < 60 and {part_of(one.entity, config) for one in kept} == {"test"}
    assert held_out(answers[1:], probe) == answers[1:]
    bare = [one.model_copy(update={"claims": ()}) for one in answers]
    assert held_out(bare, probe) == bare


def made(place: int) -> ClaimedAnswer:
    claim = ClaimSpan(start=0, end=2, text="Ja", label="supported" if place % 2 else "contradicted")
    return ClaimedAnswer(
        id=str(place), messages=(), response="Ja.", claims=(claim,), entity=f"person {place}"
    )


def test_questions_of_answers_have_nothing_said_yet(tmp_path):
    path = tmp_path / "claims.jsonl"
    path.write_text(made(0).model_dump_json() + "\n")
    (one,) = load_questions(path)
    assert (one.id, one.response, one.claims) == ("0", "", ())
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "Hello?"}]}\n')
    assert load_questions(chats) is None
