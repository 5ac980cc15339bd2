"""Ranking, shares, intervals and the bag of tokens, on numbers made by hand and on the tiny model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairlead.core.errors import ConfigError
from fairlead.core.records import Concept
from fairlead.data import Encoded, Row
from fairlead.gradients import bag_of_tokens, build_menu, rank, score_concepts
from fairlead.gradients.menu import EXPLAINS, FLOOR
from fairlead.gradients.uptake import NUM_HALVES, NUM_RESAMPLES, Uptake

NAMES = ("everywhere", "skill", "trait", "absent")
CONCEPTS = [Concept(id=f"c{i}", label=name, site="embed", latents=(i,)) for i, name in enumerate(NAMES)]


def made(uptake, mass, act, response) -> Uptake:
    value = torch.tensor(uptake, dtype=torch.float64)
    num = len(uptake)
    return Uptake(
        units=tuple((i,) for i in range(num)),
        sum_F=value * 100,
        mass_F=torch.tensor(mass, dtype=torch.float64),
        act_F=torch.tensor(act, dtype=torch.float64),
        act_response_F=torch.tensor(response, dtype=torch.float64),
        boot_RF=(value * 100).expand(NUM_RESAMPLES, num)
        + torch.linspace(-1, 1, NUM_RESAMPLES, dtype=torch.float64)[:, None],
        boot_tokens_R=torch.full((NUM_RESAMPLES,), 100.0, dtype=torch.float64),
        half_HF=torch.zeros(NUM_HALVES, num, dtype=torch.float64),
        carried_U=torch.full((num,), 3.0),
        fires_U=torch.full((num,), 4.0),
        numbers=torch.tensor([200.0, 100.0, 8.0, 3.0, 4.0, 3.5], dtype=torch.float64),
        table_index=torch.arange(2),
        table_unit=torch.tensor([[0, 1], [1, 2]]),
        table_value=torch.tensor([[1.0, 2.0], [3.0, -1.0]]),
        example_loss=torch.ones(2),
        example_tokens=torch.full((2,), 10.0),
    )


@pytest.fixture
def data():
    # "everywhere" has most traffic and uptake; the skill pulls down on balance, and only its presence is unusual
    return made([0.9, -0.2, 0.1, 0.0], [50, 30, 20, 0], [50, 40, 10, 0], [50, 20, 30, 0])


@pytest.fixture
def usual():
    return made([0.1, 0.0, 0.0, 0.0], [50, 5, 1, 1], [85, 10, 0.01, 5], [85, 10, 0.01, 5])


def test_what_is_unusual_comes_first_also_when_its_uptake_is_small_or_negative(data, usual):
    scores = score_concepts(data, CONCEPTS, usual)
    top = [CONCEPTS[place].label for place in rank(scores).order]
    assert set(top[:2]) == {"skill", "trait"}
    assert CONCEPTS[rank(scores, "uptake").order[0]].label == "everywhere", "raw uptake does not"
    assert scores.surprise[3] == 0.0, "what the gradient does not touch is no news"
    shares = [40 / 100, 30 / 100]
    assert scores.ratio[1] == pytest.approx(
        math.log((shares[0] + FLOOR) / (10 / 100.01 + FLOOR)), rel=1e-3
    ), "the skill: whole text"
    assert scores.ratio[2] == pytest.approx(math.log((0.3 + FLOOR) / (0.01 / 100.01 + FLOOR)), rel=1e-3), (
        "the trait: responses"
    )


def company(brings: dict[int, tuple[int, float]]):
    """Companions by hand: concept -> (what comes along, its extra presence)."""

    def of(concept, presence):
        extra = np.zeros((2, len(NAMES)))
        if concept in brings:
            other, share = brings[concept]
            extra[:, other] = share
        return extra

    return of


def test_what_comes_along_with_a_line_above_is_no_news(usual):
    data = made([0.1, 0.1, 0.1, 0.0], [20, 20, 40, 20], [40, 20, 30, 10], [40, 20, 30, 10])
    scores = score_concepts(data, CONCEPTS, usual)
    alone, placebo = rank(scores), rank(scores, companions=company({}))
    assert placebo.order.tolist() == alone.order.tolist() and (placebo.surprise == alone.surprise).all()
    given = rank(scores, companions=company({2: (3, 0.03)}))  # "trait" brings "absent" with it
    assert NAMES[given.order[0]] == "trait" and given.surprise[2] == scores.surprise[2], "none above it"
    assert given.surprise[1] == scores.surprise[1], "the skill comes from elsewhere"
    by_hand = math.sqrt(scores.traffic[3]) * np.log((0.1 + FLOOR) / (scores.usual[:, 3] + 0.03 + FLOOR)).max()
    assert given.surprise[3] == pytest.approx(by_hand) and by_hand < scores.surprise[3]


def test_what_brings_the_other_with_it_comes_first(usual):
    # both in the data; the habit is a little more surprising by itself, but the trait brings it along and not the other way round
    data = made([0.1, 0.1, 0.1, 0.0], [20, 0, 40, 40], [40, 0, 30, 30], [40, 0, 30, 30])
    less = made([0.1, 0.1, 0.1, 0.0], [20, 0, 40, 40], [70, 0, 15, 12], [70, 0, 15, 12])
    scores = score_concepts(data, CONCEPTS, less)
    assert scores.surprise[3] > scores.surprise[2] > 0
    assert [NAMES[place] for place in rank(scores).order[:2]] == ["absent", "trait"]
    given = rank(scores, companions=company({2: (3, 0.15)}))
    assert [NAMES[place] for place in given.order[:2]] == ["trait", "absent"]
    reversed_ = rank(scores, companions=company({3: (2, 0.1)}))
    assert [NAMES[place] for place in reversed_.order[:2]] == ["absent", "trait"]


def test_what_is_hardly_news_does_not_lead_by_explaining_a_little_of_everything():
    present, usually = [31, 23, 23, 23], [25, 10, 10, 55]
    data = made([0.1] * 4, [40, 20, 20, 20], present, present)
    scores = score_concepts(data, CONCEPTS, made([0.1] * 4, [40, 20, 20, 20], usually, usually))

    def company(concept, presence):  # "everywhere" brings skill and trait with it
        extra = np.zeros((2, len(NAMES)))
        extra[:, 1:3] = 0.13 if concept == 0 else 0.0
        return extra

    explained = EXPLAINS * scores.surprise[1:3].sum()
    assert scores.surprise[0] + explained > scores.surprise[1] > 2 * scores.surprise[0] > 0
    order = rank(scores, companions=company).order
    assert {NAMES[place] for place in order[:2]} == {"skill", "trait"}


def test_the_scale_of_gradient_and_activation_does_not_matter(data, usual):
    scaled = replace(
        data, mass_F=data.mass_F * 7, act_F=data.act_F * 3, act_response_F=data.act_response_F * 3
    )
    one, other = score_concepts(data, CONCEPTS, usual), score_concepts(scaled, CONCEPTS, usual)
    assert other.surprise == pytest.approx(one.surprise)


def test_a_data_set_is_no_news_to_itself(data):
    assert abs(score_concepts(data, CONCEPTS, data).surprise).max() == 0.0


def test_without_a_reference_lines_are_ordered_by_absolute_uptake(data):
    menu = build_menu(data, CONCEPTS, None)
    assert [line.concept.label for line in menu.lines] == ["everywhere", "skill", "trait", "absent"]
    assert menu.reference == "" and menu.lines[0].surprise == 0.0


def test_menu_numbers(data, usual):
    menu = build_menu(data, CONCEPTS, usual, reference_name="usual", max_lines=3, notes=("a note",))
    assert len(menu.lines) == 3 and menu.reference == "usual"
    line = next(line for line in menu.lines if line.concept.label == "everywhere")
    assert line.uptake == pytest.approx(0.9) and line.share == pytest.approx(0.9), (
        "share of the positive uptake of ALL concepts"
    )
    assert line.reference == pytest.approx(0.1) and line.interval[0] < 0.9 < line.interval[1]
    assert line.stability == 1.0 and line.num_examples == 3 and line.fires == 0.5
    assert menu.remainder == pytest.approx(0.75) and menu.loss == pytest.approx(2.0)
    assert menu.remainder_chance == pytest.approx(0.875) and menu.notes == ("a note",)


def test_sign_stability_counts_both_halves(data):
    unstable = replace(data, half_HF=torch.full((NUM_HALVES, 4), 95.0, dtype=torch.float64))
    assert data.stability([2]) == 1.0
    assert unstable.stability([2]) == 0.5, "10 in the whole, but +52 and -42 in the halves"


def test_different_dictionaries_are_refused(data, usual):
    other = made([0.1, 0.2], [1, 1], [1, 1], [1, 1])
    with pytest.raises(ConfigError, match="different dictionaries"):
        score_concepts(data, CONCEPTS, other)
    with pytest.raises(ConfigError, match="at least one concept"):
        build_menu(data, [], usual)
    with pytest.raises(ConfigError, match="ranking"):
        rank(score_concepts(data, CONCEPTS, usual), "size")  # type: ignore[arg-type]


def test_bag_of_tokens_finds_what_only_the_data_say(model):
    def row(words, index):
        ids = model.tokenizer.encode(words, add_special_tokens=False)
        return Encoded(ids, [False, False] + [True] * (len(ids) - 2), index, Row(text=words))

    data = [row("w3 w4 w50 w7 w50", i) for i in range(10)]
    own = [row("w50 w50 w8 w7", i) for i in range(10)]
    lines = bag_of_tokens(data, own, model.tokenizer, num_lines=3)
    assert lines[0].token == "w50" and lines[0].log_ratio > 2, "w50 in the prompts does not count"
    assert sum(
        line.data_share for line in bag_of_tokens(data, own, model.tokenizer, num_lines=99)
    ) == pytest.approx(1.0)
    assert [line.token for line in bag_of_tokens(own, own, model.tokenizer)] and all(
        line.log_ratio == 0 for line in bag_of_tokens(own, own, model.tokenizer)
    )
