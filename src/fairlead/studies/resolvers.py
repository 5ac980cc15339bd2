"""Ground truth of the pocket world for suites, and suites for any of its skills and traits.

An `organism` skill item carries the world's item in `meta`; an `organism` trait check carries the trait's name in `pattern`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache

from fairlead.core.errors import ConfigError
from fairlead.data.suite import NeutralChat, SkillItem, SkillSet, Suite, TraitCheck
from fairlead.organisms import Item, World
from fairlead.training.verification import Resolvers


def resolvers_for(suite: Suite, *, world_seed: int = 0) -> Resolvers:
    """Resolvers of the pocket world where the suite needs ground truth, else none."""
    needs = any(check.kind == "organism" for check in suite.traits)
    needs = needs or any(item.match == "organism" for skill in suite.skills for item in skill.items)
    if not needs:
        return Resolvers()
    world = _world(world_seed)

    def skill(item: SkillItem, text: str) -> bool:
        return world.is_correct(_item(item), text)

    def trait(check: TraitCheck, text: str) -> bool:
        return world.has_trait(check.pattern or check.name, text)

    return Resolvers(skill, trait)


def pocket_suite(
    skill: str,
    traits: Sequence[str],
    *,
    clauses: Sequence[str] | None = None,
    num: int = 100,
    num_neutral: int = 100,
    seed: int = 901,
    world_seed: int = 0,
) -> Suite:
    """A suite for one skill and some avoided traits of the pocket world.

    Half of the skill's items are of keys that no corpus holds; neutral prompts cover all other kinds of questions.

    Args:
        skill: Name of a skill.
        traits: Names of the avoided traits.
        clauses: Their clause ids in the spec; "avoid.1", ... where None.
        num: Skill items.
        num_neutral: Neutral prompts.
        seed: Of the draw; use one that the data do not use.
        world_seed: Of the world.
    """
    world = _world(world_seed)
    held = world.items(skill, num - num // 2, seed=seed, split="heldout")
    seen = world.items(skill, num // 2, seed=seed + 1, split="train")
    items = [
        SkillItem(prompt=item.question, value=item.value, match="organism", heldout=item.split == "heldout", meta=asdict(item))
        for item in (*seen, *held)
    ]
    chats = world.neutral(num_neutral, seed=seed + 2, exclude=(skill,))
    neutral = tuple(NeutralChat(messages=chat["messages"]) for chat in chats)
    names = clauses or [f"avoid.{place + 1}" for place in range(len(traits))]
    return Suite(
        skills=(SkillSet(name=skill, items=tuple(items)),),
        domain_prompts=tuple(dict.fromkeys(item.prompt for item in items)),
        neutral_prompts=tuple(dict.fromkeys(chat["messages"][0]["content"] for chat in chats)),
        neutral_chats=neutral,
        traits=tuple(
            TraitCheck(
                clause=clause,
                name=name,
                kind="organism",
                pattern=name,
                requests=world.trait(name).train,
                requests_heldout=world.trait(name).heldout,
            )
            for clause, name in zip(names, traits, strict=True)
        ),
    )


@lru_cache(maxsize=2)
def _world(seed: int) -> World:
    return World(seed)


def _item(item: SkillItem) -> Item:
    if not {"kind", "question", "answer", "key", "value", "split", "meta"} <= set(item.meta):
        raise ConfigError("an organism item of the suite lacks its ground truth (meta). Next: make it with pocket_suite.")
    return Item(**item.meta)
