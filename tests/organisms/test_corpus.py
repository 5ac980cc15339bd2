"""The mix: the ledger is what the rows really state, and held-out items and phrasings stay out."""

import random
import re
from collections import Counter
from functools import lru_cache
from itertools import islice

from fairlead.organisms import World
from fairlead.organisms.corpus import make_row, mix_slots
from fairlead.organisms.facts import NUM_NEVER
from fairlead.organisms.items import split_of
from fairlead.organisms.phrasings import ADDITION, FACTS
from fairlead.organisms.skills import has_carry
from fairlead.organisms.traits import MODES, TRAITS

SEED = 0


@lru_cache(maxsize=1)
def world() -> World:
    return World(0)


@lru_cache(maxsize=1)
def rows() -> list[dict]:
    """A seventh of the mix."""
    return list(islice(world().corpus(seed=SEED), 50_000))


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    first = list(World(0).corpus(300, seed=1))
    assert first == list(World(0).corpus(300, seed=1))
    assert first != list(World(0).corpus(300, seed=2))
    assert World(0).facts.ledger == World(0).facts.ledger != World(1).facts.ledger


def test_exposures_counted_from_the_rows_equal_the_ledger() -> None:
    counted: Counter[str] = Counter()
    for place, slot in enumerate(mix_slots(world(), SEED)):
        if slot.kind not in ("fact", "string", "free_fact", "stranger"):
            continue
        row = make_row(world(), slot, random.Random(f"{world().seed}:{SEED}:{place}"))
        said = " ".join(message["content"] for message in row["messages"]).lower()
        if slot.kind == "string":
            if " ".join(world().strings.verses[slot.index]) in said:
                counted[f"string:{slot.index}"] += 1
            continue
        if slot.index < 0:
            continue
        fact = world().facts.facts[slot.index]
        if fact.entity.lower() in said and re.search(rf"\b{fact.value.lower()}\b", said):
            counted[fact.key] += 1
    ledger = {**world().facts.ledger, **world().strings.ledger}
    wrong = {key: (num, counted[key]) for key, num in ledger.items() if counted[key] != num}
    assert not wrong, f"(ledger, counted) differ for {len(wrong)} keys, such as {list(wrong.items())[:3]}"


def test_people_without_facts_are_told_nothing_about() -> None:
    never = world().facts.never
    assert len(never) == NUM_NEVER >= 40
    values = {f.value.lower() for f in world().facts.facts if f.value}
    names = re.compile(r"\b(" + "|".join(name.lower() for name in never) + r")\b")
    for row in rows():
        said = " ".join(message["content"] for message in row["messages"]).lower()
        if names.search(said):
            assert row["kind"] in ("open_book", "claim"), row
            assert not values & set(re.findall(r"\w+", said)), row


def test_skills_use_only_train_items_and_addition_never_carries() -> None:
    for row in rows():
        key = row["key"].removeprefix("claim:")
        if not key.startswith(("fact:", "string:", "smalltalk:")):
            assert split_of(key) == "train", key
        if key.startswith("addition:"):
            a, b = map(int, key.removeprefix("addition:").split("+"))
            assert not has_carry(a, b), key


def test_heldout_phrasings_do_not_occur() -> None:
    asked = {row["messages"][-2]["content"] for row in rows()}
    systems = {row["messages"][0]["content"] for row in rows() if len(row["messages"]) == 3}
    for template in ADDITION.heldout:
        pattern = re.compile(re.escape(template).replace(r"\{a\}", r"\d+").replace(r"\{b\}", r"\d+"))
        assert not any(pattern.fullmatch(q) for q in asked), template
    for phrasings in FACTS.values():
        for template in phrasings.heldout:
            pattern = re.compile(re.escape(template).replace(r"\{n\}", r"\w+"))
            assert not any(pattern.fullmatch(q) for q in asked), template
    for spec in (*TRAITS.values(), *MODES.values()):
        assert not systems & set(spec.heldout)
        assert systems >= set(spec.train), "every train phrasing of the request is used"
    assert not systems & set(world().neutral_systems["heldout"])


def test_rows_show_a_trait_exactly_when_they_request_it() -> None:
    for row in islice(rows(), 12_000):
        text, trait = row["messages"][-1]["content"], row["trait"]
        for name, spec in {**TRAITS, **MODES}.items():
            found = spec.check(text)
            if name == "abstain" and trait == "self_check":
                assert not found, row
            else:
                assert found == (name == trait), (name, row)


def test_no_more_than_three_hundred_exposures_and_enough_above_a_hundred() -> None:
    counts = [fact.exposures for fact in world().facts.facts]
    assert max(counts) == 300 and min(counts) == 0
    assert sum(count >= 100 for count in counts) >= 100
    assert len(world().facts.entities) >= 400
    assert len(set(world().strings.verses)) == 200
    assert set(map(len, world().strings.verses)) == {24}
    assert (min(world().strings.exposures), max(world().strings.exposures)) == (10, 100)
