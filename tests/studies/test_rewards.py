"""The study, the run folder, the page and the questions about the pocket world."""

from __future__ import annotations

import json

import pytest
from reward_world import DoubtOf, label, questions, settings, split

import fairlead as fl
from fairlead.core.errors import ConfigError, RunError
from fairlead.data import ChatData
from fairlead.organisms import World
from fairlead.probes.seen import key_of
from fairlead.reports import reward_pictures, write_rewards
from fairlead.studies.pocket_claims import fact_questions, is_heldout, pocket_verifier
from fairlead.studies.rewards import as_verifier
from fairlead.training.rewards import Question, load_reward_run


@pytest.fixture(scope="module")
def found(micro, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards") / "run"
    return fl.train_rewards(
        micro.model, questions(), probe=DoubtOf(micro.model, "b1"), out=folder, config=settings(), splitter=split,
        verifier=label, neutral=micro.neutral,
    )  # fmt: skip


def test_a_run_can_be_opened_and_its_model_loaded(found, micro):
    again = load_reward_run(found.folder)
    assert again == found and again.config == settings()
    assert again.load_model().fingerprint != micro.model.fingerprint
    assert [look.step for look in again.looks] == [0, 3, 6] and len(again.steps) == 6
    assert again.looks[0].neutral_loss is not None
    assert {path.name for path in found.folder.iterdir()} >= {
        "run.json",
        "reward.json",
        "rewards.jsonl",
        "monitors.jsonl",
        "model",
    }
    assert not (found.folder / "checkpoints").exists() and not (found.folder / "start").exists()
    about = json.loads((found.folder / "run.json").read_text())
    assert about["study"] == "reward" and about["inputs"]["model"] == micro.model.fingerprint


def test_the_page_shows_what_was_seen(found, tmp_path):
    page = write_rewards(tmp_path / "page.html", found).read_text()
    assert page.count("<svg") == len(reward_pictures(found)) >= 5 and "<script" not in page
    assert not any(len(svg) < 1000 for svg in reward_pictures(found))
    last = found.looks[-1]
    assert (
        f"{last.unsupported:.0%}" in page
        and f"{last.frozen_score:.3f}" in page
        and found.frozen_sha256[:16] in page
    )


def test_other_runs_and_other_probes_are_refused(found, micro, tmp_path):
    with pytest.raises(ConfigError, match="reads no claims"):
        fl.train_rewards(micro.model, questions(), probe=object(), out=tmp_path / "x")
    with pytest.raises(ConfigError, match="unknown verifier 'oracle'"):
        fl.train_rewards(
            micro.model, questions(), probe=DoubtOf(micro.model, "b1"), out=tmp_path / "x", verifier="oracle"
        )
    with pytest.raises(ConfigError, match="RewardConfig"):
        fl.train_rewards(
            micro.model, questions(), probe=DoubtOf(micro.model, "b1"), out=tmp_path / "x", stepz=3
        )
    with pytest.raises(RunError):
        load_reward_run(tmp_path / "x")


def test_a_probe_of_something_wanted_and_practice_on_its_own_people_are_told(micro, tmp_path, capsys):
    probe = DoubtOf(micro.model, "b1")
    probe.name = "right"
    asked = [q._replace(entity=f"person {k}") for k, q in enumerate(questions())]
    common = {"probe": probe, "config": settings(steps=1), "splitter": split}
    with pytest.raises(ConfigError, match="tells the probability of 'right'"):
        fl.train_rewards(micro.model, asked, out=tmp_path / "x", **common)
    probe.seen = (key_of("person 1"), key_of("person 2"))
    run = fl.train_rewards(micro.model, asked, out=tmp_path / "x", label="right", **common)
    assert any("2 of 8 questions are about entities whose labels" in note for note in run.notes)
    rest = fl.train_rewards(micro.model, asked, out=tmp_path / "y", label="right", unseen=True, **common)
    assert rest.notes == (), "the two people are left out"
    assert (
        json.loads((tmp_path / "y" / "run.json").read_text())["inputs"]["data"]
        != json.loads((tmp_path / "x" / "run.json").read_text())["inputs"]["data"]
    )


def test_verifiers_of_both_kinds_label_what_the_splitter_finds(tmp_path, monkeypatch):
    from fairlead.llm import ScriptedModel

    asked = Question("q", ({"role": "user", "content": "Who was Ada?"},), "Ada")
    said = "Ada was a poet. Ada knew Babbage."
    table = tmp_path / "table.jsonl"
    table.write_text('{"claim": "Ada knew Babbage.", "label": "supported"}\n')
    verify = as_verifier(f"table:{table}")
    assert [(c.text, c.label) for c in verify(asked, said)] == [
        ("Ada was a poet.", "insufficient"), ("Ada knew Babbage.", "supported"),
    ]  # fmt: skip
    (tmp_path / "ada.txt").write_text("Ada knew Babbage and wrote notes.")
    llm = ScriptedModel([{"label": "contradicted"}, {"label": "contradicted"}] * 2)
    monkeypatch.setattr("fairlead.studies.verifying.connect", lambda name: llm)
    with pytest.raises(ConfigError, match="--evidence"):
        as_verifier("llm:x")
    assert [c.label for c in as_verifier("llm:x", evidence=tmp_path / "ada.txt")(asked, said)] == [
        "contradicted"
    ] * 2
    assert as_verifier(label) is label and as_verifier(None) is None


def test_data_sets_become_questions_and_texts_do_not(micro):
    from fairlead.core.errors import DataError
    from fairlead.data import Row
    from fairlead.training.rewards import questions_of

    assert [q.messages[-1]["content"] for q in questions_of(micro.neutral)][:2] == ["q0", "q1"]
    with pytest.raises(DataError, match="no question"):
        questions_of(ChatData([Row(text="a text")], source="texts"))


def test_pocket_questions_keep_people_apart_and_are_verified_by_their_text_alone():
    world = World()
    train, test = (fact_questions(world, 60, seed=1, heldout=held) for held in (False, True))
    assert not {q.entity for q in train} & {q.entity for q in test} and all(
        is_heldout(q.entity) for q in test
    )
    assert sum(world.exposures(q.meta["item"]) == 0 for q in train) == 30
    verify = pocket_verifier(world)
    for question in train[:20]:
        item = question.meta["item"]
        bare = Question("x", question.messages)
        claims = verify(bare, item.answer)
        assert claims == verify(question, item.answer) and len(claims) == 1
        assert claims[0].label == ("supported" if item.value else "insufficient")
        assert not verify(bare, "I do not know.")
    assert not verify(Question("x", ({"role": "user", "content": "Hello"},)), "It is red.")
