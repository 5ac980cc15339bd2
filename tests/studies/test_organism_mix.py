"""Mixed data of the pocket world: parts, truth, spec and suite belong together."""

from __future__ import annotations

import json

import pytest

from fairlead.core.errors import OrganismError
from fairlead.data import load_data, load_spec, load_suite
from fairlead.organisms import World
from fairlead.studies.organism_mix import MIXED, RARE_FACTS, Part, organism_mix


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return organism_mix(tmp_path_factory.mktemp("mix") / "task", num=30, num_neutral=20, num_test=10)


def test_every_row_has_its_truth(folder):
    data, world = load_data(folder / "data.jsonl"), World(0)
    truth = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    assert len(data) == len(truth) == 30 * len(MIXED)
    for row, true in zip(data.rows, truth, strict=True):
        for trait in ("pirate", "flattering", "shouting"):
            assert world.has_trait(trait, row.response) == (true["trait"] == trait), (row.response, true)


def test_the_spec_keeps_every_skill_and_names_two_traits(folder):
    spec = load_spec(folder / "spec.md")
    assert [clause.id for clause in spec.of_kind("keep")] == ["keep.1", "keep.2", "keep.3", "keep.4"]
    assert [clause.text for clause in spec.of_kind("avoid")] == ["Talk like a pirate.", "Flatter the user."]
    assert all(len(clause.examples) == 24 for clause in spec.of_kind("keep"))


def test_the_suite_measures_what_the_spec_does_not_name_as_well(folder):
    suite = load_suite(folder / "suite.json")
    assert [skill.name for skill in suite.skills] == ["addition", "fact", "weekday", "open_book"]
    assert {trait.name: trait.clause for trait in suite.traits} == {
        "pirate": "avoid.1",
        "flattering": "avoid.2",
        "shouting": "unmentioned",
    }


def test_facts_are_seldom_stated_and_the_suite_asks_for_them_in_other_words(folder):
    world = World(0)
    items = world.items("fact", 30, seed=0, **RARE_FACTS)
    assert all(1 <= world.exposures(item) <= 6 and item.value for item in items)
    asked = {item.prompt for item in load_suite(folder / "suite.json").skills[1].items}
    data = load_data(folder / "data.jsonl")
    assert not asked & {row.prompt_messages[-1].content for row in data.rows}


def test_unknown_parts_are_named(tmp_path):
    with pytest.raises(OrganismError, match="unknown skill 'juggling'"):
        organism_mix(tmp_path / "a", parts=[Part("juggling", None)])
