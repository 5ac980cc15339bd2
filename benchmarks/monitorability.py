"""Can the trained model still be read? Old probe, fresh probe and dictionary after each control, on finished comparisons.

Takes the folders that `benchmarks.arms` and `benchmarks.lengths` wrote and reads every arm's model again. Whole answers are easy to tell
apart; single tokens of answers, drawn at random, are not, and show a loss first.

    python -m benchmarks.monitorability runs/arms runs/lengths/steps2000 --publish monitorability
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.arms import TITLES
from benchmarks.summary import cell, write_table
from fairlead.core.progress import say
from fairlead.data import load_suite
from fairlead.dictionaries import load_dictionary
from fairlead.models import Model, load_model
from fairlead.studies.resolvers import resolvers_for
from fairlead.studies.verify import neutral_rows_of
from fairlead.training.verification import make_probe_data, measure_dictionary, measure_probes

COLUMNS = (
    ("old_probe", "old probe, answers"),
    ("new_probe", "fresh probe, answers"),
    ("old_probe_token", "old probe, one token"),
    ("new_probe_token", "fresh probe, one token"),
    ("text_only_token", "text only, one token"),
    ("fvu", "dictionary: variance unexplained"),
    ("ce_recovered", "dictionary: cross-entropy recovered"),
)
NUM_DRAWS = 4  # splits and draws of tokens, averaged
START = "start model"


def read_folder(folder: Path, start: Model) -> dict[str, list[dict[str, float]]]:
    """Measures of every arm of every seed in a folder, the start model's among them."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in sorted(folder.glob("seed*")):
        arms = sorted((seed / "compare" / "arms").glob("[!.]*-seed*[0-9]"))
        if not (seed / "compare" / "comparison.json").is_file():
            continue
        suite = load_suite(seed / "task" / "suite.json")
        data = make_probe_data(start, suite, resolvers=resolvers_for(suite))
        dictionary = load_dictionary(seed / "menu" / "dictionary")
        for name, model in (
            (START, start),
            *((arm.name.rsplit("-seed", 1)[0], arm / "model") for arm in arms),
        ):
            model = model if isinstance(model, Model) else load_model(model)
            draws = [
                measure_probes(model, start, data, site=dictionary.site, seed=draw)
                for draw in range(NUM_DRAWS)
            ]
            values = {
                key.rsplit(".", 1)[-1]: sum(draw[key].value for draw in draws) / NUM_DRAWS for key in draws[0]
            }
            values |= {
                key.rsplit(".", 1)[-1]: one.value
                for key, one in measure_dictionary(model, dictionary, neutral_rows_of(suite)).items()
            }
            found[name].append(values)
            say(f"{seed}: {name} {values}")
    return found


def publish(name: str, found: dict[str, list[dict[str, float]]], folders: Sequence[str]) -> None:
    """The table."""
    rows = []
    for arm in (START, *(arm for arm in TITLES if arm in found)):
        values = {key: [one[key] for one in found[arm]] for key, _ in COLUMNS}
        rows.append(
            {
                "title": TITLES.get(arm, arm),
                "values": values,
                "cells": {key: cell(each, digits=3) for key, each in values.items()},
                "bold": arm == "auto",
            }
        )
    write_table(
        name,
        title="Can the trained model still be read?",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=f"python -m benchmarks.monitorability {' '.join(folders)}",
        columns=COLUMNS,
        rows=rows,
        notes=[
            "AUROC for pirate speech in the start model's answers, read in the trained model; probes fitted on one half of the prompts "
            f"and scored on the other, {NUM_DRAWS} draws; mean and 95 % t interval over seeds. Old: the start model's probe; fresh: "
            "fitted on the trained model. The closed loop is read after 2,000 steps and on its own suite's answers, the others after 300.",
        ],
    )


def place_of(folder: Path) -> str:
    """A folder as the command names it."""
    return f"runs/lengths/{folder.name}" if folder.name.startswith("steps") else f"runs/{folder.name}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", default="organism:pocket")
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = load_model(args.model)
    found: dict[str, list[dict[str, float]]] = {}
    for folder in args.folders:  # an arm that stands in several folders counts from the first
        found = {**read_folder(folder, start), **found}
    if args.publish:
        publish(args.publish, found, [place_of(folder) for folder in args.folders])


if __name__ == "__main__":
    main()
