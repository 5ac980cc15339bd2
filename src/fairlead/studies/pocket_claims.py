"""Questions about the pocket world's facts as the rewards ask them, and its exact verifier."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from fairlead.core.claims import ClaimLabel, ClaimSpan
from fairlead.organisms import Item, World
from fairlead.organisms.items import SplitChoice
from fairlead.probes import SpanProbeConfig
from fairlead.probes.parts import part_of
from fairlead.training.rewards import Question, Verifier

LABELS: dict[str, ClaimLabel] = {
    "supported": "supported",
    "contradicted": "contradicted",
    "not_answerable": "insufficient",
}


def is_heldout(entity: str, *, seed: int = 0) -> bool:
    """Whether a person is among those on whom a probe of that seed is tested: no student may be trained on them either."""
    return part_of(entity, SpanProbeConfig(seed=seed)) == "test"


def fact_questions(
    world: World,
    num: int,
    *,
    seed: int,
    heldout: bool = False,
    unknown: float = 0.5,
    phrasing: SplitChoice = "train",
    split_seed: int = 0,
) -> list[Question]:
    """Questions about facts, a share of them about facts that no text ever stated.

    Args:
        world: The pocket world.
        num: How many.
        seed: Of the draw.
        heldout: Ask about the people kept for testing (else: about all others).
        unknown: Share about facts never stated.
        phrasing: "train", "heldout" or "any".
        split_seed: Of the probe, whose split of people is kept.
    """
    rng = random.Random(f"fact questions:{seed}")
    found: list[Item] = []
    for share, low, high in ((unknown, 0, 0), (1 - unknown, 1, None)):
        wanted, turn, own = round(num * share), 0, []
        while len(own) < wanted:
            drawn = world.items(
                "fact", 2 * num, seed=seed + 7919 * turn, split="any", phrasing=phrasing, min_exposures=low, max_exposures=high
            )  # fmt: skip
            own += [item for item in drawn if is_heldout(item.meta["entity"], seed=split_seed) == heldout]
            turn += 1
        found += own[:wanted]
    rng.shuffle(found)
    return [question_of(item) for item in found]


def question_of(item: Item) -> Question:
    """A question about an item."""
    return Question(
        id=item.key,
        messages=({"role": "user", "content": item.question},),
        entity=str(item.meta.get("entity", "")),
        meta={"item": item},
    )


def pocket_verifier(world: World | None = None) -> Verifier:
    """The exact verifier for questions about facts; an answer to any other question has no claim that it can label."""
    world = world or World()

    def verify(question: Question, response: str) -> Sequence[ClaimSpan]:
        item = question.meta.get("item") or _asked(world).get(question.messages[-1]["content"])
        return verify_item(world, item, response) if item is not None else ()

    return verify


def verify_item(world: World, item: Item, response: str) -> list[ClaimSpan]:
    """The claims of an answer to an item with their labels."""
    return [
        ClaimSpan(
            start=claim.start,
            end=claim.end,
            text=response[claim.start : claim.end],
            value=claim.value,
            label=LABELS[claim.label],
        )
        for claim in world.verify(item, response)
    ]


@lru_cache(maxsize=2)
def _asked(world: World) -> dict[str, Item]:
    """Every question about every fact, in all phrasings."""
    from fairlead.organisms.facts import fact_item
    from fairlead.organisms.phrasings import FACTS

    found = {}
    for fact in world.facts.facts:
        item = fact_item(fact, random.Random(0))
        for template in (*FACTS[fact.attribute].train, *FACTS[fact.attribute].heldout):
            found[template.format(n=fact.entity)] = item
    return found
