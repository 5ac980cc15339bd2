"""Which concepts come along with which, on activations made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.concepts import Companions
from fairlead.concepts.profiles import TextActivations

NUM = 60


@pytest.fixture
def texts():
    """Concept 0 shows in every third text and brings 1 with it in responses; 2 comes by itself; 3 shows in two texts only."""
    rng = np.random.default_rng(0)
    response = np.zeros((NUM, 4))
    response[::3, 0], response[::3, 1] = 3.0, 1.0
    response[:, 2] = rng.permutation([0.0, 2.0] * (NUM // 2))
    response[[0, 1], 3] = 5.0
    whole = response.copy()
    whole[:, 1] = 1.0
    return TextActivations(whole, response)


def test_what_comes_along_is_more_present_where_the_other_shows(texts):
    shown, usual = texts.response[::3].sum(0), texts.response.sum(0)
    extra = (shown / shown.sum() - usual / usual.sum()).clip(min=0)
    fully = Companions(texts)(0, np.array([1.0, 1.0]))
    assert fully[1] == pytest.approx(extra) and extra[1] > 0.04
    half = Companions(texts)(0, np.array([0.0, 0.5 * shown[0] / shown.sum()]))
    assert half[1] == pytest.approx(0.5 * extra), "half as present, half of what comes along"
    assert not half[0].any(), "absent from whole texts"
    by_itself = Companions(texts)(2, np.array([1.0, 1.0]))
    assert by_itself[1, 1] < 0.05, "what comes by itself brings none of the other"


def test_too_few_texts_say_nothing(texts):
    present = np.array([1.0, 1.0])
    assert not Companions(texts)(3, present).any()
    assert Companions(texts, min_texts=2)(3, present).any()
