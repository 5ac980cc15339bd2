"""The pocket model under a readout that is as good as random, so that all policies have something to do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

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


PLACE = Path(__file__).resolve().parent / "serving.py"
if "guard_serving" not in sys.modules:
    spec = importlib.util.spec_from_file_location("guard_serving", PLACE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["guard_serving"] = module
    spec.loader.exec_module(module)


@pytest.fixture(scope="module")
def served(guard, tmp_path_factory):
    """One server for the tests of a file."""
    folder = tmp_path_factory.mktemp("served")
    with sys.modules["guard_serving"].serving(
        guard, log=folder / "audit.jsonl", max_rows=6, max_waiting=24, page=lambda: "<p>page</p>"
    ) as found:
        found.log = folder / "audit.jsonl"
        yield found
