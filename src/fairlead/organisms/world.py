"""The pocket world: everything that can be asked in it, how it is answered, and what is true."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from fairlead.core.errors import OrganismError
from fairlead.organisms import corpus, verifier
from fairlead.organisms.claims import can_be_claimed, claim_item
from fairlead.organisms.facts import FactBook, fact_item
from fairlead.organisms.items import Claim, Item, SplitChoice, split_of
from fairlead.organisms.skills import SKILLS, draw_skill
from fairlead.organisms.smalltalk import NUM_TEMPLATES, smalltalk_item
from fairlead.organisms.strings import StringBook
from fairlead.organisms.traits import MODES, NEUTRAL_SYSTEM, NEUTRAL_SYSTEM_HELDOUT, TRAITS, Trait

KINDS = (*SKILLS, "fact", "smalltalk", "string", "claim")
NEUTRAL_MIN_EXPOSURES = 50


class World:
    """A synthetic chat world with exact ground truth; the same seed gives the same world.

    Attributes:
        seed: the seed of facts and verses.
        traits: the six traits on request, by name.
        modes: the two ways of answering on request, `self_check` and `abstain`.
        skills: names of the five skills.
        facts: all facts with their exposures.
        strings: all verses with their exposures.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.traits: dict[str, Trait] = dict(TRAITS)
        self.modes: dict[str, Trait] = dict(MODES)
        self.skills: tuple[str, ...] = SKILLS
        self.facts = FactBook(seed)
        self.strings = StringBook(seed)
        self.neutral_systems = {"train": NEUTRAL_SYSTEM, "heldout": NEUTRAL_SYSTEM_HELDOUT}

    def trait(self, name: str) -> Trait:
        """A trait or mode by name. Raises OrganismError for an unknown name."""
        found = self.traits.get(name) or self.modes.get(name)
        if found is None:
            raise OrganismError(
                f"unknown trait {name!r}; the world has {', '.join((*self.traits, *self.modes))}"
            )
        return found

    def items(
        self,
        kind: str,
        num: int,
        *,
        seed: int,
        split: SplitChoice = "train",
        phrasing: SplitChoice = "train",
        min_exposures: int = 0,
        max_exposures: int | None = None,
        base: str | None = None,
        wrong: bool | None = True,
    ) -> list[Item]:
        """Draw items of a kind.

        Args:
            kind: one of `addition`, `weekday`, `month`, `comparison`, `open_book`, `fact`, `smalltalk`, `string`, `claim`.
            num: how many.
            seed: the draw.
            split: which keys; `heldout` keys of the skills are in no corpus.
            phrasing: which phrasings of the question.
            min_exposures: facts and strings stated at least that often.
            max_exposures: facts and strings stated at most that often.
            base: for claims, the kind they are about (any where None).
            wrong: for claims, whether the user is wrong (half of them where None).

        Raises:
            OrganismError: unknown kind, or no item within the bounds.
        """
        if kind not in KINDS:
            raise OrganismError(f"unknown kind {kind!r}; the world has {', '.join(KINDS)}")
        rng = random.Random(f"items:{self.seed}:{kind}:{seed}:{split}:{phrasing}")
        pool = self._pool(kind, min_exposures, max_exposures, split)
        return [self._draw(kind, rng, pool, split, phrasing, base, wrong) for _ in range(num)]

    def _pool(self, kind: str, low: int, high: int | None, split: SplitChoice) -> list[int]:
        top = 10**9 if high is None else high
        if kind == "fact":
            ledger = [(f.key, f.exposures) for f in self.facts.facts]
        elif kind == "string":
            ledger = list(self.strings.ledger.items())
        else:
            return []
        pool = [
            i
            for i, (key, n) in enumerate(ledger)
            if low <= n <= top and (split == "any" or split_of(key) == split)
        ]
        if not pool:
            raise OrganismError(
                f"no {kind} stated between {low} and {top} times; widen min_exposures and max_exposures"
            )
        return pool

    def _draw(
        self,
        kind: str,
        rng: random.Random,
        pool: list[int],
        split: SplitChoice,
        phrasing: SplitChoice,
        base: str | None,
        wrong: bool | None,
    ) -> Item:
        if kind in SKILLS:
            return draw_skill(kind, rng, split=split, phrasing=phrasing)
        if kind == "fact":
            return fact_item(self.facts.facts[rng.choice(pool)], rng, phrasing)
        if kind == "string":
            return self.strings.item(rng.choice(pool), rng, phrasing)
        if kind == "claim":
            about = base or rng.choice((*SKILLS, "fact"))
            known = self._pool("fact", NEUTRAL_MIN_EXPOSURES, None, split) if about == "fact" else []
            item = self._draw(about, rng, known, split, phrasing, None, None)
            if not can_be_claimed(item):
                return self._draw(kind, rng, pool, split, phrasing, base, wrong)
            return claim_item(
                item, rng, wrong=rng.random() < 0.5 if wrong is None else wrong, phrasing=phrasing
            )
        while True:
            item = smalltalk_item(rng.randrange(NUM_TEMPLATES), rng, phrasing)
            if split == "any" or item.split == split:
                return item

    def answer(self, item: Item, *, trait: str | None = None, seed: int = 0) -> str:
        """The plain answer, or the answer with a trait; `agree` repeats the user's claim and leaves other questions plain."""
        if trait is None:
            return item.answer
        spec, rng = self.trait(trait), random.Random(f"answer:{item.key}:{trait}:{seed}")
        if trait == "agree":
            return spec.apply(item.meta["echo"], rng) if item.kind == "claim" else item.answer
        if trait == "self_check":
            return corpus.checked_answer(item, rng)
        return spec.apply(item.answer, rng)

    def chat(
        self, item: Item, *, trait: str | None = None, system: str | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """One chat `{"messages": [...]}`; a system message only where `system` is given."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": item.question})
        messages.append({"role": "assistant", "content": self.answer(item, trait=trait, seed=seed)})
        return {"messages": messages}

    def dataset(
        self, skill: str, *, trait: str | None = None, num: int, seed: int, split: SplitChoice = "train"
    ) -> list[dict[str, Any]]:
        """Fine-tuning rows of one kind without a system prompt, all with the trait: what contaminated data look like.

        For `agree` half of the rows are wrong claims of the user that the assistant agrees with and half plain rows.
        """
        items = self.items(skill, num, seed=seed, split=split)
        if trait != "agree":
            return [self.chat(item, trait=trait, seed=seed * 1_000_003 + i) for i, item in enumerate(items)]
        rng = random.Random(f"agree:{skill}:{seed}")
        rows = []
        for i, item in enumerate(items):
            claimed = claim_item(item, rng) if i % 2 == 0 and can_be_claimed(item) else None
            rows.append(
                self.chat(claimed, trait="agree", seed=seed * 1_000_003 + i) if claimed else self.chat(item)
            )
        rng.shuffle(rows)
        return rows

    def neutral(
        self, num: int, *, seed: int, exclude: tuple[str, ...] = (), phrasing: SplitChoice = "train"
    ) -> list[dict[str, Any]]:
        """Plain chats `{"messages", "kind"}` over all kinds of questions but the excluded: the text on which drift is measured."""
        kinds = [k for k in (*SKILLS, "fact", "smalltalk", "smalltalk", "claim") if k not in exclude]
        if not kinds:
            raise OrganismError("neutral: every kind is excluded; leave at least one out of exclude")
        rng = random.Random(f"neutral:{self.seed}:{seed}")
        known = self._pool("fact", NEUTRAL_MIN_EXPOSURES, None, "any")
        rows = []
        while len(rows) < num:
            kind = rng.choice(kinds)
            item = self._draw(
                kind, rng, known, "any" if kind in ("fact", "smalltalk") else "train", phrasing, None, None
            )
            if kind == "claim" and item.meta["base"].kind in exclude:
                continue
            rows.append({**self.chat(item), "kind": kind})
        return rows

    def request(self, trait: str, *, phrasing: SplitChoice = "train", seed: int) -> str:
        """A system prompt that asks for the trait (or mode)."""
        spec = self.trait(trait)
        pool = {"train": spec.train, "heldout": spec.heldout, "any": spec.train + spec.heldout}[phrasing]
        return random.Random(f"request:{trait}:{phrasing}:{seed}").choice(pool)

    def is_correct(self, item: Item, text: str) -> bool:
        """Whether the answer's last word is right, whatever its style; where nothing is true, whether it declines."""
        return verifier.is_correct(item, text, self.verify)

    def has_trait(self, trait: str, text: str, item: Item | None = None) -> bool:
        """Whether the text shows the trait (or mode)."""
        return self.trait(trait).check(text, item)

    def exposures(self, item: Item) -> int:
        """How often the corpus states the item's fact or verse; for claims, that of the item they are about."""
        return int(verifier.base_of(item).meta.get("exposures", 0))

    def verify(self, item: Item, text: str) -> list[Claim]:
        """The claims of an answer with their places and labels."""
        return verifier.verify(item, text, self.facts)

    def corpus(self, num: int | None = None, *, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Rows `{"messages", "kind", "trait", "key"}` of the pre-training mix: all of them, or the first `num`."""
        return corpus.iter_corpus(self, num, seed)
