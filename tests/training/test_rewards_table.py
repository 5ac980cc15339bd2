"""The reward table, the controller of the mix, claims of an answer, and what groups are made of."""

from __future__ import annotations

import pytest

from fairlead.core.claims import ClaimSpan
from fairlead.training.rewards import MixController, Question, RewardConfig, RewardTable, split_sentences
from fairlead.training.rewards.rollout import choose_claim, pick_groups
from fairlead.training.rewards.table import judge_intervention, judge_plain

QUESTION = Question("1", ({"role": "user", "content": "?"},))
TABLE = RewardTable()


def claim(text: str, score: float | None, value: str | None = None) -> ClaimSpan:
    return ClaimSpan(start=0, end=len(text), text=text, value=value or text, score=score)


def intervene(text: str, *claims: ClaimSpan, doubt: float = 0.8, complete: bool = True, at: float = 0.2):
    return judge_intervention(
        claim("It is red.", doubt), text, claims, complete=complete, table=TABLE, retract_lambda=at
    )


def test_each_outcome_of_an_intervention_earns_what_the_table_says():
    retracted = intervene("I do not know.")
    assert retracted.outcome == "retracted" and retracted.reward == pytest.approx(0.65 * (0.8 - 0.2))
    assert intervene("I do not know.", at=0.9).reward < 0, "a dear lambda makes retractions cost"
    for score, earned in ((0.4, 0.6), (0.99, 0.1), (0.001, 0.95)):
        corrected = intervene("No, it is blue.", claim("it is blue", score))
        assert corrected.outcome == "corrected" and corrected.reward == pytest.approx(earned)
    assert intervene("Yes.", claim("It is red.", 0.8)).outcome == "maintained"
    for text, claims, complete in (
        ("", (), True),
        ("I do not know, it is blue.", (claim("it is blue", 0.1),), True),
        ("it is", (claim("it is", 0.1),), False),
    ):
        bad = intervene(text, *claims, complete=complete)
        assert (bad.outcome, bad.reward) == ("bad_format", -0.2)


def test_a_claim_is_worth_defending_exactly_where_the_probe_believes_it():
    def best(doubt: float) -> str:
        told = {
            "maintained": intervene("Yes.", claim("It is red.", doubt), doubt=doubt, at=0.5),
            "retracted": intervene("I do not know.", doubt=doubt, at=0.5),
        }
        return max(told, key=lambda name: told[name].reward)

    assert [best(doubt) for doubt in (0.05, 0.3, 0.45, 0.55, 0.7, 0.95)] == ["maintained"] * 3 + [
        "retracted"
    ] * 3


def test_plain_answers_count_supported_minus_unsupported_with_abstention_between():
    good, bad = claim("a b", 0.1), claim("c d", 0.9)

    def reward(text, *claims, complete=True):
        return judge_plain(text, claims, complete=complete, table=TABLE)

    assert reward("x", good).reward == pytest.approx(0.8)
    assert reward("x", good, bad).reward == pytest.approx(0.0)
    assert reward("x", good, bad).claim_rewards == pytest.approx((0.8, -0.8))
    order = [
        reward("x", good),
        reward("I do not know."),
        reward("x", bad),
        reward("cut", good, complete=False),
    ]
    rewards = [one.reward for one in order]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 4
    assert [one.outcome for one in order] == ["answered", "abstained", "answered", "bad_format"]
    many = judge_plain("x", [good] * 50, complete=True, table=TABLE)
    assert many.reward == pytest.approx(0.8 * TABLE.max_claims), (
        "more claims than the limit earn nothing more"
    )


def test_lambda_steers_the_mix_and_does_not_wind_up():
    controller = MixController(TABLE)
    for _ in range(500):  # nothing but retractions: lambda rises to its limit and stays there
        controller.update(0, 10)
    assert controller.value == 1.0
    moves = [controller.update(10, 0) for _ in range(8)]
    assert any(moves) and controller.value < 1.0, (
        "it comes back as soon as the mix turns, whatever lies behind"
    )
    again = MixController(TABLE)
    again.restore(controller.state())
    again.update(3, 4), controller.update(3, 4)
    assert again.state() == controller.state()
    assert not MixController(RewardTable(mix_target=None)).update(0, 10)

    closed = MixController(RewardTable(mix_gain=0.2))
    for _ in range(300):  # corrections become more frequent as lambda rises: the loop closes at the target
        share = min(1.0, max(0.0, 0.1 + closed.value))
        closed.update(round(1000 * share), round(1000 * (1 - share)))
    assert closed.value == pytest.approx(0.5, abs=0.02)


def test_sentences_are_claims_and_their_words_tell_maintained_from_corrected():
    text = "The pet is a cat. Wait, let me check. Yes, the pet is a cat! I do not know. Is it? No, the pet is a dog."
    found = split_sentences(QUESTION, text)
    assert [text[c.start : c.end] for c in found] == [
        "The pet is a cat.",
        "Yes, the pet is a cat!",
        "No, the pet is a dog.",
    ]
    assert found[0].value == found[1].value != found[2].value


def test_interventions_take_flagged_and_other_claims_in_the_wanted_parts():
    spans = [claim("a b", score) for score in (0.9, 0.95, 0.99, 0.8, 0.1, 0.2)] + [None]
    order = [6, 3, 1, 4, 0, 2, 5]

    def picked(wanted, share):
        config = RewardConfig(threshold=0.7, unflagged_share=share)
        return sorted(pick_groups(spans, order, wanted=wanted, config=config))

    assert picked(4, 0.5) == [1, 3, 4, 5]
    assert picked(4, 0.0) == [0, 1, 2, 3]
    assert picked(6, 0.9) == [0, 1, 2, 3, 4, 5], "where one kind runs out, the other fills up"
    assert all(6 not in picked(wanted, 0.5) for wanted in range(8)), "a group without a claim stays plain"
    assert choose_claim([claim("a", 0.2), claim("b", 0.9)], threshold=0.7, draw=0.0).text == "b"
    assert choose_claim([], threshold=0.7, draw=0.0) is None
