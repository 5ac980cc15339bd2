"""Ground truth of the pocket world for suites whose checks need it.

An `organism` trait check carries the trait's name in `pattern`; an `organism` skill item carries the world's item in `meta`.
"""

from __future__ import annotations

from functools import lru_cache

from fairlead.core.errors import ConfigError
from fairlead.data.suite import SkillItem, Suite, TraitCheck
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


@lru_cache(maxsize=2)
def _world(seed: int) -> World:
    return World(seed)


def _item(item: SkillItem) -> Item:
    if not {"kind", "question", "answer", "key", "value", "split", "meta"} <= set(item.meta):
        raise ConfigError(
            "an organism item of the suite lacks its ground truth (meta). Next: write the item's fields there, or use another match."
        )
    return Item(**item.meta)
