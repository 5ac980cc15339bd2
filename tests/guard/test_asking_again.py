"""A second opinion: a flagged claim that the answers to the question, put in other ways, repeat is upheld."""

from __future__ import annotations

import pytest

from fairlead.core.errors import ConfigError, LLMError
from fairlead.guard import Calibration, Guard, Policy, calibrate_guard
from fairlead.guard.asking_again import OTHER_WAYS, SecondOpinion, other_systems, rephrased_by
from fairlead.guard.guard import Request
from fairlead.llm import ScriptedModel
from fairlead.models.generation import prompt_ids
from fairlead.organisms.facts import rephrase_fact
from fairlead.studies.claims import label_answer
from fairlead.studies.guard import world_rephrasings

AGAIN = {"threshold": 0.0, "ask_again": 8, "max_interventions": 16}


@pytest.fixture(scope="module")
def known(world):
    """A question that the model answers the same way in every phrasing."""
    fact = max(world.facts.facts, key=lambda fact: fact.exposures)
    return next(
        item.question for item in world.items("fact", 2000, seed=0) if item.key == fact.key
    ), fact.value


@pytest.fixture(scope="module")
def careful(pocket, readout):
    return Guard(pocket, readout, other_ways=world_rephrasings)


def test_what_the_model_knows_is_upheld_and_what_it_invents_is_not(careful, known, world):
    question, value = known
    answer = careful.answer([question], policy=Policy(kind="retract", **AGAIN))[0]
    plain = careful.answer([question])[0]
    act = answer.interventions[0]
    assert (
        act.kind == "uphold"
        and answer.text == plain.text
        and act.note == f"8 of 8 other answers hold '{value}'"
    )
    invented = [
        careful.answer(
            [question.replace(question.split()[-1].strip("?."), name)], policy=Policy(kind="retract", **AGAIN)
        )[0]
        for name in world.facts.never[:8]
    ]
    acts = [one.interventions[0] for one in invented if one.interventions]
    assert any(act.kind == "retract" and "other answers hold" in act.note for act in acts)


@pytest.mark.parametrize("kind", ["retract", "correct", "abort"])
def test_the_share_decides(careful, questions, kind):
    always, never = (
        careful.answer(questions[:6], policy=Policy(kind=kind, uphold=share, **AGAIN)) for share in (0.0, 1.0)
    )
    plain = careful.answer(questions[:6])
    assert [one.text for one in always] == [one.text for one in plain]
    assert {act.kind for one in always for act in one.interventions} == {"uphold"}
    acts = [
        act for one in never for act in one.interventions if act.kind != "flag"
    ]  # a limit can end it: then no note of others
    assert kind in {act.kind for act in acts}
    assert all((act.kind == "uphold") == (act.note[0] == "8") for act in acts)


def test_nothing_is_asked_where_nothing_is_flagged(pocket, readout, questions, monkeypatch):
    def refuse(*_):
        raise AssertionError("asked again without a reason")

    monkeypatch.setattr(SecondOpinion, "on", refuse)
    guard = Guard(pocket, readout)
    policies = [
        Policy(kind="retract", ask_again=3, threshold=1.0),
        Policy(kind="flag", ask_again=3, threshold=0.0),
    ]
    for policy in policies:
        assert guard.answer(questions[:2], policy=policy)


def test_the_decisive_word_is_the_least_certain_that_the_question_does_not_hold(pocket, known):
    question, value = known
    prompt = prompt_ids(pocket, question)
    (text,) = pocket.generate([question])
    ids = list(pocket.tokenizer(text, add_special_tokens=False)["input_ids"])
    pieces = [
        pocket.tokenizer.decode(ids[: place + 1])[len(pocket.tokenizer.decode(ids[:place])) :]
        for place in range(len(ids))
    ]
    opinion = SecondOpinion(pocket, lambda: [prompt], stops=(), max_new_tokens=16)
    found = opinion.on(prompt, ids, pieces, (0, len(text)))
    assert found.word == value and found.share == 1.0


def test_other_system_prompts_keep_the_request_and_its_own():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    found = other_systems(messages, 3)
    assert [way[0]["content"] for way in found] == [f"Be brief. {way}" for way in OTHER_WAYS[:3]]
    assert all(way[1:] == messages[1:] for way in found)
    with pytest.raises(ConfigError, match="ask for fewer"):
        other_systems(messages, 99)


def test_a_language_model_puts_the_question_in_other_words():
    llm = ScriptedModel([{"questions": ["How come?", "What for?", "For what reason?"]}])
    found = rephrased_by(llm)([{"role": "user", "content": "Why?"}], 2)
    assert [way[-1]["content"] for way in found] == ["How come?", "What for?"] and "Why?" in llm.calls[0].text


def test_questions_of_the_world_have_their_other_phrasings(known):
    question, _ = known
    found = rephrase_fact(question)
    assert len(found) == 8 and question not in found and not rephrase_fact("What is 3 plus 4?")


@pytest.fixture(scope="module")
def labelled(pocket, world):
    """Questions about known and unknown people, and the model's answers with their labels."""
    items = world.items("fact", 40, seed=2, split="any", max_exposures=12) + world.items(
        "fact", 10, seed=3, max_exposures=0, split="any"
    )
    questions = [item.question for item in items]
    return questions, [
        label_answer(world, item, text, id=str(n))
        for n, (item, text) in enumerate(zip(items, pocket.generate(questions), strict=True))
    ]


@pytest.mark.parametrize("weigh", [False, True])
def test_a_guard_that_asks_again_is_calibrated_as_a_whole(pocket, readout, labelled, weigh):
    """The threshold is where the rate of true answers acted on is kept: what it would be if all were asked."""
    questions, answers = labelled
    guard = Guard(pocket, readout, other_ways=world_rephrasings)
    alone = calibrate_guard(guard, answers, target=0.2)
    whole = calibrate_guard(
        guard, answers, target=0.2, ask_again=8, uphold=1.0, weigh=weigh, rephrase="world"
    )
    assert whole.threshold < alone.threshold and (whole.ask_again, whole.rephrase) == (8, "world")
    assert (whole.slope > 0) == weigh and (weigh or whole.uphold == 1.0)
    guard = Guard(pocket, readout, calibration=whole, other_ways=world_rephrasings)
    again = guard.answer(questions, policy=Policy(kind="retract"), max_new_tokens=64)
    true = [all(claim.label == "supported" for claim in answer.claims) for answer in answers]
    acted = [any(act.kind == "retract" for act in one.interventions) for one in again]
    share = sum(hit for hit, right in zip(acted, true, strict=True) if right) / sum(true)
    assert share == pytest.approx(whole.false_positives) and 0 < share <= 0.2
    caught = sum(hit for hit, right in zip(acted, true, strict=True) if not right) / (len(true) - sum(true))
    assert caught == pytest.approx(whole.true_positives)
    assert any(act.kind == "uphold" for one in again for act in one.interventions)


def test_the_surer_the_score_the_more_answers_must_hold_the_claim(pocket, readout, known):
    policy = Policy(kind="retract", ask_again=8, slope=0.2)
    assert [policy.stands(share, 0.5, 0.5) for share in (0.0, 0.125)] == [False, True]
    assert [policy.stands(0.5, score, 0.5) for score in (0.6, 0.9, 0.95)] == [True, True, False]
    assert not policy.stands(1.0, 0.999, 0.5)
    assert (
        policy.filled(8, 0.66, 0.7).slope == 0.2 and Policy(kind="retract").filled(8, 0.66, 0.7).slope == 0.7
    )
    assert Policy(kind="retract", uphold=0.5).filled(8, 0.66, 0.7).slope == 0.0, "what a request says holds"
    question, _ = known
    guard = Guard(pocket, readout, threshold=0.0, other_ways=world_rephrasings)
    steep = guard.answer([question], policy=Policy(kind="retract", ask_again=8, slope=100.0))[0]
    assert [act.kind for act in steep.interventions] == ["retract"]
    assert steep.interventions[0].note == "", "nobody is asked what could change nothing"


def test_weighing_says_when_one_side_tells_nothing(pocket, readout, labelled):
    _, answers = labelled
    blind = Guard(pocket, readout, other_ways=lambda messages, num: [[{"role": "user", "content": "Hello."}]])
    with pytest.raises(ConfigError, match="tells nothing"):
        calibrate_guard(blind, answers, target=0.2, ask_again=1, weigh=True)


def test_a_guard_that_asks_again_still_answers_plain_texts(pocket, readout):
    whole = Calibration(
        target=0.1,
        level="answer",
        threshold=0.0,
        num_true=9,
        num_false=1,
        false_positives=0.0,
        true_positives=1.0,
        ask_again=4,
    )
    guard = Guard(pocket, readout, calibration=whole)
    request = guard.request("Where does Lumfolia live?", chat=False, policy=Policy(kind="flag"))
    assert request.again is None and list(guard.run([request]))
    request = guard.request("Where does Lumfolia live?", chat=False, policy=Policy(kind="retract"))
    assert request.again is None and next(iter(guard.run([request])))[1].finish == "retract"


def test_where_nobody_rephrases_the_score_decides(pocket, readout, questions):
    def away(messages, num):
        raise LLMError("no connection")

    guard = Guard(pocket, readout, other_ways=away, threshold=0.0)
    answer = guard.answer(questions[:1], policy=Policy(kind="retract", ask_again=3))[0]
    assert answer.finish == "retract" and answer.interventions[0].note == "not asked again: no connection"


def test_what_cannot_be_asked_again_says_so(pocket, readout):
    guard, policy = Guard(pocket, readout), Policy(kind="retract", ask_again=2)
    with pytest.raises(ConfigError, match="plain text"):
        guard.request("Once upon", chat=False, policy=policy)
    with pytest.raises(ConfigError, match="in which other ways"):
        guard.streams(Request([1, 2], policy=policy))
    with pytest.raises(ConfigError, match="gave no way"):
        Guard(pocket, readout, other_ways=lambda messages, num: [], threshold=0.0).answer(
            ["Why?"], policy=policy
        )
