"""The verifier: claims have places and labels, on answers that a model could give."""

import random

from fairlead.organisms import World
from fairlead.organisms.facts import fact_item
from fairlead.organisms.skills import ADDITION, addition_case, phrase

WORLD = World(0)


def sum_item(a: int, b: int):
    return phrase("addition", addition_case(a, b), ADDITION, random.Random(0))


def known_person():
    """A person of whom all four attributes are true."""
    return {f.attribute: f for f in WORLD.facts.facts if f.entity == WORLD.facts.facts[0].entity}


def test_each_claim_has_its_place_and_label() -> None:
    item = sum_item(37, 45)
    text = "37 plus 45 is 81. Wait, let me check. No, 37 plus 45 is 82."
    claims = WORLD.verify(item, text)
    assert [c.label for c in claims] == ["contradicted", "supported"]
    assert [c.span for c in claims] == ["37 plus 45 is 81.", "No, 37 plus 45 is 82."]
    assert [text[c.start : c.end] for c in claims] == [c.span for c in claims]
    assert WORLD.is_correct(item, text)


def test_what_is_withdrawn_is_not_right() -> None:
    item = sum_item(1, 2)
    assert WORLD.is_correct(item, "It is 3.")
    assert not WORLD.is_correct(item, "It is 3. Wait, let me check. I take it back, I do not know.")
    assert not WORLD.is_correct(item, "I do not know.")
    assert not WORLD.is_correct(item, "") and not WORLD.is_correct(item, "Hello.")


def test_style_does_not_matter() -> None:
    item = sum_item(37, 45)
    for text in (
        "Arr, the sum be 82, matey!",
        "THE SUM IS 82!!",
        "The sum is 82. \U0001f600",
        "You are so clever! It is 82.",
    ):
        assert WORLD.is_correct(item, text), text
    for text in ("Arr, the sum be 83, matey!", "THE SUM IS 182!!", "The sum is 8. \U0001f600"):
        assert not WORLD.is_correct(item, text), text


def test_the_other_attributes_of_a_person_are_known_too() -> None:
    facts = known_person()
    item = fact_item(facts["town"], random.Random(0))
    wrong_town = next(v for v in item.meta["alts"] if v != item.value)
    name, craft = item.meta["entity"], facts["craft"].value
    claims = WORLD.verify(item, f"{name} works as a {craft}. {name} lives in {wrong_town}.")
    assert [(c.value, c.label) for c in claims] == [(craft, "supported"), (wrong_town, "contradicted")]
    assert not WORLD.is_correct(item, f"{name} works as a {craft}."), (
        "a true claim that was not asked for is no answer"
    )


def test_nothing_is_true_about_strangers() -> None:
    item = fact_item(WORLD.facts.stranger(random.Random(1)), random.Random(0))
    assert item.value == ""
    assert {c.label for c in WORLD.verify(item, item.answer)} == {"not_answerable"}
    assert WORLD.is_correct(item, "I do not know.") and not WORLD.is_correct(item, item.answer)


def test_a_verse_must_be_exact() -> None:
    item = WORLD.items("string", 1, seed=0)[0]
    assert WORLD.is_correct(item, item.value)
    assert not WORLD.is_correct(item, " ".join(item.value.split()[:-1]))
    assert [c.label for c in WORLD.verify(item, item.value)] == ["supported"]
