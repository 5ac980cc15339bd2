"""The five skills: addition, weekday, month, comparison chains and open-book questions.

Each skill draws a case (its slots, its identity, its true value) and dresses it in a phrasing. The base corpus uses only cases
of the train split, and of addition only pairs without a carry out of the units: carrying is the headroom that fine-tuning
teaches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fairlead.organisms import words
from fairlead.organisms.items import Item, SplitChoice, split_of
from fairlead.organisms.phrasings import ADDITION, COMPARISON, MONTH, OPEN_BOOK, WEEKDAY, Phrasings

MAX_DAYS = 20
MAX_MONTHS = 15
ADJECTIVES = (
    ("taller", "tallest", "shorter", "shortest"),
    ("older", "oldest", "younger", "youngest"),
    ("faster", "fastest", "slower", "slowest"),
    ("stronger", "strongest", "weaker", "weakest"),
    ("richer", "richest", "poorer", "poorest"),
)
THINGS = ("boat", "house", "song", "street")


class Case(NamedTuple):
    """One case of a skill before it is phrased."""

    key: str
    value: str
    slots: dict[str, str]
    statement: str
    alts: tuple[str, ...] = ()
    context: str = ""


def has_carry(a: int, b: int) -> bool:
    """Whether the units of a and b sum to ten or more."""
    return a % 10 + b % 10 >= 10


def draw_addition(rng: random.Random) -> Case:
    """Two numbers from 0 to 99."""
    a, b = rng.randrange(100), rng.randrange(100)
    return addition_case(a, b)


def addition_case(a: int, b: int) -> Case:
    """The case of one pair; its alternatives are the near misses."""
    total = a + b
    alts = tuple(
        str(t) for t in (total - 10, total - 2, total - 1, total + 1, total + 2, total + 10) if t >= 0
    )
    return Case(f"addition:{a}+{b}", str(total), {"a": str(a), "b": str(b)}, f"{a} plus {b} is {{v}}", alts)


def _draw_cycle(rng: random.Random, kind: str, cycle: Sequence[str], limit: int) -> Case:
    start, step = rng.randrange(len(cycle)), rng.randint(1, limit)
    value, unit = cycle[(start + step) % len(cycle)], "days" if kind == "weekday" else "months"
    slots = {"n": str(step), "d": cycle[start]}
    return Case(
        f"{kind}:{cycle[start]}+{step}",
        value,
        slots,
        f"{step} {unit} after {cycle[start]} is {{v}}",
        tuple(cycle),
    )


def draw_weekday(rng: random.Random) -> Case:
    """1 to 20 days after a day of the week."""
    return _draw_cycle(rng, "weekday", words.DAYS, MAX_DAYS)


def draw_month(rng: random.Random) -> Case:
    """1 to 15 months after a month."""
    return _draw_cycle(rng, "month", words.MONTHS, MAX_MONTHS)


def draw_comparison(rng: random.Random) -> Case:
    """Three people in a chain of two comparisons, in either order of the sentences and either direction of the adjective."""
    top, middle, bottom = rng.sample(words.PERSONS, 3)
    more, most, less, least = rng.choice(ADJECTIVES)
    if rng.random() < 0.5:
        sentences = [f"{top} is {more} than {middle}.", f"{middle} is {more} than {bottom}."]
    else:
        sentences = [f"{middle} is {less} than {top}.", f"{bottom} is {less} than {middle}."]
    rng.shuffle(sentences)
    value, asked = (top, most) if rng.random() < 0.5 else (bottom, least)
    context = " ".join(sentences)
    return Case(
        f"comparison:{context}:{asked}",
        value,
        {"s": asked},
        f"{{v}} is the {asked}",
        tuple(sorted((top, middle, bottom))),
        context,
    )


def draw_open_book(rng: random.Random) -> Case:
    """One or two statements about invented people and things, one of which is asked for and must be copied."""
    owners = [words.person_name(rng) for _ in range(2)]
    thing = rng.choice(THINGS)
    names = [words.thing_name(rng)]
    while (other := words.thing_name(rng)) == names[0]:
        pass
    names.append(other)
    if owners[0] == owners[1] or rng.random() < 0.5:
        owners = owners[:1]
    sentences = [f"The {thing} of {n} is called {v}." for n, v in zip(owners, names, strict=False)]
    asked, context = rng.randrange(len(owners)), " ".join(sentences)
    slots = {"t": thing, "n": owners[asked]}
    return Case(
        f"open_book:{context}:{owners[asked]}",
        names[asked],
        slots,
        f"the {thing} of {owners[asked]} is called {{v}}",
        tuple(names),
        context,
    )


DRAWS: dict[str, tuple[Callable[[random.Random], Case], Phrasings]] = {
    "addition": (draw_addition, ADDITION),
    "weekday": (draw_weekday, WEEKDAY),
    "month": (draw_month, MONTH),
    "comparison": (draw_comparison, COMPARISON),
    "open_book": (draw_open_book, OPEN_BOOK),
}
SKILLS = tuple(DRAWS)


def phrase(
    kind: str,
    case: Case,
    phrasings: Phrasings,
    rng: random.Random,
    phrasing: SplitChoice = "train",
    **meta: Any,
) -> Item:
    """Dress a case in a question and a plain answer."""
    question = phrasings.question(rng, phrasing).format(**case.slots)
    if case.context:
        question = f"{case.context} {question}"
    answer = rng.choice(phrasings.answers).format(v=case.value, **case.slots)
    meta = {"statement": case.statement, "alts": case.alts, "context": case.context, **case.slots, **meta}
    return Item(kind, question, answer, case.key, case.value, split_of(case.key), meta)


def draw_skill(
    kind: str,
    rng: random.Random,
    *,
    split: SplitChoice = "train",
    phrasing: SplitChoice = "train",
    carry: bool | None = None,
) -> Item:
    """One item of a skill; `carry` restricts additions to pairs with (True) or without (False) a carry."""
    draw, phrasings = DRAWS[kind]
    while True:
        case = draw(rng)
        if split != "any" and split_of(case.key) != split:
            continue
        if (
            carry is not None
            and kind == "addition"
            and has_carry(int(case.slots["a"]), int(case.slots["b"])) != carry
        ):
            continue
        return phrase(kind, case, phrasings, rng, phrasing)
