"""The pocket model under a readout that is as good as random, so that all policies have something to do."""

from __future__ import annotations

import pytest
import torch

from fairlead.core.nouns import Direction, LinearReadout
from fairlead.core.site import Site
from fairlead.guard import Guard, TokenReadout
from fairlead.models import load_model
from fairlead.organisms import World

SITE = "layers.3.resid_post"


@pytest.fixture(scope="session")
def pocket():
    return load_model("organism:pocket")


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def questions(world):
    items = [
        *world.items("fact", 6, seed=1, split="any", phrasing="any"),
        *world.items("addition", 3, seed=1),
        *world.items("smalltalk", 4, seed=1),
    ]
    return [item.question for item in items]


@pytest.fixture(scope="session")
def readout(pocket):
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(pocket.d_model, generator=generator) / 8
    return TokenReadout(LinearReadout(Direction(Site.parse(SITE), vector)))


@pytest.fixture(scope="session")
def guard(pocket, readout, questions):
    """Flags about half of the claims of the questions' answers."""
    plain = Guard(pocket, readout).answer(questions)
    scores = sorted(claim.score for answer in plain for claim in answer.claims)
    return Guard(pocket, readout, threshold=scores[len(scores) // 2] - 1e-6)
