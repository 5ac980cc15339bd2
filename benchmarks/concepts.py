"""Does the catalogue hold the planted concepts, and are they found? Are its labels any good on real text?

`pocket`: for every seed a dictionary of the pocket model and its catalogue. For each planted trait and skill: the concept that tells it
best is chosen on one draw of labelled texts and measured (AUROC) on another, with held-out items. Then the rank of the first concept
that tells it with an AUROC of at least 0.95: in `search` by the world's own description of it (studies/organism_data.py), by its plain
name and by one example, and in `contrast` of texts with against texts without. The placebo is a dictionary of as many random directions
with matched densities, its best latent chosen in the same way.

`stories`: stories260K on TinyStories and Shakespeare: the catalogue, its label scores beside those of random directions, and its page.

    python -m benchmarks.concepts pocket --out runs/concepts-pocket [--publish concepts]
    python -m benchmarks.concepts stories --out runs/concepts-stories [--publish concepts_stories]
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stories import shared_folder
from benchmarks.summary import cell, write_table
from fairlead.concepts import Catalogue, contrast, text_activations
from fairlead.concepts.placebo import random_dictionary
from fairlead.concepts.profiles import TextActivations
from fairlead.concepts.scoring import summarize_scores
from fairlead.core.progress import quiet, say
from fairlead.core.records import Concept
from fairlead.core.run import RUN_FILE, read_json, write_json
from fairlead.core.stats import auroc, bootstrap, wilson
from fairlead.data import ChatData, as_rows, encode
from fairlead.dictionaries import DictionaryConfig, train_dictionary
from fairlead.models import load_model
from fairlead.organisms import World
from fairlead.reports import write_catalogue_page
from fairlead.studies.concepts import build_catalogue
from fairlead.studies.organism_data import SKILL_TEXTS, TRAIT_TEXTS

LEAST = 0.95
QUERIES = ("description", "name", "example", "clause")
NUM_EXAMPLES = 3


class Labelled:
    """Chats whose trait and skill are known."""

    def __init__(self, world: World, model: Any, *, seed: int, num: int, split: str) -> None:
        self.chats, labels = [], []
        for trait, skill in itertools.product((None, *world.traits), world.skills):
            for chat in world.dataset(skill, trait=trait, num=num, seed=seed, split=split):  # type: ignore[arg-type]
                answer = chat["messages"][-1]["content"]
                self.chats.append(chat)
                labels.append({name for name in world.traits if world.has_trait(name, answer)} | {skill})
        self.encoded = encode(
            [chat["messages"] for chat in self.chats], model.tokenizer, max_length=model.max_length
        )
        names = (*world.traits, *world.skills)
        self.shows = {name: np.array([name in label for label in labels]) for name in names}

    def aurocs(self, acts: TextActivations, traits: set[str]) -> dict[str, np.ndarray]:
        """Per attribute the AUROC of each concept: a trait in the answer, a skill in the whole text."""
        found = {}
        for name, shown in self.shows.items():
            values = acts.response if name in traits else acts.whole
            found[name] = np.array([auroc(column[shown], column[~shown]) for column in values.T])
        return found


def measure_seed(
    model: Any, world: World, seed: int, out: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per planted attribute."""
    corpus = ChatData(
        as_rows([row["messages"] for row in world.corpus(args.corpus, seed=2000 + seed)]),
        source="the world's corpus",
    )
    config = DictionaryConfig(seed=seed, num_tokens=args.tokens, d_dict=args.latents)
    start = time.time()
    dictionary = train_dictionary(model, corpus, config=config, out=out / f"dictionary-{seed}")
    folder = out / f"catalogue-{seed}"
    kept = (folder / RUN_FILE).is_file()
    found = (
        Catalogue.open(folder) if kept else build_catalogue(model, dictionary, corpus, out=folder, seed=seed)
    )
    found.check_dictionary(dictionary)
    say(f"seed {seed}: {found} {time.time() - start:.0f} s")
    traits = set(world.traits)
    select = Labelled(world, model, seed=880 + seed, num=args.num, split="train")
    test = Labelled(world, model, seed=990 + seed, num=args.num, split="heldout")
    concepts = found.concepts
    with quiet():
        chosen_by = select.aurocs(text_activations(model, dictionary, concepts, select.encoded), traits)
        told_by = test.aurocs(text_activations(model, dictionary, concepts, test.encoded), traits)
        rows = encode(corpus.subset(range(512)), model.tokenizer, max_length=model.max_length)
        nothing = random_dictionary(model, dictionary, rows, seed=seed)
        singles = [
            Concept(id=f"c{i}", label="", site=str(dictionary.site), latents=(i,))
            for i in range(nothing.d_dict)
        ]
        random_by = [
            part.aurocs(text_activations(model, nothing, singles, part.encoded), traits)
            for part in (select, test)
        ]
    lines = []
    for name in (*world.traits, *world.skills):
        best = int(chosen_by[name].argmax())
        good = {concepts[place].id for place in np.flatnonzero(told_by[name] >= LEAST)}
        shown = select.shows[name]
        ranks = {}
        queries = {
            "description": TRAIT_TEXTS.get(name) or SKILL_TEXTS[name],
            "name": name.replace("_", " "),
            "example": _example(world, name, seed),
        }
        examples = [_example(world, name, seed + 100 * place) for place in range(NUM_EXAMPLES)]
        for kind, query, beside in (
            *((kind, query, ()) for kind, query in queries.items()),
            ("clause", queries["description"], examples),
        ):
            hits = [
                hit.concept.id for hit in found.search(query, examples=beside, num=len(concepts), model=model)
            ]
            ranks[kind] = next((rank for rank, hit in enumerate(hits, 1) if hit in good), None)
        with_it = [row for row, there in zip(select.encoded, shown, strict=True) if there][:120]
        without = [row for row, there in zip(select.encoded, shown, strict=True) if not there]
        without = random.Random(seed).sample(without, min(120, len(without)))
        with quiet():
            order = contrast(
                model,
                dictionary,
                concepts,
                with_it,
                without,
                tokens="answer" if name in traits else "all",
                num_intervals=0,
            )
        told = {concept.id: value for concept, value in zip(concepts, told_by[name], strict=True)}
        first = order[0]
        lines.append(
            {
                "seed": seed,
                "name": name,
                "kind": "trait" if name in traits else "skill",
                "concept": concepts[best].id,
                "label": concepts[best].label,
                "auroc": float(told_by[name][best]),
                "random": float(random_by[1][name][int(random_by[0][name].argmax())]),
                "search": ranks,
                "contrast": next(
                    (rank for rank, line in enumerate(order, 1) if line.concept.id in good), None
                ),
                "contrast_first": [first.concept.id, first.concept.label, told[first.concept.id]],
                "queries": queries,
            }
        )
        say(
            f"seed {seed} {name:11} {lines[-1]['auroc']:.3f} (random {lines[-1]['random']:.3f}) "
            f"search {ranks} contrast {lines[-1]['contrast']}"
        )
    return lines


def _example(world: World, name: str, seed: int) -> str:
    """An answer in the trait's style, or a question of the skill."""
    if name in world.traits:
        chats = world.dataset("weekday", trait=name, num=8, seed=770 + seed)
        answers = [chat["messages"][-1]["content"] for chat in chats]
        return next(answer for answer in answers if world.has_trait(name, answer))
    return world.items(name, 1, seed=770 + seed)[0].question


def pocket(args: argparse.Namespace) -> None:
    """Part (d): planted traits and skills."""
    model, world = load_model("organism:pocket"), World()
    rows = []
    for seed in range(args.seeds):
        kept = args.out / f"seed-{seed}.json"
        found = read_json(kept) if kept.is_file() else measure_seed(model, world, seed, args.out, args)
        write_json(kept, found)
        rows += found
    write_json(args.out / "rows.json", rows)
    table = []
    for kind in ("trait", "skill", "all"):
        part = [row for row in rows if kind in ("all", row["kind"])]

        def share(test: Any, part: list[dict[str, Any]] = part) -> str:
            hits = sum(bool(test(row)) for row in part)
            known = wilson(hits, len(part))
            return f"{hits} of {len(part)} ({known.low:.0%} to {known.high:.0%})"

        mean = bootstrap([row["auroc"] for row in part])
        chance = bootstrap([row["random"] for row in part])
        cells = {
            "good": share(lambda row: row["auroc"] >= LEAST),
            "auroc": f"{mean.value:.3f} ({min(row['auroc'] for row in part):.4f} at least)",
            "random": f"{chance.value:.3f} ({sum(row['random'] >= LEAST for row in part)} of {len(part)} reach {LEAST})",
            **{q: share(lambda row, q=q: (row["search"][q] or 99) <= 3) for q in QUERIES},
            "contrast": share(lambda row: row["contrast"] == 1),
        }
        title = {"trait": "six traits", "skill": "five skills", "all": "all"}[kind]
        table.append({"title": title, "cells": cells, "bold": kind == "all"})
        print(title, cells)
    if args.publish:
        write_table(
            args.publish,
            title="The planted concepts are in the catalogue and are found",
            model="pocket",
            command="python -m benchmarks.concepts pocket --out runs/concepts-pocket --publish concepts",
            columns=(
                ("good", f"a concept tells it (AUROC {LEAST} or more)"),
                ("auroc", "AUROC, mean (worst)"),
                ("random", "best of as many random directions"),
                ("description", "search by description: in the first three"),
                ("name", "by plain name"),
                ("example", "by one example"),
                ("clause", "by description and three examples"),
                ("contrast", "contrast: first"),
            ),
            rows=table,
            notes=[
                f"{args.seeds} seeds of dictionary, catalogue and texts; Wilson intervals. The concept is chosen on one draw and measured "
                "on another with held-out items. Descriptions are the world's own; nothing is tuned to a concept. "
                "How strictly latents are grouped was chosen on seed 0."
            ],
        )


def stories(args: argparse.Namespace) -> None:
    """Part (e): a small real model and real text."""
    shared = shared_folder(args.shared)
    model = load_model(shared / "models" / "stories260K")
    data = passages(shared, args.corpus)
    lines = []
    for seed in range(args.seeds):
        config = DictionaryConfig(seed=seed, num_tokens=args.tokens, d_dict=args.latents)
        dictionary = train_dictionary(model, data, config=config, out=args.out / f"dictionary-{seed}")
        for kind, group in (("grouped", True), ("single", False)):
            folder = args.out / f"catalogue-{kind}-{seed}"
            kept = (folder / RUN_FILE).is_file()
            found = (
                Catalogue.open(folder)
                if kept
                else build_catalogue(model, dictionary, data, out=folder, group=group, placebo=200, seed=seed)
            )
            scores, random_scores = summarize_scores(found.entries), found.meta["placebo"]
            bar = random_scores["value_90"]
            values = [v for e in found.entries if (v := e.scores.value) is not None]
            beat = sum(value > bar for value in values) / len(values)
            lines.append(
                {"seed": seed, "kind": kind, "scores": scores, "random": random_scores, "beat": beat}
            )
            say(f"{kind} seed {seed}: {scores} random {random_scores} beat {beat:.2f}")
            if seed == 0:
                print(write_catalogue_page(args.out / f"page-{kind}.html", found))
        say(f"dictionary {seed}: {dictionary.metrics}")
    write_json(args.out / "rows.json", lines)
    table = []
    for kind, title in (("single", "single latents"), ("grouped", "groups of latents")):
        for side in ("scores", "random"):
            part = [line for line in lines if line["kind"] == kind]
            cells = {
                key: cell([line[side][key] for line in part])
                for key in ("detection", "detection_near", "fuzzing", "weighted")
            }
            cells["num"] = ", ".join(str(line[side]["num"]) for line in part)
            cells["beat"] = (
                cell([line["beat"] for line in part], percent=True) if side == "scores" else "10 %"
            )
            table.append(
                {
                    "title": title if side == "scores" else f"{title}, random directions",
                    "cells": cells,
                    "bold": side == "scores",
                }
            )
            print(table[-1])
    if args.publish:
        write_table(
            args.publish,
            title="Labels of a small real model, beside those of random directions",
            model="stories260K (260,032 parameters, pretrained on TinyStories by karpathy/tinyllamas)",
            command="python -m benchmarks.concepts stories --out runs/concepts-stories --publish concepts_stories",
            columns=(
                ("num", "concepts"),
                ("detection", "detection (AUROC)"),
                ("detection_near", "against near misses"),
                ("fuzzing", "fuzzing (AUROC)"),
                ("weighted", "mean of both, by activation"),
                ("beat", "labels above nine in ten random ones"),
            ),
            rows=table,
            notes=[
                f"TinyStories and Shakespeare, labels of words (no language model), {args.seeds} seeds, mean and 95 % t interval."
            ],
        )


def passages(shared: Path, num: int) -> ChatData:
    """Stories and stretches of Shakespeare, in equal parts, shuffled."""
    text = shared / "text"
    tales = [
        part.strip() for part in (text / "tinystories_2MB.txt").read_text("utf-8").split("<|endoftext|>")
    ]
    verses = (text / "tinyshakespeare.txt").read_text("utf-8").split("\n\n")
    joined = ["\n\n".join(verses[start : start + 4]) for start in range(0, len(verses), 4)]
    rng = random.Random(0)
    chosen = [
        part[:700]
        for side in (tales, joined)
        for part in rng.sample(side, min(num // 2, len(side)))
        if len(part) > 80
    ]
    rng.shuffle(chosen)
    return ChatData(as_rows(chosen), source="TinyStories and Shakespeare", format="text")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("pocket", "stories"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=14, help="labelled chats for each pair of trait and skill")
    parser.add_argument("--corpus", type=int, help="texts; 6000 chats or 1000 passages by default")
    parser.add_argument(
        "--tokens", type=int, help="the dictionary is trained on; 300,000 or 250,000 by default"
    )
    parser.add_argument("--latents", type=int, default=None)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    args = parser.parse_args()
    args.corpus = args.corpus or (6000 if args.part == "pocket" else 1000)
    args.tokens = args.tokens or (300_000 if args.part == "pocket" else 250_000)
    torch.set_num_threads(1)
    {"pocket": pocket, "stories": stories}[args.part](args)


if __name__ == "__main__":
    main()
