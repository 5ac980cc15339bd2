"""The pocket model, its labelled answers and a harvest, made once."""

from __future__ import annotations

import pytest

from fairlead.core.claims import ClaimedAnswer
from fairlead.models import Model, load_model
from fairlead.probes import Example, examples_of
from fairlead.probes.harvesting import Harvest, harvest
from fairlead.probes.reading import make_reading
from fairlead.studies.claims import pocket_claims

SITE = "layers.3.resid_post"


@pytest.fixture(scope="session")
def pocket() -> Model:
    return load_model("organism:pocket")


@pytest.fixture(scope="session")
def answers(pocket: Model) -> list[ClaimedAnswer]:
    return pocket_claims(pocket, ways=("greedy", "sampled"), share=0.3, seed=3)


@pytest.fixture(scope="session")
def examples(answers: list[ClaimedAnswer]) -> list[Example]:
    return examples_of(answers)


@pytest.fixture(scope="session")
def found(pocket: Model, examples: list[Example]) -> Harvest:
    return harvest(pocket, examples, make_reading(pocket, (SITE,), confidence=True))
