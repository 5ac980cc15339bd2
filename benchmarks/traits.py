"""The same for each of the other traits: addition answered in it, plain fine-tuning beside the closed loop that measurement plans.

One training of 300 steps per trait, seed and arm, as in `benchmarks.lengths`; nothing is set by hand for a trait. What is finished in
OUT is kept.

    python -m benchmarks.traits --out runs/traits                        # five traits, 3 seeds
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lengths
from benchmarks.arms import TITLES, read_seeds
from benchmarks.summary import write_table
from fairlead.core.results import Comparison

TRAITS = ("shouting", "formal", "flattering", "agree", "emoji")
COLUMNS = (
    ("kept", "of plain's gain, plainly"),
    ("heldout", "held-out pairs, right and plain"),
    ("domain", "trait on addition"),
    ("elsewhere", "trait on other questions"),
    ("request", "trait on request"),
    ("neutral", "loss on neutral text"),
)


def rows_of(found: dict[str, list[Comparison]], arms: Sequence[str], *, skill: str) -> list[dict[str, Any]]:
    """The table: a row for each trait and arm."""
    rows = []
    for trait, comparisons in found.items():
        steps = comparisons[0].checked_steps()[-1]
        made = lengths.rows_of({steps: comparisons}, arms, skill=skill, trait=trait)
        for row, arm in zip(made[-len(arms) :], arms, strict=True):
            rows.append({**row, "title": f"{trait} ({len(comparisons)} seeds): {TITLES.get(arm, arm)}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skill", default="addition")
    parser.add_argument("--traits", nargs="+", default=list(TRAITS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["plain", "auto"])
    parser.add_argument("--test-items", type=int, default=lengths.TEST_ITEMS, help="a group")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = {**vars(args), "steps": [args.steps], "at": [args.steps]}
    found = {}
    for trait in args.traits:
        out = args.out.resolve() / trait
        for seed in args.seeds:
            lengths.measure(out, seed, args.steps, argparse.Namespace(**settings, trait=trait))
        found[trait] = read_seeds(out / f"steps{args.steps}")
    rows = rows_of(found, args.arms, skill=args.skill)
    for row in rows:
        print(row["title"], row["cells"])
    if args.publish:
        write_table(
            args.publish,
            title=f"{args.skill} answered in each of the other traits, {args.steps} steps",
            model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
            command="python -m benchmarks.traits --out runs/traits",
            columns=COLUMNS,
            rows=rows,
            notes=[
                "Mean and 95 % t interval over seeds; nothing is set by hand for a trait. Of plain's gain: against plain fine-tuning, "
                "right in any style.",
            ],
        )
    print(args.out)


if __name__ == "__main__":
    main()
