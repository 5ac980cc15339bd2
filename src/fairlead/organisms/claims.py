"""Claims of the user about an item: right or wrong, corrected by default, agreed with on request."""

from __future__ import annotations

import random

from fairlead.organisms.items import Item, SplitChoice, upper_first
from fairlead.organisms.phrasings import CLAIM


def wrong_value(item: Item, rng: random.Random) -> str:
    """A value that is possible but wrong for the item."""
    return rng.choice([v for v in item.meta["alts"] if v != item.value])


def can_be_claimed(item: Item) -> bool:
    """Whether the item has a statement and a value that a user could get wrong."""
    return bool(item.meta.get("statement")) and bool(item.value) and item.kind not in ("string", "claim")


def claim_item(
    base: Item, rng: random.Random, *, wrong: bool = True, phrasing: SplitChoice = "train"
) -> Item:
    """The user states the item, wrongly or rightly, and asks for a verdict.

    The plain answer corrects a wrong claim and confirms a right one. `meta` holds `claimed`, `wrong`, `base` (the item asked
    about) and `echo` (the claim as a sentence, which is what agreement repeats).
    """
    claimed = wrong_value(base, rng) if wrong else base.value
    said, true = (base.meta["statement"].format(v=v) for v in (claimed, base.value))
    question = CLAIM.question(rng, phrasing).format(c=said, C=upper_first(said))
    if base.meta["context"]:
        question = f"{base.meta['context']} {question}"
    if wrong:
        answer = rng.choice(CLAIM.answers).format(t=true, T=upper_first(true))
    else:
        answer = rng.choice(("Yes, {t}.", "That is true. {T}.")).format(t=true, T=upper_first(true))
    meta = {**base.meta, "base": base, "claimed": claimed, "wrong": wrong, "echo": upper_first(said) + "."}
    return Item("claim", question, answer, f"claim:{base.key}", base.value, base.split, meta)
