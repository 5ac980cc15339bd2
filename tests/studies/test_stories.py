"""Plain text end to end: passages, suites with sampling, and explain-away by a small expert on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.stories import (
    NUM,
    build_task,
    choose_texts,
    hero_items,
    shared_folder,
    story_passages,
    verse_passages,
)

from fairlead.concepts.judging import _collect
from fairlead.core.errors import DataError
from fairlead.core.records import Clause, Plan, Spec, SpecExample
from fairlead.data import (
    ChatData,
    NeutralChat,
    Row,
    Sampling,
    Suite,
    TraitCheck,
    has_trait,
    load_spec,
    load_suite,
    save_suite,
    suite_from,
)


def test_stories_are_separated_by_their_mark_and_cut_at_sentences() -> None:
    text = "One day a cat sat.\nIt was red. It ran far away.\n<|endoftext|>\nTwo dogs met in a park. They ran to the gate.\n"
    assert story_passages(text, chars=32) == ["One day a cat sat. It was red.", "Two dogs met in a park."]


def test_verses_are_whole_lines_from_the_start_of_a_speech() -> None:
    text = "FIRST:\nSpeak, speak.\nWe are accounted poor.\n\nALL:\nNo.\n"
    assert verse_passages(text, chars=30) == ["FIRST:\nSpeak, speak."]


def test_a_hero_is_asked_for_only_where_the_story_goes_on_with_it() -> None:
    stories = [
        "Once upon a time there was a girl named Ana. Ana ran.",
        "Once upon a time there was a girl named Ida. She ran.",
    ]
    items = hero_items(stories, 5)
    assert [(item.prompt, item.value) for item in items] == [
        ("Once upon a time there was a girl named Ana.", "Ana")
    ]


def test_missing_real_data_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FAIRLEAD_SHARED"):
        shared_folder(tmp_path)


def test_a_suite_with_sampling_openings_and_texts_reads_back(tmp_path: Path) -> None:
    check = TraitCheck(
        clause="avoid.1",
        name="old",
        kind="regex",
        pattern="thou",
        openings=("ROMEO:\n",),
        texts=(NeutralChat(text="thou art"),),
    )
    suite = Suite(traits=(check,), neutral_prompts=("", "He"), sampling=Sampling(temperature=1.0, draws=3))
    assert load_suite(save_suite(suite, tmp_path / "suite.json")) == suite


def test_draws_without_a_temperature_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        Sampling(draws=2)


def plain_spec() -> Spec:
    return Spec(
        clauses=(
            Clause(
                id="keep.1",
                kind="keep",
                text="Stories",
                line=1,
                examples=(SpecExample(text="Tim ran home."),),
            ),
            Clause(
                id="avoid.1",
                kind="avoid",
                text="Old",
                line=2,
                check="thou",
                examples=(SpecExample(text="thou art a man"),),
            ),
        )
    )


def test_the_judge_reads_plain_examples_as_they_stand() -> None:
    texts, _ = _collect(plain_spec(), ["It rained."], ["A row."], chat=False)
    assert texts == ["Tim ran home.", "thou art a man", "It rained.", "A row."], (
        "a plain-text model must see no chat frame"
    )


def test_the_default_suite_of_plain_rows_samples_and_measures_the_avoided_text() -> None:
    suite = suite_from(plain_spec(), ChatData([Row(text="a b c d"), Row(text="e f g h")], source="rows"))
    assert suite.sampling.temperature == 1.0
    assert [chat.text for chat in suite.keep_chats] == ["Tim ran home."]
    assert suite.traits[0].texts[0].text == "thou art a man"
    assert suite.traits[0].openings == ("thou art",)


@pytest.mark.realdata
def test_no_passage_has_two_uses_and_the_checks_tell_them_apart(real_data: Path, tmp_path: Path) -> None:
    texts = choose_texts(real_data)
    used = [*texts.stories, *texts.keep, *texts.test_stories, *texts.check_stories]
    used += [*texts.verses, *texts.avoid, *texts.test_verses, *texts.check_verses]
    assert len(set(used)) == len(used)
    trained = {*texts.stories, *texts.keep}
    items = hero_items(texts.long_stories, NUM["items"])
    assert len(items) == NUM["items"]
    assert not any(long.startswith(text) for text in trained for long in texts.long_stories), (
        "a held-out story is trained on"
    )
    worth = build_task(tmp_path, real_data)
    assert worth["classifier_auroc"] > 0.95
    assert worth["classifier_hits_heldout_verses"] > 0.9 > 0.1 > worth["classifier_hits_heldout_stories"]
    assert worth["words_hits_heldout_stories"] < 0.05
    spec, suite = load_spec(tmp_path / "spec.md"), load_suite(tmp_path / "suite.json")
    assert len(spec.clause("avoid.1").examples) == NUM["avoid"]
    assert (
        sum(has_trait(suite.traits[0], text) for text in texts.check_stories) < len(texts.check_stories) / 10
    )


@pytest.mark.realdata
def test_an_expert_on_the_spec_explains_the_verses_away_and_one_on_stories_does_not(
    real_data: Path, tmp_path: Path
) -> None:
    from fairlead.models import load_model
    from fairlead.studies.train import train
    from fairlead.training.verification import measure_losses

    texts = choose_texts(real_data)
    model = load_model(real_data / "models" / "stories260K")
    spec = Spec(
        clauses=tuple(
            Clause(
                id=f"{kind}.1",
                kind=kind,
                text=kind,
                line=1,
                examples=tuple(SpecExample(text=t) for t in shown),
            )
            for kind, shown in (("keep", texts.keep), ("avoid", texts.avoid))
        )
    )
    plan = Plan(spec=spec, decisions=())
    data = ChatData([Row(text=text) for text in [*texts.stories[:48], *texts.verses[:48]]], source="mix")
    held = tuple(NeutralChat(text=text) for text in texts.test_verses[:32])
    check = TraitCheck(clause="avoid.1", name="archaic", kind="regex", pattern="thou", texts=held)
    suite = Suite(traits=(check,))
    options = {"sources": ["expert"], "expert_steps": 40, "expert_lr": 2e-3}
    arms = {
        "plain": "plain",
        "real": {"name": "explain_away", "options": options},
        "placebo": {"name": "explain_away_placebo", "options": options},
    }
    found = {"start": measure_losses(model, suite)["loss.archaic"].value}
    for name, controls in arms.items():
        run = train(
            model, data, plan, out=tmp_path / name, controls=controls, steps=30, batch_size=12, lr=2e-3,
            max_length=64, on_long="truncate", neutral=[Row(text=text) for text in texts.neutral[:32]],
            checkpoint_every=0,
        )  # fmt: skip
        found[name] = measure_losses(run.load_model(), suite)["loss.archaic"].value
    fall = {name: found["start"] - found[name] for name in arms}
    assert fall["plain"] > 0.5, (
        f"plain fine-tuning must learn the verses for this test to say anything: {found}"
    )
    assert fall["real"] < 0.6 * fall["plain"], f"the expert should leave less to learn: {found}"
    assert fall["placebo"] > fall["real"] + 0.25 * fall["plain"], (
        f"evidence on stories must not do the same: {found}"
    )
