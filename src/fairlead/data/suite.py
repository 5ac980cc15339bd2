"""Suites: what is measured on a model before and after a training.

A suite is one JSON file: skills with their right answers, prompts on and off the topic of the data, neutral
chats for the general loss, and a check for each behaviour that the spec avoids. How an answer is checked:

* skill items: `number` (the last number of the answer), `contains` (the value as whole words), `exact` (the
  whole answer), `organism` (ground truth of a model organism, through a resolver that the caller passes in);
* traits: `regex`, `classifier` (fitted on the clause's examples and counterparts), `organism` (resolver).

Models of plain text continue their prompts. For them a suite can sample instead of taking the most probable token each time
(`sampling`), and a trait can bring openings in its style and held-out texts.

Data and organisms stand side by side and do not know each other, which is why `organism` kinds need a
resolver.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, ValidationError, field_validator, model_validator

from fairlead.core.config import Record, describe_validation
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.run import write_json
from fairlead.data.classifier import TextClassifier, fit_text_classifier
from fairlead.data.rows import Message, Row, as_messages

Prompt: TypeAlias = str | tuple[Message, ...]
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def _prompts(values: Any, field: str) -> Any:
    """Message lists (JSON objects) to `Message`s; strings stay."""
    if not isinstance(values, list | tuple):
        return values
    return tuple(_prompt(value, f"{field}[{index}]") for index, value in enumerate(values))


def _prompt(value: Any, field: str) -> Any:
    if isinstance(value, list | tuple):
        return as_messages(_objects(value), field=field, need_response=False)
    return value


def _objects(messages: Iterable[Any]) -> list[Any]:
    """Messages that JSON or pydantic turned into pairs, as objects again."""
    return [
        {"role": m[0], "content": m[1]} if isinstance(m, list | tuple) and len(m) == 2 else m
        for m in messages
    ]


class SkillItem(Record):
    """One question with its right answer.

    Attributes:
        prompt: A user turn, or messages.
        value: The right value.
        match: How an answer is checked.
        heldout: Whether the item is of a kind that no training data holds.
        meta: What else the resolver of `organism` items needs.
    """

    prompt: Prompt
    value: str
    match: Literal["number", "contains", "exact", "organism"] = "contains"
    heldout: bool = False
    meta: dict[str, Any] = Field(default_factory=dict)

    _read_prompt = field_validator("prompt", mode="before")(lambda value: _prompt(value, "prompt"))

    @model_validator(mode="after")
    def _check_value(self) -> SkillItem:
        if self.match == "number" and _number(self.value) is None:
            raise ValueError(f"value {self.value!r} is not a number")
        if self.match in ("contains", "exact") and not self.value.strip():
            raise ValueError("value is empty")
        return self


class SkillSet(Record):
    """A named group of skill items."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    items: tuple[SkillItem, ...] = Field(min_length=1)


class NeutralChat(Record):
    """A chat (or text) on which the general loss is measured."""

    messages: tuple[Message, ...] | None = None
    text: str | None = None

    _read_messages = field_validator("messages", mode="before")(
        lambda value: as_messages(_objects(value)) if isinstance(value, list | tuple) else value
    )

    @model_validator(mode="after")
    def _check_one(self) -> NeutralChat:
        if (self.messages is None) == (self.text is None):
            raise ValueError("give either messages or text")
        return self

    @property
    def row(self) -> Row:
        """As a row for `fairlead.data.encode`."""
        return Row(messages=self.messages, text=self.text)


class TraitCheck(Record):
    """How one avoided behaviour is recognised and asked for.

    Attributes:
        clause: Id of the spec's clause ("avoid.1").
        name: Short name in tables.
        kind: How it is recognised.
        pattern: For "regex", a pattern for `re.search`; for "organism", the name of the trait in the
            organism.
        positives: For "classifier", answers that show it.
        negatives: For "classifier", answers that do not.
        requests: System prompts that ask for it.
        requests_heldout: Such prompts that no training uses.
        openings: Starts of text in its style, which models of plain text continue (`elicited.NAME`).
        texts: Chats or texts that show it and that no training uses, for their loss (`loss.NAME`).
    """

    clause: str
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    kind: Literal["regex", "organism", "classifier"]
    pattern: str | None = None
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    requests_heldout: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    texts: tuple[NeutralChat, ...] = ()

    @model_validator(mode="after")
    def _check_kind(self) -> TraitCheck:
        if self.name in ("neutral", "keep"):
            raise ValueError(f"the name '{self.name}' is taken by another loss")
        if self.kind == "regex":
            try:
                re.compile(self.pattern or "")
            except re.error as error:
                raise ValueError(f"pattern is not a regular expression ({error})") from error
        if self.kind != "classifier" and not self.pattern:
            raise ValueError(f"a check of kind '{self.kind}' needs a pattern")
        if self.kind == "classifier" and not (self.positives and self.negatives):
            raise ValueError("a check of kind 'classifier' needs positives and negatives")
        return self


class Sampling(Record):
    """How prompts are answered.

    Attributes:
        temperature: 0 for the most probable token each time.
        draws: Answers to each prompt; they count one by one.
        max_new_tokens: Longest answer; None: as `verify` says.
        seed: Of sampling, the same for all models.
    """

    temperature: float = Field(default=0.0, ge=0)
    draws: int = Field(default=1, ge=1)
    max_new_tokens: int | None = Field(default=None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check_draws(self) -> Sampling:
        if self.draws > 1 and self.temperature == 0:
            raise ValueError("several draws at temperature 0 are all the same; set a temperature")
        return self


class Suite(Record):
    """Everything that `verify` measures.

    Attributes:
        skills: Wanted skills.
        domain_prompts: Prompts on the topic of the data, where an avoided behaviour may leak.
        neutral_prompts: Prompts on other topics.
        neutral_chats: Chats or texts for the general loss.
        keep_chats: Examples of the spec's Keep clauses, for their loss.
        traits: One check for each avoided clause.
        sampling: How prompts are answered; greedily, once each, by default.
        notes: What the suite cannot measure, and why.
    """

    format: Literal["fairlead.suite"] = "fairlead.suite"
    version: Literal[1] = 1
    skills: tuple[SkillSet, ...] = ()
    domain_prompts: tuple[Prompt, ...] = ()
    neutral_prompts: tuple[Prompt, ...] = ()
    neutral_chats: tuple[NeutralChat, ...] = ()
    keep_chats: tuple[NeutralChat, ...] = ()
    traits: tuple[TraitCheck, ...] = ()
    sampling: Sampling = Sampling()
    notes: tuple[str, ...] = ()

    _read_domain = field_validator("domain_prompts", mode="before")(lambda v: _prompts(v, "domain_prompts"))
    _read_neutral = field_validator("neutral_prompts", mode="before")(
        lambda v: _prompts(v, "neutral_prompts")
    )

    @model_validator(mode="after")
    def _check_names(self) -> Suite:
        for what, names in (
            ("skills", [skill.name for skill in self.skills]),
            ("traits", [trait.name for trait in self.traits]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)}")
        return self

    def trait(self, clause_id: str) -> TraitCheck | None:
        """The check of a clause, if there is one."""
        return next((trait for trait in self.traits if trait.clause == clause_id), None)


SkillResolver: TypeAlias = Callable[[SkillItem, str], bool]
TraitResolver: TypeAlias = Callable[[TraitCheck, str], bool]


def load_suite(path: str | Path) -> Suite:
    """Read a suite.

    Raises:
        DataError: Missing file, broken JSON, or a field that is wrong; names it.
    """
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror or error}). Next: check the path of the suite.",
            source=str(path),
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"is not JSON ({error}).", source=str(path), line=getattr(error, "lineno", None)
        ) from error
    if not isinstance(value, dict) or value.get("format") != "fairlead.suite":
        raise DataError(
            "is not a suite (its format is not 'fairlead.suite').", source=str(path), field="format"
        )
    if value.get("version") != 1:
        raise DataError(
            f"suite version {value.get('version')!r} is not known here. Next: update fairlead.",
            source=str(path),
            field="version",
        )
    try:
        return Suite.model_validate(value)
    except ValidationError as error:
        raise DataError(describe_validation(error, "Suite"), source=str(path)) from error


def save_suite(suite: Suite, path: str | Path) -> Path:
    """Write a suite that `load_suite` reads back; atomic."""
    value = suite.model_dump(mode="json")
    for name in ("domain_prompts", "neutral_prompts"):
        value[name] = [_plain(prompt) for prompt in getattr(suite, name)]
    for name in ("neutral_chats", "keep_chats"):
        value[name] = [_plain_chat(chat) for chat in getattr(suite, name)]
    for check, raw in zip(suite.traits, value["traits"], strict=True):
        raw["texts"] = [_plain_chat(chat) for chat in check.texts]
    for skill, raw in zip(suite.skills, value["skills"], strict=True):
        for item, raw_item in zip(skill.items, raw["items"], strict=True):
            raw_item["prompt"] = _plain(item.prompt)
    write_json(path, value)
    return Path(path)


def is_correct(item: SkillItem, text: str, *, resolver: SkillResolver | None = None) -> bool:
    """Whether an answer has the right value.

    Raises:
        ConfigError: An `organism` item without a resolver.
    """
    if item.match == "organism":
        if resolver is None:
            raise ConfigError("this skill item needs its organism. Next: load the model as 'organism:NAME'.")
        return bool(resolver(item, text))
    if item.match == "number":
        found = _NUMBER.findall(text)
        return bool(found) and _number(found[-1]) == _number(item.value)
    if item.match == "exact":
        return " ".join(text.split()) == " ".join(item.value.split())
    wanted = re.escape(" ".join(item.value.split()).casefold())
    return re.search(rf"(?<!\w){wanted}(?!\w)", " ".join(text.split()).casefold()) is not None


def has_trait(check: TraitCheck, text: str, *, resolver: TraitResolver | None = None) -> bool:
    """Whether an answer shows a behaviour (a classifier at probability one half).

    Raises:
        ConfigError: An `organism` check without a resolver.
    """
    if check.kind == "organism":
        if resolver is None:
            raise ConfigError(
                f"the check of trait '{check.name}' needs its organism. Next: load the model as "
                "'organism:NAME'."
            )
        return bool(resolver(check, text))
    if check.kind == "regex":
        return re.search(check.pattern or "", text) is not None
    return trait_classifier(check)(text) >= 0.5


def trait_classifier(check: TraitCheck) -> TextClassifier:
    """The classifier of a check of kind "classifier", fitted once; its `auroc` says how far to trust it."""
    return _fit_once(check.positives, check.negatives)


@lru_cache(maxsize=64)
def _fit_once(positives: tuple[str, ...], negatives: tuple[str, ...]) -> TextClassifier:
    return fit_text_classifier(positives, negatives)


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [message.as_dict() for message in prompt]


def _plain_chat(chat: NeutralChat) -> dict[str, Any]:
    return {"text": chat.text} if chat.messages is None else {"messages": _plain(chat.messages)}


def _number(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None
