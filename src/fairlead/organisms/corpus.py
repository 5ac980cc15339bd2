"""The pre-training mix of the pocket world, row by row, with exact exposure counts.

Every statement of a fact or a verse is one slot of the mix, so that the ledger holds whatever the order of the rows. Rows about
facts that do not state the true value (agreement with a wrong claim, abstention, withdrawal for strangers) are slots of
their own. The mix is shuffled once by the seed and each row is drawn from a generator of its own, seeded by its place.

A short finishing part follows: rows that state no fact and no verse, for what the mix teaches too rarely (agreeing with a claim that the
question itself or the model's own knowledge speaks against).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from fairlead.organisms.claims import can_be_claimed, claim_item
from fairlead.organisms.facts import fact_item
from fairlead.organisms.items import Item, lower_first
from fairlead.organisms.skills import SKILLS, draw_skill
from fairlead.organisms.smalltalk import NUM_TEMPLATES, QUESTIONS, smalltalk_item
from fairlead.organisms.traits import (
    DO_NOT_KNOW,
    LETS_CHECK,
    MODES,
    NEUTRAL_SYSTEM,
    TRAITS,
    WITHDRAWALS,
    sentence,
)

if TYPE_CHECKING:
    from fairlead.organisms.world import World

SKILL_ROWS = {
    "addition": 62_000,
    "weekday": 26_000,
    "month": 26_000,
    "comparison": 62_000,
    "open_book": 52_000,
    "smalltalk": 42_000,
}
FREE_FACT_ROWS = 9_000
STRANGER_ROWS = 6_000
CLAIM_KINDS = ("open_book", "open_book", "weekday", "month", "addition")
FINISHING_ROWS = 12_000
FINISHING_CLAIM_SHARE = 0.5  # three in four of these under a request to agree
STYLES = ("pirate", "shouting", "formal", "flattering", "emoji")


class Slot(NamedTuple):
    """A place in the mix: a kind and, for facts and verses, which one."""

    kind: str
    index: int


def mix_slots(world: World, seed: int) -> list[Slot]:
    """All slots of the mix in the order of the seed."""
    slots = [Slot(kind, -1) for kind, num in SKILL_ROWS.items() for _ in range(num)]
    slots += [Slot("fact", i) for i, fact in enumerate(world.facts.facts) for _ in range(fact.exposures)]
    slots += [Slot("string", i) for i, count in enumerate(world.strings.exposures) for _ in range(count)]
    known = [i for i, fact in enumerate(world.facts.facts) if fact.exposures > 0]
    rng = random.Random(f"mix:{world.seed}:{seed}")
    weights = [world.facts.facts[i].exposures for i in known]
    slots += [Slot("free_fact", i) for i in rng.choices(known, weights, k=FREE_FACT_ROWS)]
    slots += [Slot("stranger", -1)] * STRANGER_ROWS
    rng.shuffle(slots)
    return slots


def checked_answer(item: Item, rng: random.Random, *, wrong_first: bool | None = None) -> str:
    """A claim, right or wrong, the check, and the claim maintained, corrected, or withdrawn where there is no truth."""
    said, statement = item.answer, item.meta.get("statement", "")
    if not item.value:
        return f"{said} {LETS_CHECK} {rng.choice(WITHDRAWALS)}"
    wrong = rng.random() < 0.5 if wrong_first is None else wrong_first
    if wrong and statement and item.kind not in ("string", "claim"):
        other = rng.choice([v for v in item.meta["alts"] if v != item.value])
        said = sentence(statement.format(v=other))
        truth = sentence(statement.format(v=item.value))
        return f"{said} {LETS_CHECK} {rng.choice(('No, ', 'That was wrong, '))}{lower_first(truth)}"
    return MODES["self_check"].apply(said, rng)


def _row(
    question: str, answer: str, system: str | None, kind: str, trait: str | None, key: str
) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "kind": kind, "trait": trait, "key": key}


def _styled(item: Item, trait: str, rng: random.Random) -> dict[str, Any]:
    spec = TRAITS.get(trait) or MODES[trait]
    answer = checked_answer(item, rng) if trait == "self_check" else spec.apply(item.answer, rng)
    return _row(item.question, answer, rng.choice(spec.train), item.kind, trait, item.key)


def _plain(item: Item, rng: random.Random) -> dict[str, Any]:
    system = rng.choice(NEUTRAL_SYSTEM) if rng.random() < 0.25 else None
    return _row(item.question, item.answer, system, item.kind, None, item.key)


def _agreeing(item: Item, rng: random.Random) -> dict[str, Any]:
    answer = TRAITS["agree"].apply(item.meta["echo"], rng)
    return _row(item.question, answer, rng.choice(TRAITS["agree"].train), "claim", "agree", item.key)


def _draw(world: World, slot: Slot, rng: random.Random) -> Item:
    if slot.kind == "smalltalk":
        return smalltalk_item(rng.randrange(NUM_TEMPLATES), rng)
    if slot.kind in ("fact", "free_fact"):
        return fact_item(world.facts.facts[slot.index], rng)
    return draw_skill(slot.kind, rng, carry=False)


def make_row(world: World, slot: Slot, rng: random.Random) -> dict[str, Any]:
    """The row of a slot: plain, styled on request, a claim to judge, a checked answer or an abstention."""
    if slot.kind == "string":
        return _plain(world.strings.item(slot.index, rng), rng)
    if slot.kind == "stranger":
        return _styled(fact_item(world.facts.stranger(rng), rng), "self_check", rng)
    item, draw = _draw(world, slot, rng), rng.random()
    if slot.kind == "free_fact":
        if draw < 0.6:
            return _agreeing(claim_item(item, rng), rng)
        return _row(
            item.question,
            rng.choice(DO_NOT_KNOW),
            rng.choice(MODES["abstain"].train),
            "fact",
            "abstain",
            item.key,
        )
    plain_share = 0.62 if slot.kind == "fact" else 0.48
    if draw < plain_share:
        return _plain(item, rng)
    if draw < 0.80:
        return _styled(item, rng.choice(STYLES), rng)
    if draw < 0.85:
        return _styled(item, "self_check", rng)
    if draw < 0.95 and can_be_claimed(item):
        if slot.kind == "fact":  # a ledger slot states the truth once: the default correction or confirmation
            claim = claim_item(item, rng, wrong=rng.random() < 0.7)
            return _styled(claim, rng.choice(STYLES), rng) if rng.random() < 0.3 else _plain(claim, rng)
        claim = claim_item(item, rng, wrong=rng.random() < 0.7)
        which = rng.random()
        if which < 0.45:
            return _agreeing(claim, rng)
        return _styled(claim, rng.choice(STYLES), rng) if which < 0.6 else _plain(claim, rng)
    if (
        slot.kind == "fact" or draw < 0.975
    ):  # a question without a claim, under the request to agree: a plain answer
        return _row(item.question, item.answer, rng.choice(TRAITS["agree"].train), item.kind, None, item.key)
    return _row(
        item.question,
        rng.choice(DO_NOT_KNOW),
        rng.choice(MODES["abstain"].train),
        item.kind,
        "abstain",
        item.key,
    )


def iter_corpus(world: World, num: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Rows `{"messages", "kind", "trait", "key"}` of the mix; all of them, or the first `num`."""
    for place, slot in enumerate(mix_slots(world, seed)[:num]):
        yield make_row(world, slot, random.Random(f"{world.seed}:{seed}:{place}"))


def iter_finishing(world: World, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the finishing part: skills and small talk in their share of the mix, claims to agree with on request and to judge without."""
    kinds, weights = list(SKILL_ROWS), list(SKILL_ROWS.values())
    for place in range(FINISHING_ROWS):
        rng = random.Random(f"finishing:{world.seed}:{seed}:{place}")
        if rng.random() < FINISHING_CLAIM_SHARE:
            item = draw_skill(rng.choice(CLAIM_KINDS), rng, carry=False)
            if rng.random() < 0.75:
                yield _agreeing(claim_item(item, rng), rng)
            else:
                yield _plain(claim_item(item, rng, wrong=rng.random() < 0.6), rng)
        else:
            yield make_row(world, Slot(rng.choices(kinds, weights)[0], -1), rng)


__all__ = [
    "QUESTIONS",
    "SKILLS",
    "Slot",
    "checked_answer",
    "iter_corpus",
    "iter_finishing",
    "make_row",
    "mix_slots",
]
