"""Does it hold at every length of training? Plain fine-tuning, the fixed recipe and the closed loop from 100 to 2,000 steps.

Every seed has its own data, spec, dictionary and menu, as in `benchmarks.arms`. What is finished in OUT is kept.

    python -m benchmarks.lengths --out runs/lengths                  # pirate + addition, 3 seeds
    python -m benchmarks.lengths --seeds 0 --steps 100 2000 --out runs/lengths
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arms import DATA_ROWS, TEST_ITEMS, TITLES, columns_of, gain_kept, neutral_rise
from benchmarks.summary import cell, write_table
from fairlead.core.results import Comparison
from fairlead.studies.demo import demo

ARMS = ("plain", "inoculation", "recipe", "auto")
STEPS = (100, 300, 1000, 2000)


def measure(
    out: Path, *, skill: str, trait: str, seed: int, steps: int, arms: Sequence[str], workers: int
) -> Comparison:
    """One seed at one length; the preview is made once for all lengths of a seed."""
    folder = out / f"seed{seed}" / f"steps{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "task",
        "menu",
        "plan",
        "planned",
    ):  # what does not depend on the length stands beside the lengths
        shared = out / f"seed{seed}" / name
        if not (folder / name).exists() and shared.exists():
            (folder / name).symlink_to(shared)
    made = demo(
        folder, steps=steps, seed=seed, arms=arms, skill=skill, trait=trait, num=DATA_ROWS, num_test=TEST_ITEMS, workers=workers
    )  # fmt: skip
    for name in ("task", "menu", "plan", "planned"):
        shared = out / f"seed{seed}" / name
        if (folder / name).exists() and not shared.exists():
            (folder / name).rename(shared)
            (folder / name).symlink_to(shared)
    return made.comparison


def publish(
    name: str,
    found: dict[int, list[Comparison]],
    arms: Sequence[str],
    *,
    skill: str,
    trait: str,
    command: str,
) -> None:
    """The table: a row for each length and arm."""
    columns = columns_of(skill, trait)
    rows = []
    for steps, comparisons in sorted(found.items()):
        for arm in arms:
            values = {
                key: [value for one in comparisons for value in one.values(arm, key)]
                for key, _ in columns
                if key not in ("kept", "neutral")
            }
            values |= {"kept": gain_kept(comparisons, arm, skill), "neutral": neutral_rise(comparisons, arm)}
            percent = ("kept", "neutral")
            rows.append(
                {
                    "title": f"{steps:,} steps: {TITLES.get(arm, arm)}",
                    "values": values,
                    "cells": {key: cell(each, percent=key in percent) for key, each in values.items()},
                    "bold": arm == "auto",
                }
            )
    seeds = max(len(each) for each in found.values())
    write_table(
        name,
        title=f"{skill} answered in the {trait} way, by length of training",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=command,
        columns=columns,
        rows=rows,
        notes=[
            f"{seeds} seed{'s' if seeds > 1 else ''}; mean and 95 % t interval where there are several. All arms have the same anchor. "
            "Of plain's gain: against plain fine-tuning of the same length, right in any style."
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skill", default="addition")
    parser.add_argument("--trait", default="pirate")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found: dict[int, list[Comparison]] = {}
    for seed in args.seeds:
        for steps in args.steps:
            made = measure(
                args.out.resolve(), skill=args.skill, trait=args.trait, seed=seed, steps=steps, arms=args.arms, workers=args.workers
            )  # fmt: skip
            found.setdefault(steps, []).append(made)
    if args.publish:
        command = f"python -m benchmarks.lengths --skill {args.skill} --trait {args.trait} --out runs/lengths"
        publish(args.publish, found, args.arms, skill=args.skill, trait=args.trait, command=command)
    for steps, comparisons in sorted(found.items()):
        for arm in args.arms:
            kept = gain_kept(comparisons, arm, args.skill)
            rise = neutral_rise(comparisons, arm)
            leak = [v for one in comparisons for v in one.values(arm, f"leak.{args.trait}.domain")]
            print(
                f"{steps} {arm}: kept {cell(kept, percent=True)}, leak {cell(leak)}, neutral {cell(rise, percent=True)}"
            )
    print(args.out)


if __name__ == "__main__":
    main()
