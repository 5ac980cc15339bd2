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


def test_what_comes_along_is_present_where_the_other_shows(texts):
    whole, response = Companions(texts)(0)
    shown = texts.response[::3]
    assert response == pytest.approx(shown.sum(0) / shown.sum())
    assert response[1] == pytest.approx(response[0] / 3)
    assert whole.sum() == pytest.approx(1.0), "shares"
    _, by_itself = Companions(texts)(2)
    usual = texts.response.sum(0) / texts.response.sum()
    assert abs(by_itself[1] - usual[1]) < 0.05, "what comes by itself brings no more of the other than usual"


def test_too_few_texts_say_nothing(texts):
    assert not Companions(texts)(3).any()
    assert Companions(texts, min_texts=2)(3).any()
