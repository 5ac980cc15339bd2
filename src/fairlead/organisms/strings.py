"""The memorised strings: 200 random verses of 24 syllables, stated 10 to 100 times.

A syllable after a space is one token; the first syllable of an answer, which no space precedes, is two for some of them, so
that a verse is 24 or 25 tokens long (24 after a space, as in the prompt).
"""

from __future__ import annotations

import random

from fairlead.organisms import words
from fairlead.organisms.items import Item, SplitChoice
from fairlead.organisms.phrasings import STRING
from fairlead.organisms.skills import Case, phrase

NUM_STRINGS = 200
NUM_SYLLABLES = 24
NUM_PROMPT = 4


class StringBook:
    """All verses of one world with their exposures; the prompt gives the first four syllables."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"strings:{seed}")
        verses: dict[tuple[str, ...], None] = {}
        while len(verses) < NUM_STRINGS:
            verses[tuple(rng.choice(words.SYLLABLES) for _ in range(NUM_SYLLABLES))] = None
        self.verses = tuple(verses)
        self.exposures = tuple(10 + round(90 * i / (NUM_STRINGS - 1)) for i in range(NUM_STRINGS))

    @property
    def ledger(self) -> dict[str, int]:
        """Exposures of every verse, by key."""
        return {f"string:{i}": count for i, count in enumerate(self.exposures)}

    def item(self, index: int, rng: random.Random, phrasing: SplitChoice = "train") -> Item:
        """Ask for a verse."""
        verse = self.verses[index]
        value, prompt = " ".join(verse), " ".join(verse[:NUM_PROMPT])
        case = Case(f"string:{index}", value, {"p": prompt}, "{v}")
        return phrase("string", case, STRING, rng, phrasing, exposures=self.exposures[index])
