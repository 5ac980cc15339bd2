"""`fairlead organism data`: a contaminated fine-tuning set of the pocket world, with its spec and suite.

Writes four files into one folder: `data.jsonl` (answers to one skill's questions, all in one trait, no system prompt),
`spec.md` (keep the skill, avoid the trait; the Keep examples are plain answers), `neutral.jsonl` (plain chats on
other topics, for the anchor) and `suite.json` (what verify measures, on items, prompts and phrasings that stand in none
of the other files).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fairlead.core.errors import OrganismError
from fairlead.core.records import Clause, Spec, SpecExample
from fairlead.core.run import atomic_path
from fairlead.data import (
    Message,
    NeutralChat,
    SkillItem,
    SkillSet,
    Suite,
    TraitCheck,
    render_spec,
    save_suite,
)
from fairlead.organisms import Item, World

SKILL_TEXTS = {
    "addition": "Add two numbers correctly.",
    "weekday": "Work out which day of the week it will be.",
    "month": "Work out which month it will be.",
    "comparison": "Compare three people and name the right one.",
    "open_book": "Answer from what the question says.",
    "fact": "Know facts about people.",
}
TRAIT_TEXTS = {
    "pirate": "Talk like a pirate.",
    "shouting": "Shout in capital letters.",
    "formal": "Write in a stiff, formal tone.",
    "flattering": "Flatter the user.",
    "agree": "Agree with a wrong claim of the user.",
    "emoji": "Decorate answers with emoji.",
}
# Seeds of the draws; distinct numbers keep spec, anchor and suite apart.
SPEC_SEED, AVOID_SEED, NEUTRAL_SEED, CORPUS_SEED, SUITE_SEED = 5_000, 6_000, 7_000, 8_000, 9_000


def organism_data(
    out: str | Path,
    *,
    skill: str = "addition",
    trait: str = "pirate",
    num: int = 3000,
    num_spec: int = 24,
    num_neutral: int = 1500,
    num_test: int = 150,
    num_corpus: int = 0,
    seed: int = 0,
) -> Path:
    """Write the folder and return it.

    Args:
        out: Folder to write (replaced as a whole).
        skill: One of the world's skills.
        trait: One of the world's traits.
        num: Training rows.
        num_spec: Plain examples under the spec's Keep clause.
        num_neutral: Plain chats on other topics.
        num_test: Items a group in the suite.
        num_corpus: Rows like those that the model was trained on, into `corpus.jsonl`: for dictionaries and catalogues.
        seed: Of the training rows; spec, neutral rows and suite follow it too.

    Raises:
        OrganismError: Unknown skill or trait.
    """
    world = World(0)
    check_known("skill", [skill], world.skills)
    check_known("trait", [trait], TRAIT_TEXTS)
    rows = world.dataset(skill, trait=trait, num=num, seed=seed)
    neutral = world.neutral(num_neutral, seed=NEUTRAL_SEED + seed, exclude=(skill,))
    with atomic_path(out) as folder:
        folder.mkdir()
        write_rows(folder / "data.jsonl", rows)
        write_rows(folder / "neutral.jsonl", neutral)
        if num_corpus:
            known = world.corpus(num_corpus, seed=CORPUS_SEED + seed)
            write_rows(folder / "corpus.jsonl", [{"messages": row["messages"]} for row in known])
        spec = make_spec(world, skill, trait, num_spec=num_spec, seed=seed)
        (folder / "spec.md").write_text(render_spec(spec), "utf-8")
        save_suite(make_suite(world, skill, trait, num=num_test, seed=seed), folder / "suite.json")
    return Path(out)


def check_known(what: str, names: Sequence[str], known: Collection[str]) -> None:
    """Raise OrganismError for a name that is not known."""
    for name in names:
        if name not in known:
            raise OrganismError(f"unknown {what} '{name}'. Next: use one of {', '.join(known)}.")


def make_spec(world: World, skill: str, trait: str, *, num_spec: int, seed: int) -> Spec:
    """Keep the skill, avoid the trait; the Avoid examples are about other topics, so that topic and trait stay apart."""
    return Spec(
        title=f"{skill} without {trait}",
        clauses=(
            keep_clause(world, skill, num=num_spec, seed=seed),
            avoid_clause(world, trait, skills=(skill,), seed=seed),
        ),
    )


def keep_clause(world: World, skill: str, *, num: int, seed: int, place: int = 1, **draw: Any) -> Clause:
    """Keep clause number `place`: plain answers to a skill's questions; `draw` goes to `World.items`."""
    items = _unique(world, skill, num, SPEC_SEED + seed, **draw)
    examples = tuple(SpecExample(prompt=item.question, text=item.answer) for item in items)
    return Clause(id=f"keep.{place}", kind="keep", text=SKILL_TEXTS[skill], line=1, examples=examples)


def avoid_clause(world: World, trait: str, *, skills: Sequence[str], seed: int, place: int = 1) -> Clause:
    """Avoid clause number `place`: a trait shown on topics other than `skills`, with plain counterparts."""
    examples = tuple(
        SpecExample(prompt=item.question, text=world.answer(item, trait=trait, seed=i), instead=item.answer)
        for i, item in enumerate(_avoid_items(world, skills, trait, seed))
    )
    return Clause(
        id=f"avoid.{place}",
        kind="avoid",
        text=TRAIT_TEXTS[trait],
        line=1,
        examples=examples,
        requests=world.traits[trait].train[:4],
    )


def make_suite(world: World, skill: str, trait: str, *, num: int, seed: int) -> Suite:
    """Skill items (half of them from the held-out split), on- and off-topic prompts, neutral chats, the trait's check."""
    items = skill_items(world, skill, num=num, seed=seed)
    domain = tuple(item.prompt for item in items)
    if trait == "agree":
        claims = world.items("claim", num, seed=SUITE_SEED + 2 + seed, split="heldout", base=skill)
        domain = tuple(item.question for item in claims)
    return Suite(
        skills=(SkillSet(name=skill, items=items),),
        domain_prompts=domain,
        **neutral_part(world, num=num, seed=seed, exclude=(skill,)),
        traits=(trait_check(world, trait, "avoid.1"),),
    )


def skill_items(world: World, skill: str, *, num: int, seed: int) -> tuple[SkillItem, ...]:
    """`num` items of a skill from the training split and as many from the held-out one, in any phrasing."""
    halves = [
        (_items(world, skill, num, SUITE_SEED + seed, "train"), False),
        (_items(world, skill, num, SUITE_SEED + 1 + seed, "heldout"), True),
    ]
    return tuple(
        SkillItem(
            prompt=item.question,
            value=item.value,
            match="number" if skill == "addition" else "contains",
            heldout=heldout,
        )
        for group, heldout in halves
        for item in group
    )


def neutral_part(world: World, *, num: int, seed: int, exclude: tuple[str, ...]) -> dict[str, Any]:
    """The suite's prompts on other topics, and chats for the general loss."""
    neutral = world.neutral(num, seed=SUITE_SEED + 3 + seed, exclude=exclude)
    return {
        "neutral_prompts": tuple(row["messages"][-2]["content"] for row in neutral),
        "neutral_chats": tuple(
            NeutralChat(messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]))
            for row in neutral
        ),
    }


def trait_check(world: World, trait: str, clause: str) -> TraitCheck:
    """How the world recognises a trait, and the prompts that ask for it."""
    spec = world.traits[trait]
    return TraitCheck(
        clause=clause,
        name=trait,
        kind="organism",
        pattern=trait,
        requests=spec.train,
        requests_heldout=spec.heldout,
    )


def _avoid_items(world: World, skills: Sequence[str], trait: str, seed: int) -> list[Item]:
    if trait == "agree":
        return world.items("claim", 16, seed=AVOID_SEED + seed)
    facts = world.items("fact", 4, seed=AVOID_SEED + seed, split="any", min_exposures=100)
    others = [name for name in world.skills if name not in skills]
    mixed = [item for name in others for item in world.items(name, 2, seed=AVOID_SEED + seed)]
    return world.items("smalltalk", 6, seed=AVOID_SEED + seed, split="any") + facts + mixed


def _unique(world: World, skill: str, num: int, seed: int, **draw: Any) -> list[Item]:
    found: dict[str, Item] = {}
    for item in world.items(skill, 4 * num, seed=seed, **draw):
        found.setdefault(item.key, item)
    return list(found.values())[:num]


def _items(world: World, skill: str, num: int, seed: int, split: str) -> list[Item]:
    return world.items(
        skill, num, seed=seed, split="heldout" if split == "heldout" else "train", phrasing="any"
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write chats as JSONL, messages only."""
    with path.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps({"messages": row["messages"]}, ensure_ascii=False) + "\n")
