"""A probe is found in its own folder, in a run folder of `probe fit`, and in a guard; it knows what it was fitted on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.errors import ConfigError
from fairlead.core.nouns import Direction
from fairlead.core.run import sha256_json
from fairlead.core.site import Site
from fairlead.probes import Probe, SpanProbeConfig, examples_of, load_probe, probe_folder
from fairlead.probes.labelled import load_questions, name_of
from fairlead.probes.parts import part_of
from fairlead.probes.seen import held_out, key_of, num_seen, seen_keys
from fairlead.probes.suitable import check_label


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
        load_probe(tmp_path, model=None)


def test_people_whose_labels_a_probe_has_seen_are_told_from_others():
    """By their names, whatever file they stand in and however it was cut; texts about nobody by themselves."""
    answers = [made(place) for place in range(60)]
    config = SpanProbeConfig.make(sites=("layers.0.resid_post",), seed=3)
    probe = SimpleNamespace(config=config, data_sha256="", seen=seen_keys(examples_of(answers), config))
    test = {one.entity for one in answers if part_of(one.entity, config) == "test"}
    kept = held_out(answers, probe)
    assert 0 < len(test) < 60 and {one.entity for one in kept} == test
    assert held_out(answers[1:20], probe) == [one for one in answers[1:20] if one.entity in test]
    others = [one.model_copy(update={"id": f"x{k}", "response": "No."}) for k, one in enumerate(answers)]
    assert len(held_out(others, probe)) == len(test), "the same people say something else in another file"
    strangers = [one.model_copy(update={"entity": f"stranger {one.id}"}) for one in answers]
    assert held_out(strangers, probe) == strangers
    nobody = [one.model_copy(update={"entity": ""}) for one in answers]
    probe.seen = seen_keys(examples_of(nobody[:1]), SpanProbeConfig.make(test_share=0.0))
    assert held_out(nobody, probe) == [], "all of them say the same"
    assert held_out([nobody[0].model_copy(update={"response": "Oh."})], probe), (
        "ids of two files may be the same"
    )
    assert num_seen(["person 1", "", "stranger"], SimpleNamespace(seen=(key_of("person 1"),))) == 1
    assert num_seen(["person 1"], object()) == 0


def test_a_probe_of_before_keys_knows_its_own_data_alone():
    answers = [made(place) for place in range(60)]
    config = SpanProbeConfig.make(sites=("layers.0.resid_post",), seed=3)
    digest = sha256_json([one.model_dump(mode="json") for one in examples_of(answers)])
    probe = SimpleNamespace(config=config, data_sha256=digest, seen=())
    kept = held_out(answers, probe)
    assert 0 < len(kept) < 60 and {part_of(one.entity, config) for one in kept} == {"test"}
    assert held_out(answers[1:], probe) == answers[1:]
    bare = [one.model_copy(update={"claims": ()}) for one in answers]
    assert held_out(bare, probe) == bare


@pytest.mark.parametrize(("name", "label", "fine"), [
    ("unsupported", None, True), ("right", None, False), ("right", "right", True), ("claim", "right", False), ("", None, True),
])  # fmt: skip
def test_a_probe_of_something_wanted_is_refused_until_its_user_confirms(name, label, fine):
    for readout in (
        SimpleNamespace(name=name),
        Probe(Direction(Site.parse("embed"), torch.zeros(2), name), 0.0, "logistic"),
    ):
        if fine:
            check_label(readout, label)
        else:
            with pytest.raises(ConfigError, match=f"tells the probability of '{name}'.*--label {name}"):
                check_label(readout, label)


def test_a_file_says_what_its_labels_tell(tmp_path):
    claims, other = tmp_path / "claims.jsonl", tmp_path / "other.jsonl"
    claims.write_text(made(0).model_dump_json() + "\n")
    other.write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert [name_of(claims, task=task) for task in ("classify", "correct")] == ["unsupported", "right"]
    assert name_of(other) == "true", "labels of anything are not called unsupported"
    assert name_of(other, positive="pos") == "pos"


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
