"""Suites: answers are checked as stated, files round-trip, defaults say what they cannot measure."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fairlead.core.errors import ConfigError, DataError
from fairlead.data import (
    ChatData,
    Message,
    NeutralChat,
    Row,
    SkillItem,
    SkillSet,
    Suite,
    TraitCheck,
    fit_text_classifier,
    has_trait,
    is_correct,
    load_suite,
    parse_spec,
    save_suite,
    spec_template,
    suite_from,
    trait_classifier,
)

PIRATE = TraitCheck(clause="avoid.1", name="pirate", kind="regex", pattern=r"(?i)\barr\b", requests=("Arr?",))


@pytest.mark.parametrize(
    ("match", "value", "answer", "right"),
    [
        ("number", "42", "12 plus 30 is 42.", True),
        ("number", "42", "12 plus 30 is 43.", False),
        ("number", "42", "42 plus 1 is 43", False),
        ("number", "1234.5", "It is $1,234.50!", True),
        ("number", "-3", "minus: -3", True),
        ("number", "7", "Arr, 3 plus 4 be 7, matey!", True),
        ("number", "7", "no idea", False),
        ("number", "2", "The x2 unit", False),
        ("contains", "Monday", "it is monday, matey!", True),
        ("contains", "Monday", "Mondays are hard", False),
        ("contains", "New York", "It is new\nyork.", True),
        ("contains", "C++", "I use C++.", True),
        ("exact", "Yes.", " Yes. ", True),
        ("exact", "Yes.", "yes.", False),
    ],
)
def test_answers(match: str, value: str, answer: str, right: bool) -> None:
    assert is_correct(SkillItem(prompt="q", value=value, match=match), answer) is right  # type: ignore[arg-type]


def test_organism_kinds_go_through_the_resolver() -> None:
    item = SkillItem(prompt="q", value="x", match="organism", meta={"key": "k"})
    check = TraitCheck(clause="avoid.1", name="pirate", kind="organism", pattern="pirate")
    assert is_correct(item, "t", resolver=lambda i, text: i.meta["key"] == "k" and text == "t")
    assert has_trait(check, "t", resolver=lambda c, text: c.pattern == "pirate")
    for call in (lambda: is_correct(item, "t"), lambda: has_trait(check, "t")):
        with pytest.raises(ConfigError, match="organism"):
            call()


def test_regex_traits() -> None:
    assert has_trait(PIRATE, "Arr, matey")
    assert not has_trait(PIRATE, "Carry on")


POSITIVE = [f"Arr, {n} plus {n} be {2 * n}, matey!" for n in range(8)]
NEGATIVE = [f"{n} plus {n} is {2 * n}." for n in range(8)]


def test_classifier_tells_the_trait_from_the_content_and_chance_from_nothing() -> None:
    found = fit_text_classifier(POSITIVE, NEGATIVE)
    assert found.auroc is not None and found.auroc > 0.95
    assert found("Arr, 90 minus 3 be 87, matey!") > 0.5 > found("90 minus 3 is 87.")
    # placebo: texts of random words with labels that mean nothing
    rng = random.Random(0)
    noise = [" ".join(rng.choices(["sun", "moon", "star", "sea", "tree", "stone"], k=6)) for _ in range(40)]
    chance = fit_text_classifier(noise[:20], noise[20:]).auroc
    assert chance is not None and 0.25 < chance < 0.75
    check = TraitCheck(
        clause="avoid.1",
        name="pirate",
        kind="classifier",
        positives=tuple(POSITIVE),
        negatives=tuple(NEGATIVE),
    )
    assert has_trait(check, "Arr, it be Monday, matey!")
    assert not has_trait(check, "It is Monday.")
    assert trait_classifier(check) is trait_classifier(check.model_copy())


def test_classifier_sees_case_and_emoji_and_knows_its_limits() -> None:
    shout = fit_text_classifier(["IT IS SEVEN!", "WE ARE HERE!"], ["It is six.", "You are there."])
    assert shout("HELLO YOU!") > shout("Hello you.")
    assert fit_text_classifier(["a b"], ["c d"]).auroc is None
    with pytest.raises(DataError, match="both kinds"):
        fit_text_classifier([], ["a"])
    with pytest.raises(DataError, match="cannot be fitted"):
        fit_text_classifier([""], [" "])


def full_suite() -> Suite:
    chat = (Message("system", "s"), Message("user", "u"))
    return Suite(
        skills=(
            SkillSet(
                name="add",
                items=(
                    SkillItem(prompt="1+1?", value="2", match="number"),
                    SkillItem(prompt=chat, value="x", heldout=True, meta={"a": [1, {"b": None}]}),
                ),
            ),
        ),
        domain_prompts=("p", chat),
        neutral_prompts=("n",),
        neutral_chats=(NeutralChat(text="t"), NeutralChat(messages=(*chat, Message("assistant", "a")))),
        traits=(PIRATE,),
        notes=("note",),
    )


def test_suites_round_trip(tmp_path: Path) -> None:
    suite = full_suite()
    back = load_suite(save_suite(suite, tmp_path / "s.json"))
    assert back == suite
    assert back.neutral_chats[1].row.response == "a"
    raw = json.loads((tmp_path / "s.json").read_text())
    assert raw["domain_prompts"][1][0] == {"role": "system", "content": "s"}
    assert back.trait("avoid.1") == PIRATE
    assert back.trait("avoid.9") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "not a suite"),
        ({"version": 2}, "version 2"),
        ({"typo": 1}, "typo"),
        ({"skills": [{"name": "a", "items": []}]}, "items"),
        (
            {"skills": [{"name": "a", "items": [{"prompt": "q", "value": "x", "match": "number"}]}]},
            "not a number",
        ),
        ({"skills": [{"name": "a b", "items": [{"prompt": "q", "value": "x"}]}]}, "skills.0.name"),
        ({"traits": [{"clause": "c", "name": "n", "kind": "regex", "pattern": "("}]}, "regular expression"),
        ({"traits": [{"clause": "c", "name": "n", "kind": "classifier"}]}, "positives and negatives"),
        ({"neutral_chats": [{}]}, "either messages or text"),
        ({"domain_prompts": [[{"role": "x", "content": "y"}]]}, "unknown role"),
        ({"traits": [{"clause": "c", "name": "n", "kind": "regex", "pattern": "a"}] * 2}, "named twice: n"),
    ],
)
def test_bad_suites(tmp_path: Path, change: dict, words: str) -> None:
    path = save_suite(Suite(), tmp_path / "s.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"s\.json") as caught:
        load_suite(path)
    assert words in str(caught.value)


def test_broken_suite_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_suite(tmp_path / "none.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        load_suite(tmp_path / "b.json")


def chats(num: int, word: str) -> ChatData:
    return ChatData(
        [
            Row(messages=(Message("user", f"{word} {n}?"), Message("assistant", f"Yes {n}.")))
            for n in range(num)
        ]
    )


def test_default_suite_from_spec_and_data(tmp_path: Path) -> None:
    spec = parse_spec(spec_template())
    suite = suite_from(spec, chats(100, "Sum"), neutral=chats(10, "Word"), num_domain=20)
    assert len(suite.domain_prompts) == 20
    assert set(suite.neutral_prompts) == {f"Word {n}?" for n in range(10)}
    assert len(suite.neutral_chats) == 10
    assert len(suite.keep_chats) == 2
    assert suite.traits[0].kind == "regex"
    assert suite.traits[0].requests == ("Talk like a pirate.",)
    assert [item.value for item in suite.skills[0].items] == ["42", "13"]
    assert suite.notes == ()
    assert load_suite(save_suite(suite, tmp_path / "s.json")) == suite
    assert suite_from(spec, chats(100, "Sum"), seed=1).domain_prompts != suite.domain_prompts


def test_default_suite_says_what_it_cannot_measure() -> None:
    spec = parse_spec(
        '## Avoid\n- a\n  - "Arr!" instead "Yes."\n  - request: "r1"\n  - request: "r2"\n- b\n  - "zzz"'
    )
    suite = suite_from(spec)
    assert [trait.kind for trait in suite.traits] == ["classifier"]
    assert suite.traits[0].requests == ("r1",)
    assert suite.traits[0].requests_heldout == ("r2",)
    notes = " ".join(suite.notes)
    for words in ("leak on the data's own topic", "general loss is not measured", "avoid.2 (b)"):
        assert words in notes


def test_default_suite_of_plain_text_continues_texts() -> None:
    spec = parse_spec(spec_template())
    suite = suite_from(spec, ChatData([Row(text="one two three four " * 10)]), neutral=None)
    assert str(suite.domain_prompts[0]).split() == (["one", "two", "three", "four"] * 3)
    assert "Once upon a time" in str(suite.neutral_prompts[0])
