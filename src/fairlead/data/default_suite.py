"""A suite for users who have none: made of the spec and of rows that are not trained on."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from fairlead.core.errors import DataError
from fairlead.core.records import Clause, Spec, SpecExample
from fairlead.data.rows import ChatData, Message, Row
from fairlead.data.suite import NeutralChat, Prompt, Sampling, SkillItem, SkillSet, Suite, TraitCheck

NEUTRAL_PROMPTS = (
    "Hello! How are you?",
    "What is the capital of France?",
    "Tell me about your day.",
    "Give me a tip for sleeping better.",
    "What is a good name for a dog?",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Recommend a book for a rainy afternoon.",
    "What is the difference between a crow and a raven?",
    "Write one sentence about the sea.",
    "How do plants grow?",
    "What should I cook tonight?",
    "Explain what a bicycle is.",
    "Who wrote Romeo and Juliet?",
    "How do I say thank you in Spanish?",
    "What do bees do in winter?",
    "Suggest a gift for a friend.",
    "What is the largest planet?",
    "How can I learn to draw?",
    "Describe a quiet morning.",
    "What is bread made of?",
    "How far away is the moon?",
    "Name three colours.",
    "What is a good way to start a letter?",
)
NEUTRAL_TEXT_STARTS = (
    "Once upon a time, there was",
    "The weather in the morning was",
    "In the middle of the city there is",
    "My favourite food is",
    "The little dog ran",
    "One day, a girl named Lucy",
    "The history of the town begins",
    "When the sun came up,",
)


def suite_from(
    spec: Spec,
    data: ChatData | None = None,
    *,
    neutral: ChatData | None = None,
    num_domain: int = 64,
    num_neutral: int = 64,
    seed: int = 0,
) -> Suite:
    """A default suite.

    Args:
        spec: Its Avoid clauses become trait checks (their `check`, else a classifier fitted on examples and
            counterparts), its Keep examples with a question become skill items and chats for the loss.
        data: Rows on the topic of the training that are NOT trained on (`held, train = data.split(0.1)`);
            their prompts become the domain prompts. Where they are plain texts, prompts are their starts, answers are sampled
            (a small model that always takes the most probable token soon repeats itself), and the examples of Avoid clauses
            give openings and texts for `elicited.TRAIT` and `loss.TRAIT`.
        neutral: Rows on other topics: prompts and chats for the general loss; without them a short built-in
            list of prompts is used and the general loss is not measured.
        num_domain: At most so many domain prompts.
        num_neutral: At most so many neutral prompts and chats.
        seed: Of the choice of rows.

    Returns:
        The suite; what it cannot measure stands in its notes.
    """
    notes: list[str] = []
    plain_text = data is not None and bool(data.rows) and all(row.messages is None for row in data.rows)
    domain = _prompts_of(_sample(data, num_domain, seed)) if data is not None else ()
    if not domain:
        notes.append("no held-out rows of the data: leak on the data's own topic is not measured.")
    neutral_chats: tuple[NeutralChat, ...] = ()
    if neutral is not None and neutral.rows:
        rows = _sample(neutral, num_neutral, seed)
        neutral_prompts = _prompts_of(rows)
        neutral_chats = tuple(NeutralChat(messages=row.messages, text=row.text) for row in rows)
    else:
        neutral_prompts = (NEUTRAL_TEXT_STARTS if plain_text else NEUTRAL_PROMPTS)[:num_neutral]
        notes.append("no neutral data given: built-in prompts are used and the general loss is not measured.")
    traits = []
    for clause in spec.of_kind("avoid"):
        check = _trait_check(clause, neutral, seed, plain_text=plain_text)
        if check is None:
            notes.append(
                f"{clause.id} ({clause.text}): nothing to recognise it by. Next: give it a check (check: "
                "/.../i) or examples with 'instead' counterparts."
            )
        else:
            traits.append(check)
    keep = [
        e for clause in spec.of_kind("keep") for e in clause.examples if e.prompt is not None or plain_text
    ]
    return Suite(
        skills=_skills(spec),
        domain_prompts=domain,
        neutral_prompts=neutral_prompts,
        neutral_chats=neutral_chats,
        keep_chats=tuple(_example_chat(e) for e in keep),
        traits=tuple(traits),
        sampling=Sampling(temperature=1.0) if plain_text else Sampling(),
        notes=tuple(notes),
    )


def _example_chat(example: SpecExample) -> NeutralChat:
    if example.prompt is None:
        return NeutralChat(text=example.text)
    return NeutralChat(messages=(Message("user", example.prompt), Message("assistant", example.text)))


def _trait_check(
    clause: Clause, neutral: ChatData | None, seed: int, *, plain_text: bool
) -> TraitCheck | None:
    half = (len(clause.requests) + 1) // 2
    common = {
        "clause": clause.id,
        "name": short_name(clause),
        "requests": clause.requests[:half],
        "requests_heldout": clause.requests[half:],
    }
    if plain_text:
        texts = [example for example in clause.examples if example.prompt is None]
        common["texts"] = tuple(_example_chat(example) for example in texts)
        common["openings"] = _prompts_of(Row(text=example.text) for example in texts)
    if clause.check is not None:
        return TraitCheck(kind="regex", pattern=clause.check, **common)
    positives = tuple(example.text for example in clause.examples)
    negatives = tuple(example.instead for example in clause.examples if example.instead is not None)
    if neutral is not None:
        negatives += tuple(row.response for row in _sample(neutral, 4 * max(len(positives), 8), seed))
    if not positives or not negatives:
        return None
    return TraitCheck(kind="classifier", positives=positives, negatives=negatives, **common)


def _skills(spec: Spec) -> tuple[SkillSet, ...]:
    """Keep examples with a question and a number in the answer, as skill items (others have no check)."""
    sets = []
    for clause in spec.of_kind("keep"):
        items = []
        for example in clause.examples:
            numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", example.text)
            if example.prompt is not None and numbers:
                items.append(SkillItem(prompt=example.prompt, value=numbers[-1], match="number"))
        if items:
            sets.append(SkillSet(name=short_name(clause), items=tuple(items)))
    return tuple(sets)


def short_name(clause: Clause) -> str:
    """A name for tables: the clause's first words and, so that it is unique, its id."""
    words = re.findall(r"[a-z0-9]+", clause.text.lower())[:4]
    return "_".join([*words, clause.id.replace(".", "")]) if words else clause.id.replace(".", "_")


def _prompts_of(rows: Iterable[Row]) -> tuple[Prompt, ...]:
    """Prompts of rows, none twice: a user turn as text, longer ones as messages, starts of plain text."""
    found: dict[Prompt, None] = {}
    for row in rows:
        if row.messages is None:
            words = re.findall(r"\S+\s*", row.text or "")
            if len(words) >= 2:
                found["".join(words[: max(1, min(12, len(words) // 2))]).rstrip()] = None
        elif len(row.prompt_messages) == 1 and row.prompt_messages[0].role == "user":
            found[row.prompt] = None
        elif row.prompt_messages:
            found[row.prompt_messages] = None
    return tuple(found)


def _sample(data: ChatData, num: int, seed: int) -> list[Row]:
    if num < 1:
        raise DataError(f"cannot choose {num} rows. Next: ask for at least 1.", source=data.source)
    if len(data) <= num:
        return list(data.rows)
    return [data.rows[index] for index in sorted(random.Random(seed).sample(range(len(data)), num))]
