"""Does a narrow trait spread? Trained on one skill's questions only, where does it show up, domain by domain?

Per seed of a folder that `benchmarks.arms` wrote: plain fine-tuning and the recipe without any anchor are trained here, on the same data;
the arms with the anchor are read as they stand there (and in further folders). What is finished in OUT is kept.

    python -m benchmarks.spread runs/arms runs/lengths --out runs/spread
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.arms import TITLES
from benchmarks.summary import cell, write_table
from fairlead.core.progress import say
from fairlead.core.records import Plan
from fairlead.core.run import read_json, write_json
from fairlead.models import Model, load_model
from fairlead.organisms import World
from fairlead.studies.train import train

FREE = {"plain": "plain fine-tuning, no anchor", "recipe": "the recipe, no anchor"}
READ = ("plain", "inoculation", "recipe_placebo", "recipe", "auto")
DOMAINS = ("addition", "weekday", "month", "comparison", "open_book", "fact", "smalltalk")
NUM, ITEMS_SEED = 150, 7000


def rates(world: World, model: Model, trait: str, seed: int) -> dict[str, float]:
    """Share of greedy answers with the trait, by domain, on held-out questions."""
    found = {}
    for domain in DOMAINS:
        items = world.items(
            domain, NUM, seed=ITEMS_SEED + seed, split="heldout" if domain in world.skills else "any"
        )
        answers = model.generate([item.question for item in items], max_new_tokens=40, batch_size=128)
        found[domain] = sum(world.has_trait(trait, a, i) for a, i in zip(answers, items, strict=True)) / len(
            items
        )
    return found


def free_arm(folder: Path, arm: str, out: Path, *, steps: int, seed: int) -> Path:
    """An arm without anchor, trained on a seed's task; kept where it stands."""
    if not out.is_dir():
        train(
            "organism:pocket",
            folder / "task" / "data.jsonl",
            Plan.model_validate(read_json(folder / "plan" / "plan.json")),
            out=out,
            controls=arm,
            anchor=False,
            steps=steps,
            seed=seed,
            neutral=folder / "task" / "neutral.jsonl",
        )
    return out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--trait", default="pirate")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world, start = World(0), load_model("organism:pocket")
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for folder in sorted(args.folders[0].glob("seed*")):
        seed = int(folder.name.removeprefix("seed"))
        models: dict[str, Path | None] = {"start model": None}
        models |= {
            title: free_arm(folder, arm, args.out / f"{arm}-{folder.name}", steps=args.steps, seed=seed)
            for arm, title in FREE.items()
        }
        for arm in READ:
            places = [
                other / folder.name / "compare" / "arms" / f"{arm}-seed{seed}" / "model"
                for other in args.folders
            ]
            place = next((place for place in places if place.is_dir()), None)
            if place is not None:
                models[TITLES[arm]] = place
        for title, place in models.items():
            file = args.out / "rates" / folder.name / f"{title}.json"
            if not file.is_file():
                write_json(
                    file, rates(world, start if place is None else load_model(place), args.trait, seed)
                )
                say(f"{folder.name}: {title} {read_json(file)}")
            found[title].append(read_json(file))
    for title, each in found.items():
        print(title, {domain: cell([one[domain] for one in each]) for domain in DOMAINS})
    if args.publish:
        write_table(
            args.publish,
            title=f"Where {args.trait} speech shows after sums in it, by domain",
            model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
            command=f"python -m benchmarks.spread {' '.join(f'runs/{f.name}' for f in args.folders)} --out runs/spread",
            columns=tuple((domain, domain.replace("_", " ")) for domain in DOMAINS),
            rows=[
                {
                    "title": title,
                    "values": {domain: [one[domain] for one in each] for domain in DOMAINS},
                    "cells": {domain: cell([one[domain] for one in each]) for domain in DOMAINS},
                    "bold": title == TITLES["auto"],
                }
                for title, each in found.items()
            ],
            notes=[
                f"Share of greedy answers in {args.trait} speech to {NUM} held-out questions of each domain; only addition was trained on. "
                f"Mean and 95 % t interval over {max(len(each) for each in found.values())} seeds.",
            ],
        )
    print(args.out)


if __name__ == "__main__":
    main()
