"""Preview: what a data set would teach a model, before any training.

Steps: 1. texts for the dictionary (given corpus; for the pocket model its world's corpus; else the data and the model's own answers);
2. the dictionary (given, or trained); 3. concepts; 4. uptake on the data; 5. uptake on a reference; 6. the bag-of-tokens baseline; 7. the
menu, with examples by token. The run folder holds menu.json, concepts.json, uptake.safetensors (sums and the per-example table),
per_example.json (the strongest lines of each example), background.json (ordinary texts for the judge) and dictionary/. An
interrupted preview goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fairlead.concepts import build_concepts
from fairlead.core.errors import ConfigError
from fairlead.core.progress import say
from fairlead.core.records import Concept, Menu
from fairlead.core.run import Run, read_json, sha256_json
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, Row, encode, load_data
from fairlead.data.rows import Message
from fairlead.dictionaries import Dictionary, DictionaryConfig, load_dictionary, train_dictionary
from fairlead.gradients import Uptake, bag_of_tokens, build_menu, load_uptake, measure_uptake, save_uptake, token_contexts
from fairlead.models import Model, load_model

CORPUS_ROWS = 6000
REFERENCE_ROWS = 512
OWN_ROWS = 192
BACKGROUND_ROWS = 96
PER_EXAMPLE_LINES = 5


def preview(
    model: Model | str | Path,
    data: ChatData | str | Path,
    *,
    dictionary: Dictionary | str | Path | None = None,
    corpus: ChatData | str | Path | None = None,
    reference: ChatData | str | Path | None = "auto",
    out: str | Path | None = None,
    site: Site | str | None = None,
    concepts: Sequence[Concept] | None = None,
    config: DictionaryConfig | None = None,
    max_examples: int | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    max_lines: int = 60,
    seed: int = 0,
    resume: bool = True,
    overwrite: bool = False,
) -> Menu:
    """The menu of a data set: its concepts, ranked by what is special about this data's pull on the model.

    Args:
        model: A model, or a name or folder.
        data: A data set, or a path or name.
        dictionary: A dictionary or its folder; None: one is trained here.
        corpus: Texts like those the model knows: for the dictionary, the concepts and (with reference "auto") the reference.
        reference: "auto" (usual data: the corpus or the pocket world's neutral chats; the model's own answers where there is neither),
            "self" (the same prompts answered by the model), or a data set.
        out: Run folder; None: nothing is kept.
        site: Where; None: the dictionary's site, or the model's middle layer.
        concepts: Groups of the given dictionary's latents; None: made here.
        config: Settings of the dictionary where one is trained.
        max_examples: Use the first so many examples of the data.
        max_length: Longer examples are cut; None: the model's limit.
        batch_size: Examples a forward pass.
        max_lines: Lines of the menu.
        seed: Of the dictionary, draws and the bootstrap.
        resume: Go on with an interrupted preview of the same settings.
        overwrite: Replace what stands at `out`.

    Raises:
        DictionaryError: The dictionary was made for another model or site.
        DataError: No usable example.
        RunError: The run folder is locked, taken or cannot be written.
    """
    model = model if isinstance(model, Model) else load_model(model)
    data = data if isinstance(data, ChatData) else load_data(data)
    data = data.subset(range(min(max_examples, len(data)))) if max_examples else data
    corpus = _loaded(corpus)
    reference = reference if reference in (None, "auto", "self") else _loaded(reference)
    given = load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary
    if given is not None:
        given.check(model, site)
    limit = max_length or model.max_length
    encoded = _encode(model, data, limit)

    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(TemporaryDirectory())) / "preview"
        inputs = {
            "model": model.fingerprint,
            "data": data.sha256,
            "dictionary": given.sha256 if given is not None else "",
            "corpus": corpus.sha256 if corpus is not None else "",
            "reference": reference.sha256 if isinstance(reference, ChatData) else str(reference),
            "concepts": sha256_json([c.model_dump(mode="json") for c in concepts]) if concepts is not None else "",
        }
        settings = {
            "model": model.name,
            "data": data.source,
            "site": str(site) if site is not None else None,
            "config": config.model_dump(mode="json") if config is not None else None,
            "max_examples": max_examples,
            "max_length": max_length,
            "batch_size": batch_size,
            "max_lines": max_lines,
        }
        run = stack.enter_context(
            Run.start(folder, study="preview", config=settings, inputs=inputs, seed=seed, resume=resume, overwrite=overwrite)
        )
        own = _own_answers(run, model, data, limit, seed)
        texts, background, usual = _texts(model, data, corpus, own, seed)
        corpus_encoded = _encode(model, texts, limit)

        if given is None:
            say(f"training a dictionary on {len(texts):,} texts")
            plan = (config or DictionaryConfig()).model_copy(update={"seed": seed})
            where = run.path("dictionary")
            given = train_dictionary(model, corpus_encoded, site=site, config=plan, out=where, resume=resume)
        else:
            given.save(run.path("dictionary"))
        found = _concepts(run, model, given, corpus_encoded, concepts, seed)

        def measured(name: str, rows: list[Encoded]) -> Uptake:
            path = run.path(f"{name}.safetensors")
            if path.is_file():
                return load_uptake(path)
            state = run.path(f"{name}.state")
            uptake = measure_uptake(
                model, given, rows, batch_size=batch_size, concepts=found, seed=seed, state=state, label=name.replace("_", " ")
            )
            save_uptake(uptake, path)
            return uptake

        uptake = measured("uptake", encoded)
        base, base_name = _reference(model, reference, usual, own, limit)
        against = measured("reference_uptake", base) if base is not None else None
        baseline = bag_of_tokens(
            encoded[: len(own)] if len(own) < len(encoded) else encoded, _encode(model, own, limit), model.tokenizer
        )
        menu = build_menu(
            uptake,
            found,
            against,
            model=model.name,
            model_fingerprint=model.fingerprint,
            data=data.source,
            data_sha256=data.sha256,
            site=str(given.site),
            dictionary=str(run.final / "dictionary") if out is not None else given.source,
            dictionary_sha256=given.sha256,
            reference_name=base_name,
            baseline=baseline,
            max_lines=max_lines,
            contexts=lambda concept, rows: token_contexts(model, given, encoded, concept, rows),
        )
        run.write_json("per_example.json", _per_example(uptake, found, menu))
        run.write_json("background.json", [row.as_record() for row in background.rows])
        run.write_json("menu.json", menu)
        run.record["summary"] = {
            "num_examples": menu.num_examples,
            "loss": menu.loss,
            "remainder": menu.remainder,
            "lines": [line.concept.label for line in menu.lines[:5]],
        }
    return menu


def _loaded(source: ChatData | str | Path | None) -> ChatData | None:
    return source if isinstance(source, ChatData) or source is None else load_data(source)


def _encode(model: Model, data: ChatData, limit: int) -> list[Encoded]:
    return encode(data, model.tokenizer, max_length=limit, on_long="truncate")


def _chats(records: Sequence[dict[str, Any]], source: str) -> ChatData:
    rows = [Row(messages=tuple(Message(m["role"], m["content"]) for m in record["messages"])) for record in records]
    return ChatData(rows, source=source)


def _own_answers(run: Run, model: Model, data: ChatData, limit: int, seed: int) -> ChatData:
    """The model's own greedy answers to the first prompts of the data; the data itself where there are no prompts."""
    path = run.path("own_answers.json")
    if path.is_file():
        return _chats(read_json(path), "the model's own answers")
    rows = [row for row in data.rows[:OWN_ROWS] if row.messages is not None and row.prompt_messages]
    if not rows:
        starts = [(row.text or row.response)[:60] for row in data.rows[: OWN_ROWS // 4]]
        answers = model.generate(starts, max_new_tokens=min(64, limit // 2), seed=seed, chat=False)
        return ChatData([Row(text=start + answer) for start, answer in zip(starts, answers, strict=True)], source="own")
    prompts = [[m.as_dict() for m in row.prompt_messages] for row in rows]
    answers = model.generate(prompts, max_new_tokens=min(48, limit // 2), seed=seed, progress="own answers")
    records = [
        {"messages": [*prompt, {"role": "assistant", "content": answer.strip() or "."}]}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    run.write_json("own_answers.json", records)
    return _chats(records, "the model's own answers")


def _texts(
    model: Model, data: ChatData, corpus: ChatData | None, own: ChatData, seed: int
) -> tuple[ChatData, ChatData, ChatData | None]:
    """Texts for dictionary and concepts, background for the judge, and the usual reference (None: there is no usual data)."""
    if corpus is not None:
        part = corpus if len(corpus) <= REFERENCE_ROWS else corpus.split(REFERENCE_ROWS / len(corpus), seed)[0]
        return corpus, part.subset(range(min(BACKGROUND_ROWS, len(part)))), part
    if model.name == "organism:pocket":
        from fairlead.organisms import World

        world = World()
        texts = _chats(list(world.corpus(CORPUS_ROWS, seed=1000 + seed)), "the pocket world's corpus")
        usual = _chats(world.neutral(REFERENCE_ROWS, seed=1000 + seed), "the pocket world's neutral chats")
        return texts, usual.subset(range(BACKGROUND_ROWS)), usual
    return ChatData([*data.rows, *own.rows], source="data and own answers"), own.subset(range(min(BACKGROUND_ROWS, len(own)))), None


def _concepts(
    run: Run, model: Model, dictionary: Dictionary, encoded: list[Encoded], given: Sequence[Concept] | None, seed: int
) -> list[Concept]:
    path = run.path("concepts.json")
    if path.is_file():
        return [Concept.model_validate(record) for record in read_json(path)]
    found = list(given) if given is not None else build_concepts(model, dictionary, encoded, seed=seed)
    run.write_json("concepts.json", [concept.model_dump(mode="json") for concept in found])
    return found


def _reference(
    model: Model, reference: ChatData | str | Path | None, usual: ChatData | None, own: ChatData, limit: int
) -> tuple[list[Encoded] | None, str]:
    if isinstance(reference, ChatData):
        return _encode(model, reference, limit), reference.source
    if reference is None:
        return None, ""
    if reference == "auto":
        if usual is not None:
            return _encode(model, usual, limit), f"usual: {usual.source}"
        return _encode(model, own, limit), "self: the same prompts answered by the model (tells traits, blind to skills both show)"
    if reference == "self":
        return _encode(model, own, limit), "self: the same prompts answered by the model"
    raise ConfigError(f"reference is {reference!r}. Next: use 'auto', 'self' or a data set.")


def _per_example(uptake: Uptake, concepts: Sequence[Concept], menu: Menu) -> list[dict[str, Any]]:
    """The strongest lines of the menu for each example, uptake per loss token of the example."""
    shown = {line.concept.id for line in menu.lines}
    records = []
    for place, index in enumerate(uptake.table_index.tolist()):
        tokens = max(float(uptake.example_tokens[place]), 1.0)
        lines = [
            {"concept": concepts[unit].id, "uptake": value / tokens}
            for unit, value in zip(uptake.table_unit[place].tolist(), uptake.table_value[place].tolist(), strict=True)
            if unit < len(concepts) and concepts[unit].id in shown
        ]
        records.append({"example": index, "loss": float(uptake.example_loss[place]) / tokens, "lines": lines[:PER_EXAMPLE_LINES]})
    return records
