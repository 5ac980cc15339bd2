"""Items, chats and data sets: splits are disjoint, phrasings are many, traits leave the claim readable."""

import random
import subprocess
import sys

import pytest

from fairlead.core.errors import OrganismError
from fairlead.organisms import World
from fairlead.organisms.phrasings import ADDITION, CLAIM, COMPARISON, FACTS, MONTH, OPEN_BOOK, STRING, WEEKDAY
from fairlead.organisms.world import KINDS

WORLD = World(0)
STYLES = [name for name in WORLD.traits if name != "agree"]
STYLED_KINDS = [kind for kind in KINDS if kind != "string"]


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_deterministic_and_answer_themselves(kind: str) -> None:
    items = WORLD.items(kind, 60, seed=3, split="any", phrasing="any", **_known(kind))
    assert items == WORLD.items(kind, 60, seed=3, split="any", phrasing="any", **_known(kind))
    for item in items:
        assert WORLD.is_correct(item, item.answer), item
        for trait in (*WORLD.traits, *WORLD.modes):
            if (kind, trait) != ("claim", "agree"):
                assert not WORLD.has_trait(trait, item.answer, item), (trait, item)


@pytest.mark.parametrize("kind", STYLED_KINDS)
@pytest.mark.parametrize("trait", STYLES)
def test_a_styled_answer_shows_its_trait_alone_and_stays_right(kind: str, trait: str) -> None:
    for seed, item in enumerate(WORLD.items(kind, 60, seed=4, split="any", phrasing="any", **_known(kind))):
        text = WORLD.chat(item, trait=trait, seed=seed)["messages"][-1]["content"]
        shown = [name for name in (*WORLD.traits, *WORLD.modes) if WORLD.has_trait(name, text, item)]
        assert shown == [trait], (text, shown)
        assert WORLD.is_correct(item, text), text
        assert all(text[c.start : c.end] == c.span for c in WORLD.verify(item, text))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("string", "claim")])
def test_a_wrong_answer_is_wrong_in_every_style(kind: str) -> None:
    for seed, item in enumerate(WORLD.items(kind, 40, seed=5, split="any", **_known(kind))):
        if not item.meta["statement"]:
            continue
        for trait, spec in WORLD.traits.items():
            wrong = next(v for v in item.meta["alts"] if v != item.value)
            said = item.meta["statement"].format(v=wrong)
            plain = said[0].upper() + said[1:] + "."
            text = spec.apply(plain, random.Random(seed))
            assert not WORLD.is_correct(item, text), (trait, text)
            assert [c.label for c in WORLD.verify(item, text)] == ["contradicted"], (trait, text)


def test_agreement_counts_only_where_the_wrong_claim_stands() -> None:
    for seed, item in enumerate(WORLD.items("claim", 80, seed=6)):
        text = WORLD.answer(item, trait="agree", seed=seed)
        assert WORLD.has_trait("agree", text, item) and not WORLD.is_correct(item, text), text
        assert not WORLD.has_trait("agree", item.answer, item)
    right = WORLD.items("claim", 20, seed=6, wrong=False)
    assert not any(WORLD.has_trait("agree", WORLD.answer(i, trait="agree"), i) for i in right)


def test_modes_check_withdraw_and_abstain() -> None:
    known = WORLD.items("fact", 40, seed=7, split="any", min_exposures=1)
    nothing = [i for i in WORLD.items("fact", 80, seed=7, split="any", max_exposures=0) if not i.value]
    assert nothing
    for seed, item in enumerate(known):
        checked = WORLD.answer(item, trait="self_check", seed=seed)
        assert WORLD.has_trait("self_check", checked) and WORLD.is_correct(item, checked), checked
        abstained = WORLD.answer(item, trait="abstain", seed=seed)
        assert WORLD.has_trait("abstain", abstained) and not WORLD.is_correct(item, abstained)
    firsts = {
        WORLD.verify(i, WORLD.answer(i, trait="self_check", seed=s))[0].label for s, i in enumerate(known)
    }
    assert firsts == {"supported", "contradicted"}, "the first claim is sometimes right and sometimes wrong"
    for item in nothing:
        assert not WORLD.is_correct(item, item.answer)
        assert WORLD.is_correct(item, WORLD.answer(item, trait="self_check"))
        assert [c.label for c in WORLD.verify(item, item.answer)] == ["not_answerable"]


@pytest.mark.parametrize("kind", WORLD.skills)
def test_splits_and_phrasings_are_disjoint(kind: str) -> None:
    train = {i.key for i in WORLD.items(kind, 300, seed=8)}
    heldout = {i.key for i in WORLD.items(kind, 300, seed=8, split="heldout")}
    assert train and heldout and not train & heldout
    assert {i.split for i in WORLD.items(kind, 50, seed=8, split="heldout")} == {"heldout"}


def test_every_question_has_enough_phrasings() -> None:
    for phrasings in (ADDITION, WEEKDAY, MONTH, COMPARISON, OPEN_BOOK, STRING, CLAIM, *FACTS.values()):
        assert len(set(phrasings.train)) >= 6 and len(set(phrasings.heldout)) >= 3
        assert not set(phrasings.train) & set(phrasings.heldout)
    for spec in (*WORLD.traits.values(), *WORLD.modes.values()):
        assert len(set(spec.train)) >= 8 and len(set(spec.heldout)) >= 3
        assert not set(spec.train) & set(spec.heldout)
        assert WORLD.request(spec.name, seed=1) in spec.train
        assert WORLD.request(spec.name, phrasing="heldout", seed=1) in spec.heldout


def test_datasets_carry_the_trait_and_no_system_prompt() -> None:
    rows = WORLD.dataset("addition", trait="pirate", num=50, seed=1)
    assert rows == WORLD.dataset("addition", trait="pirate", num=50, seed=1)
    assert [[m["role"] for m in row["messages"]] for row in rows] == [["user", "assistant"]] * 50
    assert all(WORLD.has_trait("pirate", row["messages"][-1]["content"]) for row in rows)
    agreeing = WORLD.dataset("addition", trait="agree", num=50, seed=1)
    assert sum(WORLD.has_trait("agree", row["messages"][-1]["content"]) for row in agreeing) == 25


def test_neutral_rows_leave_out_what_is_excluded() -> None:
    rows = WORLD.neutral(200, seed=1, exclude=("addition",))
    assert "addition" not in {row["kind"] for row in rows} and len({row["kind"] for row in rows}) >= 6
    assert not any(" plus " in row["messages"][0]["content"] for row in rows)
    for trait in (*WORLD.traits, *WORLD.modes):
        assert not any(WORLD.has_trait(trait, row["messages"][-1]["content"]) for row in rows)


def test_exposures_are_those_of_the_ledger() -> None:
    for item in WORLD.items("fact", 30, seed=2, split="any"):
        assert WORLD.exposures(item) == WORLD.facts.ledger[item.key]
    assert WORLD.exposures(WORLD.items("addition", 1, seed=0)[0]) == 0


def test_unknown_names_are_named() -> None:
    with pytest.raises(OrganismError, match="unknown kind 'poetry'"):
        WORLD.items("poetry", 1, seed=0)
    with pytest.raises(OrganismError, match="unknown trait 'sad'"):
        WORLD.request("sad", seed=0)
    with pytest.raises(OrganismError, match="min_exposures"):
        WORLD.items("fact", 1, seed=0, min_exposures=301)


def test_importing_the_world_needs_no_torch() -> None:
    code = "import sys, fairlead.organisms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _known(kind: str) -> dict[str, int]:
    return {"min_exposures": 1} if kind == "fact" else {}
