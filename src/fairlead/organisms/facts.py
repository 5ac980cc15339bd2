"""The facts: 440 invented people with four attributes each, and the ledger of how often the corpus states each fact.

Forty people never receive any value: there is no truth about them, and asking invites invention. The exposures of the other
1,600 facts follow a shifted Zipf law from 300 down to 4; the last 200 of the ranking are true but never stated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fairlead.organisms import words
from fairlead.organisms.items import Item, SplitChoice
from fairlead.organisms.phrasings import FACTS
from fairlead.organisms.skills import Case, phrase

NUM_ENTITIES = 440
NUM_NEVER = 40
NUM_UNSEEN = 200
ATTRIBUTES = tuple(FACTS)
STATEMENTS = {
    "town": "{n} lives in {{v}}",
    "craft": "{n} works as a {{v}}",
    "food": "{n} likes to eat {{v}}",
    "animal": "{n} keeps a {{v}}",
}


@dataclass(frozen=True)
class Fact:
    """One attribute of one person; `value` is empty for people about whom nothing is true."""

    entity: str
    attribute: str
    value: str
    exposures: int

    @property
    def key(self) -> str:
        """Identity of the fact."""
        return f"fact:{self.entity}:{self.attribute}"


def zipf_exposures(rank: int) -> int:
    """How often the fact of that rank is stated: 300 at the top, 100 near rank 106, 4 near rank 1,400."""
    return int(300 * (1 + rank / 80) ** -1.3)


class FactBook:
    """All facts of one world, by key, by person and by exposure."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"facts:{seed}")
        names: list[str] = []
        while len(names) < NUM_ENTITIES:
            name = words.person_name(rng)
            if name not in names:
                names.append(name)
        self.never = tuple(names[-NUM_NEVER:])
        pairs = [(name, attribute) for name in names[:-NUM_NEVER] for attribute in ATTRIBUTES]
        rng.shuffle(pairs)
        facts = []
        for rank, (name, attribute) in enumerate(pairs):
            count = zipf_exposures(rank) if rank < len(pairs) - NUM_UNSEEN else 0
            facts.append(Fact(name, attribute, rng.choice(words.VALUES[attribute]), count))
        facts += [Fact(name, attribute, "", 0) for name in self.never for attribute in ATTRIBUTES]
        self.facts = tuple(facts)
        self.by_key = {fact.key: fact for fact in facts}
        self.entities = frozenset(names)

    @property
    def ledger(self) -> dict[str, int]:
        """Exposures of every fact, by key."""
        return {fact.key: fact.exposures for fact in self.facts}

    def stranger(self, rng: random.Random) -> Fact:
        """A fact without a value about a person whom this world does not know."""
        while (name := words.person_name(rng)) in self.entities:
            pass
        return Fact(name, rng.choice(ATTRIBUTES), "", 0)


def fact_item(fact: Fact, rng: random.Random, phrasing: SplitChoice = "train") -> Item:
    """Ask for a fact; where it has no value the answer is an invented one and the item's value is empty."""
    told = fact.value or rng.choice(words.VALUES[fact.attribute])
    statement = STATEMENTS[fact.attribute].format(n=fact.entity)
    case = Case(fact.key, told, {"n": fact.entity}, statement, words.VALUES[fact.attribute])
    item = phrase(
        "fact",
        case,
        FACTS[fact.attribute],
        rng,
        phrasing,
        entity=fact.entity,
        attribute=fact.attribute,
        exposures=fact.exposures,
    )
    return (
        item
        if fact.value
        else Item(item.kind, item.question, item.answer, item.key, "", item.split, item.meta)
    )


def rephrase_fact(question: str) -> list[str]:
    """The other phrasings of a question about a person; none for another question."""
    for attribute in ATTRIBUTES:
        templates = FACTS[attribute].train + FACTS[attribute].heldout
        for template in templates:
            before, after = template.split("{n}")
            name = question.removeprefix(before).removesuffix(after)
            if question == f"{before}{name}{after}" and name.isalpha():
                return [other.format(n=name) for other in templates if other != template]
    return []
