"""Mixed fine-tuning data of the pocket world: several skills, each in its own manner, some of them unwanted.

Writes what `organism_data` writes, for several parts at once: `data.jsonl` (the parts shuffled), `truth.jsonl` (skill and trait of each
row), `spec.md` (keep every skill; avoid the traits that are named), `neutral.jsonl` and `suite.json` (all skills; every trait of the
data, those that the spec does not name as well).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.core.records import Spec
from fairlead.core.run import atomic_path
from fairlead.data import SkillItem, SkillSet, Suite, render_spec, save_suite
from fairlead.organisms import World
from fairlead.studies.organism_data import (
    NEUTRAL_SEED,
    SKILL_TEXTS,
    SUITE_SEED,
    TRAIT_TEXTS,
    avoid_clause,
    check_known,
    keep_clause,
    neutral_part,
    skill_items,
    trait_check,
    write_rows,
)

UNMENTIONED = "unmentioned"  # stands for the clause of a trait that the spec does not name
RARE_FACTS = {
    "min_exposures": 1,
    "max_exposures": 6,
    "split": "any",
}  # so seldom stated that the model does not know them


class Part(NamedTuple):
    """One part of the data: answers to a skill's questions ("fact" included), in a trait or plain."""

    skill: str
    trait: str | None


MIXED = (
    Part("addition", "pirate"),
    Part("fact", "flattering"),
    Part("weekday", None),
    Part("open_book", "shouting"),
)


def organism_mix(
    out: str | Path,
    *,
    parts: Sequence[Part] = MIXED,
    avoid: Sequence[str] = ("pirate", "flattering"),
    num: int = 2000,
    num_spec: int = 24,
    num_neutral: int = 1500,
    num_test: int = 150,
    seed: int = 0,
) -> Path:
    """Write the folder and return it.

    Args:
        out: Folder to write.
        parts: What the data are made of.
        avoid: Traits that the spec avoids.
        num: Rows of each part.
        num_spec: Plain examples under each Keep clause.
        num_neutral: Plain chats on other topics.
        num_test: Items a group in the suite.
        seed: Of all draws.

    Raises:
        OrganismError: Unknown skill or trait.
    """
    world = World(0)
    skills = tuple(part.skill for part in parts)
    traits = tuple(dict.fromkeys(part.trait for part in parts if part.trait is not None))
    check_known("skill", skills, SKILL_TEXTS)
    check_known("trait", [*traits, *avoid], TRAIT_TEXTS)
    rows = [
        {**chat, "skill": part.skill, "trait": part.trait}
        for part in parts
        for chat in _part(world, part, num, seed)
    ]
    random.Random(f"mix:{seed}").shuffle(rows)
    spec = Spec(
        title=f"{', '.join(skills)} without {', '.join(avoid)}",
        clauses=(
            *(
                keep_clause(world, skill, num=num_spec, seed=seed, place=place, **_draw(skill))
                for place, skill in enumerate(skills, start=1)
            ),
            *(
                avoid_clause(world, trait, skills=skills, seed=seed, place=place)
                for place, trait in enumerate(avoid, start=1)
            ),
        ),
    )
    with atomic_path(out) as folder:
        folder.mkdir()
        write_rows(folder / "data.jsonl", rows)
        truth = "".join(json.dumps({"skill": r["skill"], "trait": r["trait"]}) + "\n" for r in rows)
        (folder / "truth.jsonl").write_text(truth, "utf-8")
        neutral = world.neutral(num_neutral, seed=NEUTRAL_SEED + seed, exclude=skills)
        write_rows(folder / "neutral.jsonl", neutral)
        (folder / "spec.md").write_text(render_spec(spec), "utf-8")
        suite = _suite(world, skills, traits, avoid, num=num_test, seed=seed)
        save_suite(suite, folder / "suite.json")
    return Path(out)


def _part(world: World, part: Part, num: int, seed: int) -> list[dict[str, Any]]:
    if part.skill != "fact":
        return world.dataset(part.skill, trait=part.trait, num=num, seed=seed)
    items = world.items("fact", num, seed=seed, **RARE_FACTS)
    return [
        world.chat(item, trait=part.trait, seed=seed * 1_000_003 + place) for place, item in enumerate(items)
    ]


def _draw(skill: str) -> dict[str, Any]:
    return RARE_FACTS if skill == "fact" else {}


def _suite(
    world: World,
    skills: Sequence[str],
    traits: Sequence[str],
    avoid: Sequence[str],
    *,
    num: int,
    seed: int,
) -> Suite:
    sets = []
    for skill in skills:
        if skill == "fact":  # they can only be learned from the data: the same facts, in other words
            found = world.items("fact", num, seed=SUITE_SEED + seed, phrasing="heldout", **RARE_FACTS)
            items = tuple(SkillItem(prompt=item.question, value=item.value) for item in found)
        else:
            items = skill_items(world, skill, num=num, seed=seed)
        sets.append(SkillSet(name=skill, items=items))
    clauses = {trait: f"avoid.{place}" for place, trait in enumerate(avoid, start=1)}
    return Suite(
        skills=tuple(sets),
        domain_prompts=tuple(item.prompt for one in sets for item in one.items),
        **neutral_part(world, num=num, seed=seed, exclude=tuple(skills)),
        traits=tuple(
            trait_check(world, trait, clauses.get(trait, UNMENTIONED))
            for trait in dict.fromkeys([*avoid, *traits])
        ),
    )
