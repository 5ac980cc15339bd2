"""What a question of the pocket world is: the item, the claim, and the stable hash that splits items.

An item is one question with its plain answer and its ground truth. Whether an item is held out is decided by a hash of its
key, so that the split is the same in every process, for every seed and for every phrasing of the question.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "heldout"]
SplitChoice = Literal["train", "heldout", "any"]
Label = Literal["supported", "contradicted", "not_answerable"]

LOWERABLE = frozenset(
    {"The", "It", "No", "Yes", "That", "In", "A", "An", "You", "My", "This", "Hello", "There", "Both"}
)


@dataclass(frozen=True)
class Item:
    """One question of the world.

    Attributes:
        kind: `addition`, `weekday`, `month`, `comparison`, `open_book`, `fact`, `smalltalk`, `string` or `claim`.
        question: what the user says.
        answer: the plain right answer; for a fact that has no value, an invented one (what a confident model would say).
        key: identity of the item whatever its phrasing; splits are made on it.
        value: the true value as it stands in the answer; empty where there is no truth to tell.
        split: `heldout` for the fifth of all keys that the corpus of the base model never uses (facts, strings and
            smalltalk are all in the corpus: there the label only serves those who want two halves).
        meta: `statement` (a sentence with `{v}` for the value), `context` (what the prompt says before), `alts` (the
            possible values) and what else the kind needs.
    """

    kind: str
    question: str
    answer: str
    key: str
    value: str
    split: Split
    meta: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Claim:
    """One claim in an answer: `text[start:end] == span`, what it says, and whether the world supports it."""

    start: int
    end: int
    span: str
    value: str
    label: Label


def stable_hash(text: str) -> int:
    """A hash that does not depend on the process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_of(key: str) -> Split:
    """`heldout` for a fifth of all keys."""
    return "heldout" if stable_hash(key) % 5 == 0 else "train"


def lower_first(sentence: str) -> str:
    """Lower the first letter unless the sentence begins with a name."""
    word = sentence.split(" ", 1)[0].rstrip(",.!")
    return sentence[0].lower() + sentence[1:] if word in LOWERABLE else sentence


def upper_first(sentence: str) -> str:
    """Raise the first letter."""
    return sentence[:1].upper() + sentence[1:]
