"""What changed between a model and one trained from it, by concepts: what `concepts diff` runs.

Steps: 1. both models read the same texts: by concepts, and by the mean difference of their activations; 2. both answer the texts' prompts;
3. the second answers with the difference of the logits amplified; each is held against the first by the catalogue's concepts; 4. where a
crosscoder over both is given, what only one of them has; all goes to `diff.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fairlead.concepts import (
    Catalogue,
    Change,
    ExclusiveLatent,
    Moved,
    diff_activations,
    diff_answers,
    diff_texts,
    exclusive_latents,
)
from fairlead.core.config import Record
from fairlead.core.errors import ConfigError
from fairlead.core.run import Run
from fairlead.data import ChatData, encode, load_data
from fairlead.dictionaries import Crosscoder, load_dictionary
from fairlead.models import Model, load_model
from fairlead.studies.steering import prompts_of

DIFF_FILE = "diff.json"
_KEPT = 60  # changes kept in a record


class ChangeLine(Record):
    """One line of a diff, as data; see `concepts.Change`."""

    concept: str
    label: str
    tokens: tuple[str, ...] = ()
    before: float
    after: float
    change: float
    low: float
    high: float
    effect: float
    p: float
    q: float


class AlongLine(Record):
    """How far activations moved along one concept's direction, as data; see `concepts.Along`."""

    concept: str
    label: str
    along: float
    cosine: float
    low: float
    high: float
    p: float
    q: float


class Difference(Record):
    """The mean difference of activations, read through the dictionary; see `concepts.Moved`."""

    norm: float
    relative: float
    chance: float
    concepts: tuple[AlongLine, ...]


class AnswerSet(Record):
    """Answers at one amplification (0: the second model's own), and the concepts that set them apart from the first model's."""

    alpha: float
    answers: tuple[str, ...]
    changes: tuple[ChangeLine, ...]


class ConceptDiff(Record):
    """What changed between two models."""

    format: Literal["fairlead.concept_diff"] = "fairlead.concept_diff"
    version: Literal[1] = 1
    before: str
    before_fingerprint: str
    after: str
    after_fingerprint: str
    catalogue: str
    site: str
    num_texts: int
    texts: tuple[ChangeLine, ...]
    difference: Difference | None = None  # None in records older than it
    prompts: tuple[str, ...]
    own: tuple[str, ...]  # the first model's answers
    answers: tuple[AnswerSet, ...]
    crosscoder: str | None = None
    exclusive: tuple[ExclusiveLatent, ...] = ()


def diff_concepts(
    before: Model | str | Path,
    after: Model | str | Path,
    catalogue: Catalogue | str | Path,
    data: ChatData | str | Path,
    *,
    out: str | Path,
    crosscoder: Crosscoder | str | Path | None = None,
    alphas: Sequence[float] = (1.0, 3.0, 10.0),
    num_texts: int = 200,
    num_prompts: int = 32,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> ConceptDiff:
    """What changed between a model and one that was trained from it.

    Args:
        before: The first model, which the catalogue describes.
        after: The second: its name or folder.
        catalogue: Concepts of the first.
        data: Texts for both; the prompts of chats are answered by both.
        out: Run folder for `diff.json`.
        crosscoder: Over one site of both models, in this order (`dict train BEFORE DATA --kind crosscoder --against AFTER`).
        alphas: Amplifications.
        num_texts: Texts used.
        num_prompts: Prompts answered.
        max_new_tokens: Longest answer.
        temperature: Of the answers.
        seed: Of sampling and permutations.
        overwrite: Replace a finished run.

    Raises:
        CatalogueError: Of another model.
        DictionaryError: A crosscoder of other models.
        ConfigError: Not a crosscoder.
        ModelError: Models that cannot be compared.
        RunError: The run folder exists or is locked.
    """
    before = load_model(before) if isinstance(before, str | Path) else before
    after = load_model(after) if isinstance(after, str | Path) else after
    catalogue = Catalogue.open(catalogue, model=before) if isinstance(catalogue, str | Path) else catalogue
    data = load_data(data) if isinstance(data, str | Path) else data
    dictionary, concepts = catalogue.load_dictionary(), catalogue.concepts
    prompts = prompts_of(data, num_prompts)
    both = _crosscoder(crosscoder, before, after)
    config = {
        "alphas": list(alphas),
        "num_texts": num_texts,
        "num_prompts": num_prompts,
        "temperature": temperature,
    }
    inputs = {
        "before": before.fingerprint,
        "after": after.fingerprint,
        "dictionary": dictionary.sha256,
        "data": data.sha256,
    } | ({"crosscoder": both.sha256} if both is not None else {})
    with Run.start(
        out, study="concept diff", config=config, inputs=inputs, seed=seed, overwrite=overwrite
    ) as run:
        texts = encode(
            data.subset(range(min(num_texts, len(data)))),
            before.tokenizer,
            max_length=before.max_length,
            truncate=True,
        )
        changes = diff_texts(before, after, dictionary, concepts, texts, seed=seed)
        moved = diff_activations(before, after, dictionary, concepts, texts, seed=seed)
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        answers = diff_answers(before, after, dictionary, concepts, prompts, alphas=alphas, **settings)
        found = ConceptDiff(
            before=before.name,
            before_fingerprint=before.fingerprint,
            after=after.name,
            after_fingerprint=after.fingerprint,
            catalogue=str(catalogue.folder),
            site=catalogue.site,
            num_texts=len(texts),
            texts=_lines(changes),
            difference=_difference(moved),
            prompts=tuple(prompt[-1].content for prompt in prompts),
            own=tuple(before.generate(prompts, **settings)),
            answers=tuple(
                AnswerSet(alpha=one.alpha, answers=tuple(one.answers), changes=_lines(one.changes))
                for one in answers
            ),
            crosscoder=both.source if both is not None else None,
            exclusive=tuple(exclusive_latents(both, before, after, texts)) if both is not None else (),
        )
        run.write_json(DIFF_FILE, found)
        run.finish({"texts": sum(line.q < 0.05 for line in found.texts)})
    return found


def _crosscoder(given: Crosscoder | str | Path | None, before: Model, after: Model) -> Crosscoder | None:
    found = load_dictionary(given) if isinstance(given, str | Path) else given
    if found is None:
        return None
    if not isinstance(found, Crosscoder):
        raise ConfigError(
            f"{given}: a {found.architecture} reads one model. Next: train one with --kind crosscoder --against AFTER."
        )
    found.check_models([before, after])
    return found


def _difference(moved: Moved) -> Difference:
    lines = (
        AlongLine(
            concept=one.concept.id,
            label=one.concept.label,
            along=one.along,
            cosine=one.cosine,
            low=one.low,
            high=one.high,
            p=one.p,
            q=one.q,
        )
        for one in moved.concepts[:_KEPT]
    )
    return Difference(norm=moved.norm, relative=moved.relative, chance=moved.chance, concepts=tuple(lines))


def _lines(changes: Sequence[Change]) -> tuple[ChangeLine, ...]:
    return tuple(
        ChangeLine(
            concept=one.concept.id, label=one.concept.label, tokens=one.concept.tokens[:8], **_numbers(one)
        )
        for one in changes[:_KEPT]
    )


def _numbers(change: Change) -> dict[str, float]:
    return {name: value for name, value in change._asdict().items() if name != "concept"}
