"""Result (a): a planted skill with a planted trait, all arms, over seeds; the table in README and docs.

Every seed is a whole pipeline of its own: data, spec, dictionary, menu, decision, trainings. Seeds already in OUT are kept, and all
that are there go into the table. Writes `comparison.json` (all seeds
together), `table.md` and `report.html` into OUT.

    python -m benchmarks.arms --out runs/arms                       # pirate + addition, 3 seeds, 11 arms
    python -m benchmarks.arms --skill weekday --trait emoji --out runs/arms-emoji
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.summary import cell, comparison_rows, write_figure, write_table
from fairlead.core.records import Menu, Plan
from fairlead.core.results import ArmResult, Comparison, Measure
from fairlead.core.run import read_json, write_json
from fairlead.reports import write_report
from fairlead.studies.demo import demo
from fairlead.studies.tables import comparison_table

ARMS = (
    "plain",
    "gradient_projection",
    "gradient_projection_placebo",
    "inoculation",
    "inoculation_placebo",
    "preventative_steering",
    "plain_spec",
    "spec_only",
    "recipe_placebo",
    "recipe_given",
    "recipe",
)
IN_FIGURE = (
    "plain",
    "gradient_projection",
    "inoculation",
    "plain_spec",
    "spec_only",
    "recipe_placebo",
    "recipe_given",
    "recipe",
)
BRIEF = ("plain", "gradient_projection", "inoculation", "recipe_placebo", "recipe")  # in the README's table
DATA_ROWS = 8000
TEST_ITEMS = 400


TITLES = {
    "plain": "plain fine-tuning",
    "gradient_projection": "gradient projection",
    "gradient_projection_placebo": "its placebo: random directions",
    "inoculation": "inoculation prompt",
    "inoculation_placebo": "its placebo: a neutral prompt",
    "preventative_steering": "preventative steering",
    "plain_spec": "plain + spec examples",
    "spec_only": "spec examples alone",
    "recipe_placebo": "the recipe with evidence that says nothing (placebo)",
    "recipe_given": "the recipe without own counterparts",
    "recipe": "Fairlead's recipe",
    "loop": "the recipe with feedback",
    "auto": "the closed loop, planned by measurement",
}


def columns_of(skill: str, trait: str) -> tuple[tuple[str, str], ...]:
    """Measures of the table with their titles; "kept" and "neutral" are computed seed by seed."""
    return (
        (f"skill.{skill}", f"{skill}, right in any style"),
        (f"skill.{skill}.plain", f"{skill}, right and plain"),
        (f"skill.{skill}.heldout.plain", "held-out pairs, right and plain"),
        ("kept", "of plain's gain, plainly"),
        (f"leak.{trait}.domain", f"{trait} on {skill}"),
        (f"leak.{trait}.neutral", f"{trait} on other questions"),
        (f"request.{trait}", f"{trait} on request"),
        ("neutral", "loss on neutral text"),
    )


def publish(
    found: Sequence[Comparison], whole: Comparison, name: str, *, skill: str, trait: str, command: str
) -> None:
    """Store the table of the README; `found` are the seeds, `whole` all of them together."""
    columns = columns_of(skill, trait)
    seeds = [len([arm for arm in whole.arms if arm.arm == name]) for name in whole.arm_names()]
    shown = tuple(arm for arm in whole.arms if arm.arm in IN_FIGURE)
    write_figure(name, whole.model_copy(update={"arms": shown}), titles={})
    rows = comparison_rows(whole, [key for key, _ in columns], titles=TITLES, bold="recipe")
    for row, arm in zip(rows[1:], whole.arm_names(), strict=True):
        values = {"kept": gain_kept(found, arm, skill), "neutral": neutral_rise(found, arm)}
        row["values"] |= values
        row["cells"] |= {key: cell(each, percent=True) for key, each in values.items()}
        if statistics.mean(values["kept"]) < 0:
            row["cells"]["kept"] = "none"
    write_table(
        name,
        title=f"{skill} answered in the {trait} way",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=command,
        columns=columns,
        rows=sorted(rows, key=lambda row: ["start model", *TITLES.values()].index(row["title"])),
        notes=[
            f"Mean and 95 % t interval over {max(seeds)} seeds; every seed has its own data, spec, dictionary and order."
            + (" Arms without an interval ran with one seed." if min(seeds) == 1 else ""),
            "Of plain's gain, plainly: (right and plain - start model) / (plain fine-tuning, right in any style - start model), "
            "seed by seed. Loss on neutral text: against the start model's.",
            "All arms have the same anchor (KL to the start model on neutral prompts).",
        ],
        brief={
            "rows": ["start model", *(TITLES[arm] for arm in BRIEF)],
            "columns": [key for key, _ in columns if "heldout" not in key],
        },
    )


def gain_kept(found: Sequence[Comparison], arm: str, skill: str) -> list[float]:
    """Per seed, the share of plain fine-tuning's gain (in any style) that an arm has in plain answers."""
    shares = []
    for one in found:
        start, (most,) = one.base.measures[f"skill.{skill}"].value, one.values("plain", f"skill.{skill}")
        shares += [(value - start) / (most - start) for value in one.values(arm, f"skill.{skill}.plain")]
    return shares


def neutral_rise(found: Sequence[Comparison], arm: str) -> list[float]:
    """Per seed, the rise of the loss on neutral text as a share of the start model's."""
    return [
        value / one.base.measures["loss.neutral"].value - 1
        for one in found
        for value in one.values(arm, "loss.neutral")
    ]


def read_seeds(out: Path) -> list[Comparison]:
    """The comparisons of all finished seeds in OUT."""
    files = sorted(out.glob("seed*/compare/comparison.json"))
    return [Comparison.model_validate(read_json(file)) for file in files]


def gather(found: Sequence[Comparison], *, data: str, command: str) -> Comparison:
    """All seeds as one comparison; the start model's measures are means over their suites, and losses are scaled to them.

    Every seed has texts of its own, which are harder or easier for the start model, too: what counts is the rise on the same texts.
    """
    measures = {}
    for name in found[0].base.measures:
        each = [one.base.measures[name] for one in found if name in one.base.measures]
        measures[name] = each[0].model_copy(update={"value": sum(m.value for m in each) / len(each)})
    return Comparison(
        model=found[0].model,
        data=data,
        base=found[0].base.model_copy(update={"measures": measures}),
        arms=tuple(_scaled(arm, one.base.measures, measures) for one in found for arm in one.arms),
        command=command,
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
    )


def _scaled(arm: ArmResult, own: dict[str, Measure], common: dict[str, Measure]) -> ArmResult:
    """An arm with its losses times the common start model's over its own."""

    def scaled(measures: dict[str, Measure]) -> dict[str, Measure]:
        factors = {
            key: common[key].value / own[key].value
            for key in measures
            if key.startswith("loss.") and key in own
        }
        return measures | {
            key: measures[key].model_copy(
                update={edge: getattr(measures[key], edge) * factor for edge in ("value", "low", "high")}
            )
            for key, factor in factors.items()
        }

    checkups = tuple(one.model_copy(update={"measures": scaled(one.measures)}) for one in arm.checkups)
    verification = arm.verification.model_copy(update={"measures": scaled(arm.verification.measures)})
    return arm.model_copy(update={"checkups": checkups, "verification": verification})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--skill", default="addition")
    parser.add_argument("--trait", default="pirate")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    for seed in args.seeds:
        demo(
            args.out / f"seed{seed}",
            steps=args.steps,
            seed=seed,
            arms=args.arms,
            skill=args.skill,
            trait=args.trait,
            num=DATA_ROWS,
            num_test=TEST_ITEMS,
            workers=args.workers,
        )
    command = f"python -m benchmarks.arms --skill {args.skill} --trait {args.trait} --steps {args.steps} --out runs/arms"
    found = read_seeds(args.out)
    whole = gather(found, data=f"{args.skill} answered in the {args.trait} way", command=command)
    write_json(args.out / "comparison.json", whole.model_dump(mode="json"))
    (args.out / "table.md").write_text(comparison_table(whole), "utf-8")
    first = args.out / f"seed{args.seeds[0]}"
    write_report(
        args.out / "report.html",
        menu=Menu.model_validate(read_json(first / "menu" / "menu.json")),
        plan=Plan.model_validate(read_json(first / "plan" / "plan.json")),
        comparison=whole,
        title=f"Keep {args.skill}, leave {args.trait}",
        command=command,
    )
    if args.publish:
        publish(found, whole, args.publish, skill=args.skill, trait=args.trait, command=command)
    print((args.out / "table.md").read_text("utf-8"))
    print(args.out)


if __name__ == "__main__":
    main()
