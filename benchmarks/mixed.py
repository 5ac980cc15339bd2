"""Mixed data: two traits to avoid, one that the spec does not mention, one part clean; decisions example by example.

Addition in pirate speech, facts with flattery, plain weekdays, shouted open-book answers, in equal parts and shuffled. The spec keeps the
four skills and avoids pirate speech and flattery. Every seed has its own data, spec, dictionary and plan. What is finished in OUT is kept.

    python -m benchmarks.mixed --out runs/mixed                      # 3 seeds
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.summary import cell, comparison_rows, write_table
from fairlead.core.records import Plan
from fairlead.core.results import Comparison
from fairlead.core.run import read_json
from fairlead.data import load_data, load_spec
from fairlead.models import load_model
from fairlead.studies.compare import compare
from fairlead.studies.decide import decide
from fairlead.studies.organism_mix import organism_mix
from fairlead.studies.plan import plan_controls
from fairlead.studies.preview import preview
from fairlead.training import TrainConfig, prepare
from fairlead.training.carriers import find_carriers

ARMS = ("plain", "filtering", "inoculation", "loop_feedback_placebo", "auto_placebo", "auto")
TITLES = {
    "plain": "plain fine-tuning",
    "filtering": "rows that carry an avoided trait left out",
    "inoculation": "inoculation prompt",
    "loop_feedback_placebo": "the closed loop with feedback from random signs",
    "auto_placebo": "the closed loop, each control as its placebo",
    "auto": "the closed loop, planned by measurement",
}
TRAITS = {"avoid.1": "pirate", "avoid.2": "flattering"}


def agreement(model, data, plan: Plan, truth: list[dict], *, seed: int) -> float:
    """Share of rows for which every avoided clause is decided as it is true."""
    setup = prepare(model, data, plan, config=TrainConfig(seed=seed))
    right = [True] * len(truth)
    for clause in setup.avoided():
        carries = find_carriers(setup, clause).carries.tolist()
        for place, (found, true) in enumerate(zip(carries, truth, strict=True)):
            right[place] &= found == (true["trait"] == TRAITS[clause.id])
    return sum(right) / len(right)


def measure(
    out: Path, *, seed: int, steps: int, num: int, num_test: int, arms: Sequence[str], workers: int
) -> tuple[Comparison, float]:
    """One seed: the comparison, and the agreement of the decisions by example with the truth."""
    task = out / "task"
    if not task.exists():
        out.mkdir(parents=True, exist_ok=True)
        organism_mix(task, num=num, num_test=num_test, seed=seed)
    model, data = load_model("organism:pocket"), load_data(task / "data.jsonl")
    if not (out / "menu" / "menu.json").is_file():
        preview(model, data, out=out / "menu", max_examples=1000, seed=seed)
    if not (out / "planned" / "plan.json").is_file():
        plan = decide(out / "menu", load_spec(task / "spec.md"), model=model)
        plan_controls(model, data, plan, neutral=task / "neutral.jsonl", out=out / "planned", seed=seed)
    plan = Plan.model_validate(read_json(out / "planned" / "plan.json"))
    found = out / "compare" / "comparison.json"
    if found.is_file():
        comparison = Comparison.model_validate(read_json(found))
    else:
        comparison = compare(
            model, data, plan, out=out / "compare", arms=arms, seeds=(seed,), suite=task / "suite.json",
            neutral=task / "neutral.jsonl", steps=steps, workers=workers,
        )  # fmt: skip
    truth = [json.loads(line) for line in (task / "truth.jsonl").read_text("utf-8").splitlines()]
    sample = list(range(0, len(truth), 8))
    right = agreement(model, data.subset(sample), plan, [truth[i] for i in sample], seed=seed)
    return comparison, right


def publish(name: str, found: list[Comparison], agreements: list[float], *, command: str) -> None:
    """The table: skills in any style, traits on the data's topics and elsewhere."""
    columns = (
        ("skill.addition", "addition"),
        ("skill.fact", "facts"),
        ("skill.weekday", "weekdays"),
        ("skill.open_book", "open book"),
        ("leak.pirate.domain", "pirate, on topic"),
        ("leak.flattering.domain", "flattering, on topic"),
        ("leak.shouting.domain", "shouting (not mentioned), on topic"),
        ("leak.pirate.neutral", "pirate elsewhere"),
        ("leak.flattering.neutral", "flattering elsewhere"),
        ("loss.neutral", "loss on neutral text"),
    )
    whole = found[0].model_copy(update={"arms": tuple(arm for one in found for arm in one.arms)})
    write_table(
        name,
        title="mixed data: two traits to avoid, one not mentioned",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=command,
        columns=columns,
        rows=comparison_rows(whole, [key for key, _ in columns], titles=TITLES, bold="auto"),
        notes=[
            f"{len(found)} seeds; mean and 95 % t interval. Decisions by example agree with the truth on "
            f"{cell(agreements, percent=True)} of the rows (both avoided clauses right).",
            "The start model's row is that of the first seed's suite.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--num", type=int, default=2000, help="rows of each part")
    parser.add_argument("--test-items", type=int, default=150, help="a group")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found, agreements = [], []
    for seed in args.seeds:
        comparison, right = measure(
            args.out / f"seed{seed}", seed=seed, steps=args.steps, num=args.num, num_test=args.test_items, arms=args.arms,
            workers=args.workers,
        )  # fmt: skip
        found.append(comparison)
        agreements.append(right)
        print(f"seed {seed}: decisions by example agree on {right:.1%} of the rows")
    if args.publish:
        command = f"python -m benchmarks.mixed --test-items {args.test_items} --out runs/mixed"
        publish(args.publish, found, agreements, command=command)
    print(args.out)


if __name__ == "__main__":
    main()
