"""Thresholds keep their false-positive rate on answers they have not seen, and are found where the guard will use them."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.errors import ConfigError
from fairlead.guard import Guard, calibrate, calibrate_guard, find_threshold, read_answers


@pytest.mark.parametrize(("num", "target"), [(39, 0.05), (100, 0.05), (200, 0.1), (57, 0.3)])
def test_a_new_true_answer_is_flagged_at_most_at_the_target_rate(num, target):
    """The guarantee is over draws of the calibration set too: its mean over many is the rate itself."""
    generator, rates = np.random.default_rng(0), []
    for _ in range(2000):
        threshold = find_threshold(generator.random(num).tolist(), target)
        rates.append(1 - threshold)  # scores are uniform
    allowed = np.floor(target * (num + 1)) / (num + 1)
    assert abs(np.mean(rates) - allowed) < 4 * np.std(rates) / np.sqrt(2000) and allowed <= target


def test_the_rate_holds_on_the_answers_themselves_with_ties():
    found = calibrate([0.5] * 30 + [0.9] * 5, [0.95] * 4, target=0.05)
    assert found.false_positives <= 0.05 and found.threshold > 0.9 and found.true_positives == 1.0


def test_too_few_answers_and_impossible_rates():
    with pytest.raises(ConfigError, match="at least 19"):
        find_threshold([0.1] * 18, 0.05)
    assert find_threshold([0.1] * 19, 0.05) > 0.1
    with pytest.raises(ConfigError, match="between 0 and 1"):
        find_threshold([0.1], 1.0)


def labelled(world, questions_of, answers):
    found = []
    for item, text in zip(questions_of, answers, strict=True):
        claims = tuple(
            ClaimSpan(
                start=c.start,
                end=c.end,
                text=c.span,
                label="insufficient" if c.label == "not_answerable" else c.label,
            )
            for c in world.verify(item, text)
        )
        messages = ({"role": "user", "content": item.question},)
        found.append(ClaimedAnswer(id=item.key, messages=messages, response=text, claims=claims))
    return found


@pytest.fixture(scope="module")
def calibration_answers(world, pocket):
    items = world.items("fact", 40, seed=2, split="any", min_exposures=40)
    items += world.items("fact", 20, seed=2, split="any", max_exposures=0)
    return labelled(world, items, pocket.generate([item.question for item in items]))


def test_reading_finds_the_scores_that_the_guard_finds_while_it_writes(guard, calibration_answers):
    read = list(read_answers(guard, calibration_answers, batch_size=7))
    written = guard.answer([answer.messages for answer in calibration_answers])
    for spans, answer, known in zip(read, written, calibration_answers, strict=True):
        assert answer.text == known.response
        assert [span.text for span in spans] == [claim.text for claim in answer.claims]
        for one, two in zip(spans, answer.claims, strict=True):
            assert abs(one.score - two.score) < 1e-4
        assert [span.label for span in spans] == [claim.label for claim in known.claims]


def test_a_calibrated_guard_flags_as_few_true_answers_as_asked(guard, pocket, readout, calibration_answers):
    found = calibrate_guard(guard, calibration_answers, target=0.1)
    assert found.num_true + found.num_false == len(calibration_answers) and found.num_false == 20
    made = Guard(pocket, readout, calibration=found)
    answers = made.answer([answer.messages for answer in calibration_answers])
    true = [
        bool(a.flagged)
        for a, known in zip(answers, calibration_answers, strict=True)
        if known.claims[0].label == "supported"
    ]
    assert np.mean(true) == pytest.approx(found.false_positives) and found.false_positives <= 0.1
    by_claim = calibrate_guard(guard, calibration_answers, target=0.1, level="claim")
    assert by_claim.num_true == found.num_true, "one claim an answer here"


def test_answers_without_labels_calibrate_nothing(guard, calibration_answers):
    bare = [answer.model_copy(update={"claims": ()}) for answer in calibration_answers]
    with pytest.raises(ConfigError, match="label claims"):
        calibrate_guard(guard, bare, target=0.1)
