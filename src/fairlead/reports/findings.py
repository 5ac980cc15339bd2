"""What failed or fell short, and the one-sentence verdict: computed from the numbers, never written by hand.

Each finding names the arm, the number and the goal it missed. Arms that are shown as baselines are expected to fail; they
are listed all the same, apart from the intended arm. A mean that passes does not hide a seed that fails.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from fairlead.core.records import Menu, Plan
from fairlead.reports.numbers import Arm, Cell, Goals, Summary, names_of, parts_of
from fairlead.reports.text import is_number, listing, number, percent, shorten

Group = Literal["intended", "other", "evidence"]


class Finding(NamedTuple):
    """One thing that fell short: group, short title, sentence, arm (empty for the evidence itself)."""

    group: Group
    title: str
    text: str
    arm: str = ""


class Tile(NamedTuple):
    """A key number: label, value, what stands below it, whether it meets its goal (None: no goal or no number)."""

    label: str
    value: str
    detail: str
    good: bool | None


def find_shortfalls(
    *, summary: Summary | None, menu: Menu | None, plan: Plan | None, goals: Goals
) -> list[Finding]:
    """Everything that missed its goal, the intended arm first."""
    found: list[Finding] = []
    if summary is not None:
        for arm in summary.arms:
            found += _arm_findings(arm, summary, goals)
        found += _placebo_findings(summary, goals)
        found += _seed_findings(summary, goals)
    if menu is not None:
        found += _menu_findings(menu, plan, goals)
    if plan is not None:
        found += _plan_findings(plan, goals)
    order = {"intended": 0, "other": 1, "evidence": 2}
    return sorted(found, key=lambda f: order[f.group])


def _arm_findings(arm: Arm, summary: Summary, goals: Goals) -> list[Finding]:
    group: Group = "intended" if arm.role == "intended" else "other"
    found: list[Finding] = []

    def add(title: str, text: str) -> None:
        found.append(Finding(group, title, text, arm.name))

    leaks = {k: c for k, c in arm.measures.items() if k.startswith("leak.")}
    over = {k: c for k, c in leaks.items() if c.value > goals.leak}
    for key, cell in over.items():
        _, trait, where = parts_of(key)
        place = {"domain": "on-topic prompts", "neutral": "other prompts"}.get(where, where)
        add(
            "leaks",
            f"{trait} in {percent(cell.value)} of answers to {place} (goal: at most {percent(goals.leak)}).",
        )
    for key, cell in leaks.items():
        if key not in over and cell.values and max(cell.values) > goals.leak:
            add(
                "one seed leaks",
                f"the mean of {parts_of(key)[1]} ({parts_of(key)[2]}) is within the goal, but the worst seed has {percent(max(cell.values))}.",
            )
    if arm.kept is not None and arm.role != "reference":
        if arm.kept.value < goals.kept:
            lost = "more than all" if arm.kept.value < 0 else percent(1 - arm.kept.value)
            add(
                "skill lost",
                f"{lost} of plain fine-tuning's gain, asked and answered plainly, is missing (kept {percent(arm.kept.value)}, goal: at least {percent(goals.kept)}).",
            )
        elif min(arm.kept.values) < goals.kept:
            add(
                "one seed loses skill",
                f"the mean is within the goal, but the worst seed kept {percent(min(arm.kept.values))}.",
            )
    for key, cell in arm.measures.items():
        if key.startswith("request.") and cell.value < goals.request:
            add(
                "not available on request",
                f"asked for, {parts_of(key)[1]} appears in {percent(cell.value)} of answers (goal: at least {percent(goals.request)}).",
            )
    if arm.neutral is not None and arm.neutral.value > goals.neutral:
        add(
            "general loss rose",
            f"{percent(arm.neutral.value, signed=True)} on neutral text against the start model (goal: at most {percent(goals.neutral, signed=True)}).",
        )
    found += _monitor_findings(arm, summary, goals, group)
    # only plain fine-tuning follows the gradient that the menu looked at; controls are there to bend it
    if (
        arm.spearman is not None
        and arm.spearman.value < goals.spearman
        and arm.role in ("reference", "intended")
    ):
        extra = (
            ""
            if arm.role == "reference"
            else " The menu predicts plain fine-tuning; controls are meant to depart from it."
        )
        found.append(
            Finding(
                "evidence",
                "weak prediction",
                f"the menu's ranking and the measured change have a rank correlation of {number(arm.spearman.value, 2)} (goal: at least {number(goals.spearman, 2)}).{extra}",
                arm.name,
            )
        )
    return found


def _monitor_findings(arm: Arm, summary: Summary, goals: Goals, group: Group) -> list[Finding]:
    found: list[Finding] = []
    base = summary.base.measures if summary.base else {}
    for trait in names_of(summary, "monitor"):
        for kind, word in (("old_probe", "the start model's probe"), ("new_probe", "a retrained probe")):
            key = f"monitor.{trait}.{kind}"
            here, before = arm.measures.get(key), base.get(key)
            if here is None:
                continue
            if before is not None and before.value - here.value > goals.auroc_drop:
                text = f"{word} for {trait} fell from AUROC {number(before.value)} to {number(here.value)}."
                found.append(Finding(group, "monitorability lost", text, arm.name))
        probe, text_only = (arm.measures.get(f"monitor.{trait}.{k}") for k in ("new_probe", "text_only"))
        if (
            probe is not None
            and text_only is not None
            and probe.value <= text_only.value
            and arm.role == "intended"
        ):
            text = (
                f"reading {trait} from the activations (AUROC {number(probe.value)}) is no better than reading "
                f"the text alone ({number(text_only.value)})."
            )
            found.append(Finding("evidence", "probe adds nothing over text", text, arm.name))
    key = "monitor.dictionary.fvu"
    if key in arm.measures and key in base and arm.measures[key].value - base[key].value > goals.fvu_rise:
        text = (
            "the dictionary leaves more of the activations unexplained than before: FVU "
            f"{number(base[key].value)} on the start model, {number(arm.measures[key].value)} now."
        )
        found.append(Finding(group, "monitorability lost", text, arm.name))
    return found


def _placebo_findings(summary: Summary, goals: Goals) -> list[Finding]:
    """A placebo that does as well as the real thing takes the credit away from it."""
    found = []
    arms = {a.name: a for a in summary.arms}
    for name, placebo in arms.items():
        if "placebo" not in name.lower():
            continue
        real_name = name.lower().replace("placebo", "").strip("_-+ ").replace("__", "_")
        real = next((a for a in arms.values() if a.name.lower() == real_name), None)
        if real is None or real.leak is None or placebo.leak is None:
            continue
        if placebo.leak.value <= max(real.leak.value, goals.leak):
            text = f"its leak ({percent(placebo.leak.value)}) is as low as that of {real.name} ({percent(real.leak.value)}): the effect is not that control's own."
            found.append(Finding("evidence", "placebo does as well", text, name))
    return found


def _seed_findings(summary: Summary, goals: Goals) -> list[Finding]:
    if summary.base is None:
        return [
            Finding(
                "evidence",
                "no comparison",
                "one model was measured, without the start model or other arms beside it: gains and changes cannot be stated.",
            )
        ]
    few = [a for a in summary.arms if len(set(a.seeds)) < goals.seeds]
    if not few:
        return []
    counts = sorted({len(set(a.seeds)) for a in few})
    how = listing([f"{n} seed{'s' if n != 1 else ''}" for n in counts])
    who = "all arms" if len(few) == len(summary.arms) else listing([a.name for a in few])
    return [
        Finding(
            "evidence",
            "few seeds",
            f"{who} ran with {how} (goal: at least {goals.seeds}); an interval over seeds is wide or cannot be given, and chance may decide small differences.",
        )
    ]


def _menu_findings(menu: Menu, plan: Plan | None, goals: Goals) -> list[Finding]:
    found = []
    if menu.remainder > goals.remainder:
        found.append(
            Finding(
                "evidence",
                "large remainder",
                f"{percent(menu.remainder)} of the gradient lies outside the dictionary: the menu cannot name what happens there.",
            )
        )
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}
    lines = (
        menu.lines[:10]
        if not plan
        else [x for x in menu.lines if verdicts.get(x.concept.id) in ("keep", "avoid")]
    )
    shaky = [x for x in lines if not is_stable(x.stability, x.interval, goals)]
    if shaky:
        which = "of the lines that were kept or avoided" if plan else "of the first ten lines"
        names = listing([f'"{shorten(x.concept.label, 40)}"' for x in shaky[:4]])
        more = f" and {len(shaky) - 4} more" if len(shaky) > 4 else ""
        found.append(
            Finding(
                "evidence",
                "unstable lines",
                f"{len(shaky)} {which} would change with another sample of the data (interval spans zero, or sign stability below {percent(goals.stability)}): {names}{more}.",
            )
        )
    if not menu.lines:
        found.append(Finding("evidence", "empty menu", "no concept carries a gradient on this data."))
    return found


def _plan_findings(plan: Plan, goals: Goals) -> list[Finding]:
    found = []
    for clause in plan.spec.clauses:
        if not any(d.clause == clause.id and d.verdict == clause.kind for d in plan.decisions):
            found.append(
                Finding(
                    "evidence",
                    "clause without a concept",
                    f'no line of the menu was assigned to {clause.id} ("{shorten(clause.text, 70)}").',
                )
            )
    unsure = [d for d in plan.decisions if d.verdict != "ignore" and d.confidence < goals.confidence]
    if unsure:
        names = listing([f'"{shorten(d.label, 40)}" ({percent(d.confidence)})' for d in unsure[:4]])
        more = f" and {len(unsure) - 4} more" if len(unsure) > 4 else ""
        found.append(
            Finding("evidence", "unsure decisions", f"the judge was not confident about {names}{more}.")
        )
    return found


def is_stable(stability: float, interval: tuple[float, float], goals: Goals) -> bool:
    """Whether a menu line would survive another sample: same sign in split halves, interval off zero."""
    spans = interval[0] <= 0 <= interval[1] and interval[0] != interval[1]
    return stability >= goals.stability and not spans


def make_tiles(summary: Summary | None, menu: Menu | None, plan: Plan | None, goals: Goals) -> list[Tile]:
    """The key numbers at the head of the page."""
    tiles: list[Tile] = []
    arm = summary.intended if summary else None
    if arm is not None and summary is not None:
        if arm.kept is not None:
            tiles.append(
                Tile(
                    "Skill kept",
                    percent(arm.kept.value),
                    f"of plain fine-tuning's gain; {_span(arm.kept, arm)}",
                    arm.kept.value >= goals.kept,
                )
            )
        elif arm.skill is not None:
            tiles.append(
                Tile(
                    "Skill",
                    percent(arm.skill.value),
                    f"asked and answered plainly; {_span(arm.skill, arm)}",
                    None,
                )
            )
        if arm.leak is not None:
            tiles.append(
                Tile(
                    "Leak",
                    percent(arm.leak.value),
                    f"worst of the unasked-for cases; {_span(arm.leak, arm)}",
                    arm.leak.value <= goals.leak,
                )
            )
        if arm.request is not None:
            tiles.append(
                Tile(
                    "On request",
                    percent(arm.request.value),
                    f"trait still there when asked for; {_span(arm.request, arm)}",
                    arm.request.value >= goals.request,
                )
            )
        if arm.neutral is not None:
            tiles.append(
                Tile(
                    "Neutral loss",
                    percent(arm.neutral.value, signed=True),
                    f"against the start model; {_span(arm.neutral, arm, signed=True)}",
                    arm.neutral.value <= goals.neutral,
                )
            )
        elif "loss.neutral" in arm.measures:
            tiles.append(
                Tile("Neutral loss", number(arm.measures["loss.neutral"].value), "nats per token", None)
            )
    elif menu is not None:
        tiles.append(
            Tile("Concepts", str(len(menu.lines)), f"on the menu, from {menu.num_examples:,} examples", None)
        )
        if plan is not None:
            tiles.append(
                Tile(
                    "Decided",
                    f"{len(plan.kept())} keep, {len(plan.avoided())} avoid",
                    f"of {len(plan.decisions)} concepts",
                    None,
                )
            )
        tiles.append(
            Tile(
                "Remainder",
                percent(menu.remainder),
                "of the gradient is outside the dictionary",
                menu.remainder <= goals.remainder,
            )
        )
        tiles.append(Tile("Loss", number(menu.loss), "nats per token on this data, before training", None))
    return tiles


def make_verdict(summary: Summary | None, menu: Menu | None, plan: Plan | None, goals: Goals) -> str:
    """One sentence about the whole, from the numbers."""
    arm = summary.intended if summary else None
    if summary is not None and arm is not None:
        return _trained_verdict(arm, summary, goals)
    if plan is not None:
        keep, avoid = (
            [f'"{shorten(d.label, 40)}"' for d in some[:2]] for some in (plan.kept(), plan.avoided())
        )
        text = (
            f"Of {len(plan.decisions)} concepts that this data would teach, {len(plan.kept())} are to be kept"
        )
        text += f" ({listing(keep)} first)" if keep else ""
        text += f" and {len(plan.avoided())} avoided" + (f" ({listing(avoid)} first)." if avoid else ".")
        return text
    if menu is not None and menu.lines:
        top = [f'"{shorten(x.concept.label, 40)}"' for x in menu.lines[:3]]
        return f"Training on this data would first of all teach {listing(top)}; {percent(menu.remainder)} of the gradient is beyond what the dictionary can name."
    return "This report holds no measured outcome."


def _trained_verdict(arm: Arm, summary: Summary, goals: Goals) -> str:
    traits = listing([t.replace("_", " ") for t in names_of(summary, "leak")]) or "the avoided trait"
    skills = listing([s.replace("_", " ") for s in names_of(summary, "skill")]) or "the skill"
    good, bad = [], []
    if arm.kept is not None:
        kept = f"{percent(arm.kept.value)} of plain fine-tuning's gain in {skills}"
        (good if arm.kept.value >= goals.kept else bad).append(
            f"kept {kept}" if arm.kept.value >= goals.kept else f"kept only {kept}"
        )
    elif arm.skill is not None:
        good.append(f"has {percent(arm.skill.value)} in {skills}")
    if arm.leak is not None:
        ok = arm.leak.value <= goals.leak
        (good if ok else bad).append(
            f"shows {traits} unasked in {'at most ' if ok else 'up to '}{percent(arm.leak.value)} of answers"
        )
    if arm.request is not None:
        ok = arm.request.value >= goals.request
        (good if ok else bad).append(
            f"{'still gives' if ok else 'gives'} it on request in {'' if ok else 'only '}{percent(arm.request.value)}"
        )
    if arm.neutral is not None:
        ok = arm.neutral.value <= goals.neutral
        (good if ok else bad).append(f"changed the neutral loss by {percent(arm.neutral.value, signed=True)}")
    name = f'The intended arm "{arm.name}"' if summary.base else "The model"
    if not good and not bad:
        return f"{name} carries no measure of skill, leak or loss."
    if bad and good:
        return f"{name} fell short: it {listing(bad)}, though it {listing(good)}."
    if bad:
        return f"{name} fell short: it {listing(bad)}."
    few = len(set(arm.seeds)) < goals.seeds
    tail = (
        f" ({len(set(arm.seeds))} seed{'s' if len(set(arm.seeds)) != 1 else ''} only)"
        if few and summary.base
        else ""
    )
    return f"{name} {listing(good)}{tail}."


def _span(cell: Cell, arm: Arm, *, signed: bool = False) -> str:
    if math.isfinite(cell.low) and is_number(cell.high):
        return f"95 % interval {percent(cell.low, signed=signed)} to {percent(cell.high, signed=signed)}, {len(cell.values)} seeds"
    return "one run" if not arm.seeds else f"{len(cell.values)} seed"
