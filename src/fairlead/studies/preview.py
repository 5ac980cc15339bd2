"""Preview: what a data set would teach a model, before any training.

Steps: 1. texts for the dictionary (given corpus; for the pocket model its world's corpus; else the data and the model's own answers);
2. the dictionary (given, or trained); 3. concepts; 4. uptake on the data; 5. uptake on a reference; 6. the bag-of-tokens baseline; 7. which
concepts come along with which, where there is a corpus besides the data; 8. the menu, with examples by token; 9. where asked for, a
rehearsal: a few steps on a copy. The run folder holds menu.json, concepts.json,
uptake.safetensors (sums and the per-example table), per_example.json (the strongest lines of each example), sample.json and background.json
(rows of the data and ordinary texts, for the judge) and dictionary/. An interrupted preview goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from fairlead.concepts import Companions, build_concepts, text_activations
from fairlead.core.progress import say
from fairlead.core.records import Concept, Menu
from fairlead.core.run import Run, read_json, sha256_json
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, load_data
from fairlead.dictionaries import Dictionary, DictionaryConfig, load_dictionary, train_dictionary
from fairlead.gradients import (
    Uptake,
    bag_of_tokens,
    build_menu,
    example_lines,
    load_uptake,
    measure_uptake,
    save_uptake,
    token_contexts,
)
from fairlead.models import Model, load_model
from fairlead.studies.preview_texts import (
    choose_reference,
    choose_texts,
    encode_rows,
    load_optional,
    own_answers,
)
from fairlead.training.rehearsal import rehearse as rehearse_steps

PER_EXAMPLE_LINES = 5
NUM_SAMPLE = 256  # rows of the data that the judge sees
COMPANY_TEXTS = 3000  # texts in which companions are looked for


def preview(
    model: Model | str | Path,
    data: ChatData | str | Path,
    *,
    dictionary: Dictionary | str | Path | None = None,
    corpus: ChatData | str | Path | None = None,
    reference: ChatData | str | Path | None = None,
    out: str | Path | None = None,
    site: Site | str | None = None,
    concepts: Sequence[Concept] | None = None,
    config: DictionaryConfig | None = None,
    max_examples: int | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    max_lines: int = 60,
    rehearse: int = 0,
    workers: int = 1,
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
        reference: None or "auto" (usual data: the corpus or the pocket world's neutral chats; the model's own answers where there is
            neither), "self" (the same prompts answered by the model), "none", or a data set.
        out: Run folder; None: nothing is kept.
        site: Where; None: the dictionary's site, or the model's middle layer.
        concepts: Groups of the given dictionary's latents; None: made here.
        config: Settings of the dictionary where one is trained.
        max_examples: Use the first so many examples of the data.
        max_length: Longer examples are cut; None: the model's limit.
        batch_size: Examples a forward pass.
        max_lines: Lines of the menu.
        rehearse: Steps of plain fine-tuning to try on a copy, to see which concepts move and whether they spread; 0 for none.
        workers: Processes that measure the uptake together; for many examples on a CPU.
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
    corpus = load_optional(corpus)
    reference = reference or "auto"
    if reference not in ("auto", "self", "none"):
        reference = load_optional(reference) or "auto"
    given = load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary
    if given is not None:
        given.check(model, site)
    kept = given.source if given is not None else ""
    limit = max_length or model.max_length
    encoded = encode_rows(model, data, limit)

    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(TemporaryDirectory())) / "preview"
        inputs = {
            "model": model.fingerprint,
            "data": data.sha256,
            "dictionary": given.sha256 if given is not None else "",
            "corpus": corpus.sha256 if corpus is not None else "",
            "reference": reference.sha256 if isinstance(reference, ChatData) else str(reference),
            "concepts": sha256_json([c.model_dump(mode="json") for c in concepts])
            if concepts is not None
            else "",
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
        settings |= {"rehearse": rehearse} if rehearse else {}
        run = stack.enter_context(
            Run.start(
                folder,
                study="preview",
                config=settings,
                inputs=inputs,
                seed=seed,
                resume=resume,
                overwrite=overwrite,
            )
        )
        own = own_answers(run, model, data, limit, seed)
        texts, background, usual = choose_texts(model, data, corpus, own, seed)
        corpus_encoded = encode_rows(model, texts, limit)

        if given is None:
            say(f"training a dictionary on {len(texts):,} texts")
            plan = (config or DictionaryConfig.make()).model_copy(update={"seed": seed})
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
                model,
                given,
                rows,
                batch_size=batch_size,
                concepts=found,
                seed=seed,
                state=state,
                label=name.replace("_", " "),
                workers=workers,
            )
            save_uptake(uptake, path)
            return uptake

        uptake = measured("uptake", encoded)
        base, base_name = choose_reference(model, reference, usual, own, limit)
        against = measured("reference_uptake", base) if base is not None else None
        baseline = bag_of_tokens(
            encoded[: len(own)] if len(own) < len(encoded) else encoded,
            encode_rows(model, own, limit),
            model.tokenizer,
        )
        company = None
        if usual is not None and against is not None:  # there are texts besides the data
            some = random.Random(seed).sample(corpus_encoded, min(COMPANY_TEXTS, len(corpus_encoded)))
            company = Companions(text_activations(model, given, found, some))
        menu = build_menu(
            uptake,
            found,
            against,
            companions=company,
            model=model.name,
            model_fingerprint=model.fingerprint,
            data=data.source,
            data_sha256=data.sha256,
            site=str(given.site),
            dictionary=str(run.final / "dictionary") if out is not None else kept,
            dictionary_sha256=given.sha256,
            reference_name=base_name,
            baseline=baseline,
            max_lines=max_lines,
            contexts=lambda concept, rows: token_contexts(model, given, encoded, concept, rows),
        )
        if rehearse:
            menu = _rehearsed(
                run, menu, model, given, encoded, encode_rows(model, own, limit), base, rehearse, seed
            )
        run.write_json("per_example.json", example_lines(uptake, found, menu, num=PER_EXAMPLE_LINES))
        sample = random.Random(f"sample:{seed}").sample(list(data.rows), min(NUM_SAMPLE, len(data.rows)))
        run.write_json("sample.json", [row.as_record() for row in sample])
        run.write_json("background.json", [row.as_record() for row in background.rows])
        run.write_json("menu.json", menu)
        run.record["summary"] = {
            "num_examples": menu.num_examples,
            "loss": menu.loss,
            "remainder": menu.remainder,
            "lines": [line.concept.label for line in menu.lines[:5]],
        }
    return menu


def _concepts(
    run: Run,
    model: Model,
    dictionary: Dictionary,
    encoded: list[Encoded],
    given: Sequence[Concept] | None,
    seed: int,
) -> list[Concept]:
    path = run.path("concepts.json")
    if path.is_file():
        return [Concept.model_validate(record) for record in read_json(path)]
    found = list(given) if given is not None else build_concepts(model, dictionary, encoded, seed=seed)
    run.write_json("concepts.json", [concept.model_dump(mode="json") for concept in found])
    return found


def _rehearsed(
    run: Run,
    menu: Menu,
    model: Model,
    dictionary: Dictionary,
    rows: list[Encoded],
    own: list[Encoded],
    usual: list[Encoded] | None,
    steps: int,
    seed: int,
) -> Menu:
    """The menu with what a few steps on a copy changed."""
    path = run.path("rehearsal.json")
    if not path.is_file():
        say(f"rehearsal: {steps} steps of plain fine-tuning on a copy")
        texts = {"own answers": own, "usual texts": usual or []}
        concepts = [line.concept for line in menu.lines]
        found = rehearse_steps(model, rows, dictionary, concepts, texts, steps=steps, seed=seed)
        run.write_json(path.name, {name: values.tolist() for name, values in found.items()})
    read = read_json(path)
    here, elsewhere = read["own answers"], read.get("usual texts", [None] * len(menu.lines))
    lines = [
        line.model_copy(update={"rehearsed": one, "rehearsed_elsewhere": other})
        for line, one, other in zip(menu.lines, here, elsewhere, strict=True)
    ]
    return menu.model_copy(update={"lines": tuple(lines), "rehearsal": steps})
