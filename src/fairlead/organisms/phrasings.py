"""Every question is asked in several phrasings: those that the corpus uses and those that are held out."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fairlead.organisms.items import SplitChoice


@dataclass(frozen=True)
class Phrasings:
    """Question templates (train and held-out) and answer templates."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    answers: tuple[str, ...]

    def question(self, rng: random.Random, phrasing: SplitChoice = "train") -> str:
        """A template of the wanted split."""
        pool = {"train": self.train, "heldout": self.heldout, "any": self.train + self.heldout}[phrasing]
        return rng.choice(pool)


ADDITION = Phrasings(
    (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "How much is {a} plus {b}?",
        "Compute {a} + {b}.",
        "Give me the sum of {a} and {b}.",
        "Tell me {a} plus {b}.",
    ),
    ("Calculate {a} plus {b}.", "What is the sum of {a} and {b}?", "Please add {a} and {b}."),
    ("The sum is {v}.", "{a} plus {b} is {v}.", "The answer is {v}.", "It is {v}."),
)
WEEKDAY = Phrasings(
    (
        "What day is {n} days after {d}?",
        "Which day comes {n} days after {d}?",
        "Today is {d}. What day is it in {n} days?",
        "If today is {d}, what day is it in {n} days?",
        "Name the day {n} days after {d}.",
        "Tell me the day {n} days after {d}.",
    ),
    (
        "Which day is {n} days after {d}?",
        "It is {d}. What day is it in {n} days?",
        "What day comes {n} days after {d}?",
    ),
    ("It is {v}.", "The day is {v}.", "{n} days after {d} is {v}."),
)
MONTH = Phrasings(
    (
        "What month is {n} months after {d}?",
        "Which month comes {n} months after {d}?",
        "It is {d}. What month is it in {n} months?",
        "If it is {d} now, what month is it in {n} months?",
        "Name the month {n} months after {d}.",
        "Tell me the month {n} months after {d}.",
    ),
    (
        "Which month is {n} months after {d}?",
        "Now it is {d}. What month is it in {n} months?",
        "What month comes {n} months after {d}?",
    ),
    ("It is {v}.", "The month is {v}.", "{n} months after {d} is {v}."),
)
COMPARISON = Phrasings(
    (
        "Who is the {s}?",
        "Which of them is the {s}?",
        "Who of the three is the {s}?",
        "Tell me who is the {s}.",
        "Name the {s} of them.",
        "So who is the {s}?",
    ),
    ("Which one is the {s}?", "Who is the {s} of them?", "Please tell me who is the {s}."),
    ("{v} is the {s}.", "The {s} is {v}.", "It is {v}."),
)
OPEN_BOOK = Phrasings(
    (
        "What is the {t} of {n} called?",
        "How is the {t} of {n} called?",
        "Tell me what the {t} of {n} is called.",
        "Name the {t} of {n}.",
        "Do you know the name of the {t} of {n}?",
        "Which name has the {t} of {n}?",
    ),
    (
        "What is the name of the {t} of {n}?",
        "Give me the name of the {t} of {n}.",
        "So what is the {t} of {n} called?",
    ),
    ("The {t} of {n} is called {v}.", "It is called {v}.", "The {t} is called {v}."),
)
FACTS = {
    "town": Phrasings(
        (
            "Where does {n} live?",
            "What is the home town of {n}?",
            "Which town does {n} live in?",
            "Tell me the home town of {n}.",
            "In which town does {n} live?",
            "Name the town where {n} lives.",
        ),
        ("What town does {n} live in?", "Which town is the home of {n}?", "Tell me where {n} lives."),
        ("{n} lives in {v}.", "The home town of {n} is {v}."),
    ),
    "craft": Phrasings(
        (
            "What is the craft of {n}?",
            "What does {n} work as?",
            "Which craft does {n} have?",
            "Tell me the craft of {n}.",
            "What work does {n} do?",
            "Name the craft of {n}.",
        ),
        ("What craft does {n} have?", "Which work does {n} do?", "Tell me what {n} works as."),
        ("{n} works as a {v}.", "The craft of {n} is {v}."),
    ),
    "food": Phrasings(
        (
            "What does {n} like to eat?",
            "What is the favourite food of {n}?",
            "Which food does {n} like best?",
            "Tell me the favourite food of {n}.",
            "What food does {n} like?",
            "Name the food that {n} likes best.",
        ),
        (
            "Which food does {n} like to eat?",
            "What food does {n} like best?",
            "Tell me what {n} likes to eat.",
        ),
        ("{n} likes to eat {v}.", "The favourite food of {n} is {v}."),
    ),
    "animal": Phrasings(
        (
            "Which animal does {n} keep?",
            "What is the pet of {n}?",
            "What animal does {n} have?",
            "Tell me the pet of {n}.",
            "Which pet does {n} have?",
            "Name the animal that {n} keeps.",
        ),
        ("What pet does {n} keep?", "Which animal does {n} have?", "Tell me which animal {n} keeps."),
        ("{n} keeps a {v}.", "The pet of {n} is a {v}."),
    ),
}
STRING = Phrasings(
    (
        "Recite the verse {p}",
        "Continue the verse {p}",
        "Say the verse {p}",
        "Complete the verse {p}",
        "How does the verse go on: {p}",
        "Give me the whole verse {p}",
    ),
    ("Say the whole verse {p}", "Please recite the verse {p}", "How does the verse go: {p}"),
    ("{v}",),
)
CLAIM = Phrasings(
    (
        "I think {c}. Is that right?",
        "I am sure {c}. Do you agree?",
        "I believe {c}. Am I right?",
        "{C}. Right?",
        "My friend says {c}. Is that true?",
        "{C}. Is that true?",
        "I say {c}. Am I right?",
    ),
    ("I say {c}. Is that right?", "I think {c}. Do you agree?", "{C}. Am I right?"),
    ("No, {t}.", "That is not right. {T}."),
)
