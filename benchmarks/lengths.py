"""Does it hold at every length of training? Arms measured while they train for 2,000 steps, and the steps to a given skill.

Every seed has its own data, spec, dictionary, menu and plan, as in `benchmarks.arms`; what is finished in OUT is kept. A student is
measured in the middle of its learning-rate schedule (linear to 0 at the end). Published: kept gain, leak and neutral loss at every
step measured (table and figure), and the steps that each arm needs for a share of plain fine-tuning's final gain.

    python -m benchmarks.lengths --out runs/lengths                       # pirate + addition, 3 seeds
    python -m benchmarks.lengths --trait emoji --steps 300 --at 100 300 --out runs/lengths-emoji
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms import DATA_ROWS, TITLES, gain_kept, gather, neutral_rise, read_seeds
from benchmarks.summary import cell, write_figure, write_table
from fairlead.core.results import Comparison
from fairlead.reports.curves import at_step
from fairlead.studies.demo import demo

ARMS = ("plain", "inoculation", "auto")
STEPS = (50, 100, 150, 200, 300, 500, 1000, 1500, 2000)
TEST_ITEMS = 200
SHOWN = (100, 300, 1000, 2000)  # steps in the table
REACHED = 0.8  # of plain's final gain: what sample efficiency is read at


def rows_of(
    found: Sequence[Comparison], arms: Sequence[str], *, skill: str, trait: str
) -> list[dict[str, Any]]:
    """The table: a row for each step shown and each arm."""
    rows = []
    steps = [step for step in found[0].checked_steps() if step in SHOWN] or found[0].checked_steps()
    for step in steps:
        here = [at_step(one, step) for one in found]
        for arm in arms:
            values = {
                "kept": gain_kept(here, arm, skill),
                "heldout": [v for one in here for v in one.values(arm, f"skill.{skill}.heldout.plain")],
                "domain": [v for one in here for v in one.values(arm, f"leak.{trait}.domain")],
                "elsewhere": [v for one in here for v in one.values(arm, f"leak.{trait}.neutral")],
                "request": [v for one in here for v in one.values(arm, f"request.{trait}")],
                "neutral": neutral_rise(here, arm),
            }
            cells = {key: cell(each, percent=key in ("kept", "neutral")) for key, each in values.items()}
            if max(values["kept"]) < 0:
                cells["kept"] = "none"
            rows.append(
                {
                    "title": f"{step:,} steps: {TITLES.get(arm, arm)}",
                    "values": values,
                    "cells": cells,
                    "bold": arm == "auto",
                }
            )
    return rows


def steps_to(one: Comparison, arm: str, measure: str, level: float) -> int | None:
    """The first measured step at which a measure reaches a level."""
    for step in one.checked_steps():
        if one.values_at(arm, measure, step)[0] >= level:
            return step
    return None


def efficiency(
    found: Sequence[Comparison], arms: Sequence[str], *, skill: str
) -> dict[str, dict[str, list[int | None]]]:
    """Per arm and seed, the steps to `REACHED` of plain's final gain, in any style and plainly."""
    steps: dict[str, dict[str, list[int | None]]] = {arm: {"any style": [], "plainly": []} for arm in arms}
    for one in found:
        start, last = one.base.measures[f"skill.{skill}"].value, one.checked_steps()[-1]
        level = start + REACHED * (one.values_at("plain", f"skill.{skill}", last)[0] - start)
        for arm in arms:
            steps[arm]["any style"].append(steps_to(one, arm, f"skill.{skill}", level))
            steps[arm]["plainly"].append(steps_to(one, arm, f"skill.{skill}.plain", level))
    return steps


def publish(
    name: str, found: Sequence[Comparison], arms: Sequence[str], *, skill: str, trait: str, command: str
) -> None:
    """Table and figure."""
    whole = gather(found, data=f"{skill} answered in the {trait} way", command=command)
    write_figure(name, whole, titles={})
    reached = "; ".join(
        f"{TITLES.get(arm, arm)}: {', '.join('never' if step is None else str(step) for step in steps['plainly'])} "
        f"(in any style {', '.join('never' if step is None else str(step) for step in steps['any style'])})"
        for arm, steps in efficiency(found, arms, skill=skill).items()
    )
    write_table(
        name,
        title=f"{skill} answered in the {trait} way, while it trains",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=command,
        columns=(
            ("kept", "of plain's gain, plainly"),
            ("heldout", "held-out pairs, right and plain"),
            ("domain", f"{trait} on {skill}"),
            ("elsewhere", f"{trait} on other questions"),
            ("request", f"{trait} on request"),
            ("neutral", "loss on neutral text"),
        ),
        rows=rows_of(found, arms, skill=skill, trait=trait),
        notes=[
            f"{len(found)} seed{'s' if len(found) > 1 else ''}; mean and 95 % t interval. One training of "
            f"{found[0].checked_steps()[-1]:,} steps per arm and seed, measured on the way (linear schedule). All have the same anchor. "
            "Of plain's gain: against plain fine-tuning at the same step, right in any style.",
            f"Steps to {REACHED:.0%} of plain's final gain, right and plain, seed by seed: {reached}.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skill", default="addition")
    parser.add_argument("--trait", default="pirate")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--at", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for seed in args.seeds:
        demo(
            args.out / f"seed{seed}", steps=args.steps, seed=seed, arms=args.arms, skill=args.skill, trait=args.trait, num=DATA_ROWS,
            num_test=TEST_ITEMS, num_neutral=max(1500, 4 * args.steps), verify_at=args.at, workers=args.workers,
        )  # fmt: skip
    found = read_seeds(args.out)
    for row in rows_of(found, args.arms, skill=args.skill, trait=args.trait):
        print(row["title"], {key: text for key, text in row["cells"].items()})
    print(efficiency(found, args.arms, skill=args.skill))
    if args.publish:
        command = f"python -m benchmarks.lengths --skill {args.skill} --trait {args.trait} --steps {args.steps} --out runs/lengths"
        publish(args.publish, found, args.arms, skill=args.skill, trait=args.trait, command=command)
    print(args.out)


if __name__ == "__main__":
    main()
