"""Build a catalogue of concepts: what a dictionary's latents stand for, on some data.

Steps: 1. group latents that act alike, on a draw of the texts; 2. one pass over all texts harvests statistics and examples (bounded memory,
saved now and then, so that an interrupted build goes on); 3. labels, scores, effects, neighbours; 4. the same for a dictionary of random
directions, whose label scores stand beside; 5. with a language model, its labels and its scores; 6. the files (`concepts.store`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairlead.activations import ActivationStore, read_in_place
from fairlead.concepts import Catalogue, Entry, LabelScores
from fairlead.concepts.corpus import MAX_WINDOWS, WINDOW, Corpus
from fairlead.concepts.describe import Described, describe
from fairlead.concepts.grouping import group_latents
from fairlead.concepts.harvest import run_harvest
from fairlead.concepts.llm_labels import ask_label, ask_scores
from fairlead.concepts.placebo import random_dictionary
from fairlead.concepts.profiles import latent_profile
from fairlead.concepts.scoring import summarize_scores
from fairlead.concepts.store import DATABASE, EXAMPLES, write_database, write_examples
from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.core.progress import track
from fairlead.core.run import Run, read_json, sha256_json_list
from fairlead.data import ChatData, Encoded, load_data
from fairlead.dictionaries import Dictionary, is_own_folder, load_dictionary
from fairlead.llm import LanguageModel, connect
from fairlead.models import Model, load_model

_GROUP_CELLS = 100_000_000  # float32 numbers of the latent profile: 400 MB
_PLACEBO_TOKENS = 300_000


def build_catalogue(
    model: Model | str | Path,
    dictionary: Dictionary | str | Path,
    data: ChatData | Sequence[Encoded] | ActivationStore | str | Path,
    *,
    out: str | Path,
    num_examples: int = 8,
    max_rows: int | None = None,
    max_length: int | None = None,
    window: int = WINDOW,
    group: bool = True,
    group_texts: int = 4000,
    min_group_similarity: float = 0.4,
    merge_similarity: float = 0.5,
    placebo: int = 100,
    llm: LanguageModel | str | None = None,
    llm_concepts: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Catalogue:
    """Build the catalogue of a dictionary in the folder `out` and open it; interrupted, the same call goes on.

    Args:
        model: The model, or its name or folder.
        dictionary: A dictionary of that model, or its folder or `hf:` name; one that is not in a folder of Fairlead's is copied beside.
        data: Texts on which the latents are looked at: the wider, the better; or a store of the model's activations on them (or its
            folder), which then stands in place of the model's passes.
        out: Run folder.
        num_examples: Top examples a concept; as many by quantile of activation, half as many near misses.
        max_rows: Use the first so many rows of the data.
        max_length: Longer texts are cut; the model's limit where None.
        window: Longer texts are looked at in stretches of so many tokens.
        group: Group latents that act alike; otherwise every latent is a concept.
        group_texts: Texts on which they are grouped.
        min_group_similarity: See `concepts.grouping`; stricter than for a menu, so that a concept is one thing at the cost of more of them.
        merge_similarity: Likewise.
        placebo: Concepts of the random-direction dictionary; 0 for none.
        llm: A language model (or its name for `connect`) that labels and scores; None: labels of words.
        llm_concepts: Ask it about the first so many concepts only.
        seed: Of the draws.
        overwrite: Replace what stands at `out`.

    Raises:
        DictionaryError: The dictionary was made for another model, or no latent fires on the data.
        RunError: The run folder exists or is locked.
        LLMError: The language model failed; repeated, the build goes on where it stopped.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    dictionary = load_dictionary(dictionary) if isinstance(dictionary, str | Path) else dictionary
    if isinstance(data, str | Path):
        data = ActivationStore(data) if ActivationStore.is_one(data) else load_data(data)
    llm = connect(llm) if isinstance(llm, str) else llm
    dictionary.check(model)
    if not 8 <= window < MAX_WINDOWS:
        raise ConfigError(f"window is {window}; it must be at least 8. Next: use 128.")
    texts = _hash_texts(data)
    kept_at = data.source if isinstance(data, ChatData) else "memory"
    if isinstance(data, ActivationStore):
        if max_length is not None:
            raise ConfigError(
                f"{data.folder}: a store's texts keep their length. Next: leave max_length out, or harvest again with it."
            )
        data.check_site(dictionary.site)
        model, kept_at, data = read_in_place(model, data), str(data.folder), data.encoded
    corpus = Corpus(data, model, max_length=max_length, max_rows=max_rows)
    settings: dict[str, Any] = {
        "num_examples": num_examples,
        "max_rows": max_rows,
        "max_length": max_length,
        "window": window,
        "group": [group, group_texts, min_group_similarity, merge_similarity],
        "placebo": placebo,
        "llm": llm.name if llm is not None else None,
        "llm_concepts": llm_concepts,
        "model": model.name,
    }
    inputs = {"model": model.fingerprint, "dictionary": dictionary.sha256, "data": texts}
    with Run.start(
        out, study="concepts", config=settings, inputs=inputs, seed=seed, overwrite=overwrite
    ) as run:
        groups = _groups(run, model, dictionary, corpus, settings["group"], seed)
        harvest = run_harvest(
            run.path("harvest.safetensors"), model, dictionary, corpus, groups, window=window, seed=seed
        )
        found = describe(
            model, dictionary, corpus, groups, harvest, window=window, num_examples=num_examples, seed=seed
        )
        random = _placebo(
            run,
            model,
            dictionary,
            corpus,
            groups,
            num=placebo,
            window=window,
            seed=seed,
            llm=llm,
            llm_concepts=llm_concepts,
            num_examples=num_examples,
        )
        entries = found.entries
        if llm is not None:
            entries = _ask(run, llm, found, llm_concepts, num_examples, seed)
        source = dictionary.source
        if not is_own_folder(
            source
        ):  # of the Hub, of another library, with a site named by hand: only a copy keeps it
            dictionary.save(run.path("dictionary"))
            dictionary.source = source  # not the folder of a run that is about to be renamed
        meta = {
            "model": model.name,
            "model_fingerprint": model.fingerprint,
            "dictionary": "dictionary",
            "dictionary_path": str(Path(source).resolve()) if is_own_folder(source) else source,
            "dictionary_sha256": dictionary.sha256,
            "site": str(dictionary.site),
            "data": kept_at,
            "num_tokens": harvest.num_tokens,
            "num_rows": len(corpus),
            "num_concepts": len(entries),
            "num_latents": dictionary.d_dict,
            "placebo": random,
            "labels": llm.name if llm is not None else "words",
        }
        order = sorted(entries, key=lambda e: (-(e.scores.value or 0.0), -e.statistics.density))
        write_examples(run.path(EXAMPLES), found.examples)
        write_database(run.path(DATABASE), order, meta=meta, neighbours=found.neighbours, texts=found.texts)
        run.path("harvest.safetensors").unlink(missing_ok=True)
        run.finish(
            {
                "concepts": len(entries),
                "tokens": harvest.num_tokens,
                "scores": summarize_scores(entries),
                "placebo": random,
            }
        )
    return Catalogue.open(out)


def _hash_texts(data: ChatData | Sequence[Encoded] | ActivationStore) -> str:
    if isinstance(data, ActivationStore):
        return data.texts
    if isinstance(data, ChatData):
        return data.sha256
    return sha256_json_list(list(row.input_ids) for row in data)


def _groups(
    run: Run, model: Model, dictionary: Dictionary, corpus: Corpus, how: Sequence[Any], seed: int
) -> list[list[int]]:
    """Latents of each concept, kept in the run folder."""
    path = run.path("groups.json")
    if path.is_file():
        return read_json(path)
    grouped, num_texts, tight, merge = how
    room = max(50, _GROUP_CELLS // dictionary.d_dict)
    order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(seed))[: min(num_texts, room)]
    profile = latent_profile(
        model, dictionary, [corpus[place] for place in sorted(order.tolist())], label="grouping"
    )
    if grouped:
        groups = group_latents(profile, min_similarity=tight, merge_similarity=merge)
    else:
        groups = [[int(latent)] for latent in np.flatnonzero((profile > 0).any(0))]
    groups = [dictionary.unit_of(group) for group in groups]
    if not groups:
        raise DictionaryError(
            "no latent fires on the data. Next: use texts like those the dictionary was trained on."
        )
    run.write_json("groups.json", groups)
    return groups


def _placebo(
    run: Run,
    model: Model,
    dictionary: Dictionary,
    corpus: Corpus,
    groups: Sequence[Sequence[int]],
    *,
    num: int,
    window: int,
    seed: int,
    llm: LanguageModel | None,
    llm_concepts: int | None,
    num_examples: int,
) -> dict[str, Any] | None:
    """Label scores of a random-direction dictionary with concepts of the same sizes, by whoever labels the real ones.

    With a language model, those of words stand under `words`: concepts that it is not asked about are held against these.
    """
    path = run.path("placebo.json")
    if num == 0 or path.is_file():
        return read_json(path) if num else None
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(groups), min(num, len(groups)), replace=False)
    sizes = [len(groups[place]) for place in sorted(chosen.tolist())]
    few = [corpus[place] for place in range(min(len(corpus), 1024))]
    random = random_dictionary(model, dictionary, few, num_latents=max(sum(sizes), 2), seed=seed)
    ends = np.cumsum([0, *sizes])
    made = [list(range(a, b)) for a, b in itertools.pairwise(ends.tolist())]
    state = run.path("placebo.safetensors")
    harvest = run_harvest(
        state,
        model,
        random,
        corpus,
        made,
        window=window,
        seed=seed,
        max_tokens=_PLACEBO_TOKENS,
        label="placebo",
    )
    found = describe(model, random, corpus, made, harvest, window=window, seed=seed, label="placebo")
    state.unlink(missing_ok=True)
    words = summarize_scores(found.entries)
    summary = words
    if llm is not None:
        answers = run.path("placebo_labels.jsonl")
        asked = _ask(run, llm, found, llm_concepts, num_examples, seed, path=answers, label="placebo")
        judged = [entry for entry in asked if entry.scores.judge == llm.name]
        summary = {**summarize_scores(judged), "judge": llm.name, "words": words}
    run.write_json("placebo.json", summary)
    return summary


def _ask(
    run: Run,
    llm: LanguageModel,
    found: Described,
    limit: int | None,
    num_examples: int,
    seed: int,
    *,
    path: Path | None = None,
    label: str = "asking",
) -> list[Entry]:
    """The entries with labels and scores from a language model; answers are kept line by line."""
    path = path or run.path("labels.jsonl")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    known = {record["id"]: record for record in map(json.loads, lines)}
    order = sorted(found.entries, key=lambda entry: -entry.statistics.density)
    asked = {entry.concept.id for entry in order[: len(order) if limit is None else limit]}
    entries = []
    for entry in track(found.entries, f"{label} {llm.name}", unit="concepts"):
        name = entry.concept.id
        if name not in asked:
            entries.append(entry)
            continue
        if name not in known:
            shown = [e for e in found.examples[name] if e.kind != "near_miss"][: 2 * num_examples]
            near = [e for e in found.examples[name] if e.kind == "near_miss"]
            said = ask_label(llm, shown, near)
            e = found.evidence[name]
            scores = ask_scores(
                llm, said, shown=e.shown, other=e.other, near=e.near, fuzzes=e.fuzzes, seed=seed
            )
            known[name] = {"id": name, "label": said, "scores": scores.model_dump(mode="json")}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name], ensure_ascii=False) + "\n")
        record = known[name]
        scores = LabelScores.model_validate(record["scores"])
        concept = entry.concept.model_copy(update={"label": record["label"], "label_score": scores.detection})
        entries.append(
            entry.model_copy(update={"concept": concept, "scores": scores, "word_label": entry.concept.label})
        )
    return entries
