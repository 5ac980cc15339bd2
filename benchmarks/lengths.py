"""Does it hold at every length of training? Whole trainings of 100 to 2,000 steps, the longest measured on the way, too.

Every seed has its own data, spec, dictionary, menu and plan, as in `benchmarks.arms`, the same for all lengths; what is finished in
OUT is kept. On the way a student stands in the middle of its learning-rate schedule (linear to 0 at the end). Published: kept
gain, leak and neutral loss (table, and the longest training as a figure), and the steps that each arm needs for a share of plain
fine-tuning's final gain.

    python -m benchmarks.lengths --out runs/lengths                       # pirate + addition, 3 seeds
    python -m benchmarks.lengths --trait emoji --steps 300 --at 100 300 --out runs/lengths-emoji
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms import DATA_ROWS, TITLES, gain_kept, gather, neutral_rise, read_seeds
from benchmarks.summary import cell, write_figure, write_table
from fairlead.core.results import Comparison
from fairlead.reports.curves import at_step
from fairlead.studies.demo import demo

ARMS = ("plain", "inoculation", "auto")
STEPS = (100, 300, 2000)
ON_THE_WAY = (50, 100, 150, 200, 300, 500, 1000, 1500, 2000)
TEST_ITEMS = 200
SHOWN = (500, 1000, 1500)  # steps on the way that the table shows
SHARED = ("task", "menu", "plan", "planned")  # what all lengths of a seed have in common
REACHED = 0.8  # of plain's final gain: what sample efficiency is read at


def measure(out: Path, seed: int, steps: int, args: argparse.Namespace) -> None:
    """One seed at one length; what does not depend on the length is taken from another one."""
    folder = out / f"steps{steps}" / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        there = [
            other
            for other in sorted(out.glob(f"steps*/seed{seed}/{name}"))
            if (other.parent / "compare").exists()
        ]
        if there and not (folder / name).exists():
            shutil.copytree(there[0], folder / name)
    demo(
        folder, steps=steps, seed=seed, arms=args.arms, skill=args.skill, trait=args.trait, num=DATA_ROWS, num_test=args.test_items,
        num_neutral=max(1500, 4 * max(args.steps)), workers=args.workers,
        verify_at=[step for step in args.at if step <= steps] if steps == max(args.steps) else (),
    )  # fmt: skip


def rows_of(
    found: dict[int, list[Comparison]], arms: Sequence[str], *, skill: str, trait: str
) -> list[dict[str, Any]]:
    """The table: a row for each length, and each step shown of the longest, and each arm."""
    longest = max(found)
    stages = {steps: (f"{steps:,} steps", comparisons) for steps, comparisons in found.items()}
    for step in found[longest][0].checked_steps():
        if step in SHOWN and step not in stages:
            stages[step] = (f"step {step:,} of {longest:,}", [at_step(one, step) for one in found[longest]])
    rows = []
    for _, (title, here) in sorted(stages.items()):
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
                    "title": f"{title}: {TITLES.get(arm, arm)}",
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
    name: str,
    found: dict[int, list[Comparison]],
    arms: Sequence[str],
    *,
    skill: str,
    trait: str,
    command: str,
) -> None:
    """Table and figure."""
    longest = found[max(found)]
    write_figure(
        name, gather(longest, data=f"{skill} answered in the {trait} way", command=command), titles={}
    )

    def said(steps: Sequence[int | None]) -> str:
        return ", ".join("never" if step is None else str(step) for step in steps)

    reached = "; ".join(
        f"{TITLES.get(arm, arm)}: {said(steps['plainly'])} (in any style {said(steps['any style'])})"
        for arm, steps in efficiency(longest, arms, skill=skill).items()
    )
    seeds = sorted({len(each) for each in found.values()})
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
            f"{' to '.join(map(str, seeds))} seed{'s' if seeds[-1] > 1 else ''} a length; mean and 95 % t interval. Linear schedule: "
            f'"step N of {max(found):,}" is measured on the way, before the learning rate has come down. All have the same anchor. '
            "Of plain's gain: against plain fine-tuning at the same step, right in any style.",
            f"Steps (of those measured) to {REACHED:.0%} of plain's final gain, right and plain, seed by seed: {reached}.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skill", default="addition")
    parser.add_argument("--trait", default="pirate")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--at", type=int, nargs="+", default=list(ON_THE_WAY))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument(
        "--test-items", type=int, default=TEST_ITEMS,
        help="a group; with 200 the standard error of one seed's kept gain is 3.5 points, with 1,000 1.5",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    out = args.out.resolve()
    for seed in args.seeds:
        for steps in args.steps:
            measure(out, seed, steps, args)
    found = {steps: read_seeds(out / f"steps{steps}") for steps in args.steps}
    for row in rows_of(found, args.arms, skill=args.skill, trait=args.trait):
        print(row["title"], row["cells"])
    print(efficiency(found[max(found)], args.arms, skill=args.skill))
    if args.publish:
        command = (
            f"python -m benchmarks.lengths --skill {args.skill} --trait {args.trait} --steps {' '.join(map(str, args.steps))} "
            f"--arms {' '.join(args.arms)} --test-items {args.test_items} --out runs/lengths"
        )
        publish(args.publish, found, args.arms, skill=args.skill, trait=args.trait, command=command)
    print(args.out)


if __name__ == "__main__":
    main()
