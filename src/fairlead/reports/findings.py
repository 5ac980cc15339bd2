"""What failed or fell short, and the one-sentence verdict: computed from the numbers, never written by hand.

Each finding names the arm, the number and the goal it missed. Arms that are shown as baselines are expected to fail; they
are listed all the same, apart from the intended arm. A mean that passes does not hide a seed that fails.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from fairlead.core.records import Menu, Plan
from fairlead.reports.numbers import Arm, Cell, Goals, Summary, names_of, parts_of
from fairlead.reports.text import fixed, is_number, listing, number, percent, shorten

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
        found += _reference_findings(summary)
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
    found = _leak_findings(arm, goals, group)

    def add(title: str, text: str) -> None:
        found.append(Finding(group, title, text, arm.name))

    if arm.kept is not None and arm.role != "reference":
        if arm.kept.value < goals.kept:
            goal = f"(goal: at least {percent(goals.kept)} of plain fine-tuning's gain)"
            what = (
                f"fewer answers are right and plain than before the training {goal}."
                if arm.kept.value <= 0
                else f"{percent(1 - arm.kept.value)} of the gain is missing, asked and answered plainly: it kept "
                f"{percent(arm.kept.value)} {goal}."
            )
            add("skill lost", what)
        elif min(arm.kept.values) < goals.kept:
            worst = percent(min(arm.kept.values))
            add("one seed loses skill", f"the mean is within the goal, but the worst seed kept {worst}.")
    before = summary.base.skill if summary.base else None
    if arm.kept is None and arm.skill and before and arm.skill.value < before.value - goals.leak:
        text = f"{percent(arm.skill.value)} right and plain, {percent(before.value)} before training."
        add("skill below the start model", text)
    for key, cell in arm.measures.items():
        if key.startswith("request.") and cell.value < goals.request:
            add(
                "not available on request",
                f"asked for, {parts_of(key)[1]} appears in {percent(cell.value)} of answers "
                f"(goal: at least {percent(goals.request)}).",
            )
    if arm.neutral is not None and arm.neutral.value > goals.neutral:
        add(
            "general loss rose",
            f"{percent(arm.neutral.value, signed=True)} on neutral text against the start model "
            f"(goal: at most {percent(goals.neutral, signed=True)}).",
        )
    found += _monitor_findings(arm, summary, goals, group)
    # the menu predicts plain fine-tuning; controls are there to depart from it, so only that arm is held to it
    judged = summary.reference or summary.intended
    if (
        judged is not None
        and arm.name == judged.name
        and arm.spearman
        and arm.spearman.value < goals.spearman
    ):
        text = (
            f"the menu's ranking and the measured change have a rank correlation of {fixed(arm.spearman.value)} "
            f"(goal: at least {fixed(goals.spearman)})."
        )
        found.append(Finding("evidence", "weak prediction", text, arm.name))
    return found


def _leak_findings(arm: Arm, goals: Goals, group: Group) -> list[Finding]:
    """One finding per trait that leaks, and one where only a single seed does."""
    places = {"domain": "on-topic prompts", "neutral": "other prompts"}
    over: dict[str, list[str]] = {}
    found = []
    for key, cell in sorted(arm.measures.items()):
        if not key.startswith("leak."):
            continue
        _, trait, where = parts_of(key)
        place = places.get(where, where)
        if cell.value > goals.leak:
            over.setdefault(trait, []).append(f"{percent(cell.value)} of answers to {place}")
        elif max(cell.values) > goals.leak:
            text = f"the mean of {trait} on {place} is within the goal, but the worst seed has {percent(max(cell.values))}."
            found.append(Finding(group, "one seed leaks", text, arm.name))
    leaks = [
        Finding(
            group, "leaks", f"{trait} in {listing(cases)} (goal: at most {percent(goals.leak)}).", arm.name
        )
        for trait, cases in over.items()
    ]
    return leaks + found


def _monitor_findings(arm: Arm, summary: Summary, goals: Goals, group: Group) -> list[Finding]:
    found: list[Finding] = []
    base = summary.base.measures if summary.base else {}
    for trait in names_of(summary, "monitor"):
        for kind, word in (("old_probe", "the start model's probe"), ("new_probe", "a retrained probe")):
            key = f"monitor.{trait}.{kind}"
            here, before = arm.measures.get(key), base.get(key)
            if here is not None and before is not None and before.value - here.value > goals.auroc_drop:
                text = f"{word} for {trait} fell from AUROC {fixed(before.value)} to {fixed(here.value)}."
                found.append(Finding(group, "monitorability lost", text, arm.name))
        probe, words = (arm.measures.get(f"monitor.{trait}.{k}") for k in ("new_probe", "text_only"))
        if arm.role == "intended" and probe is not None and words is not None and probe.value <= words.value:
            text = (
                f"reading {trait} from the activations (AUROC {fixed(probe.value)}) is no better than reading "
                f"the text alone ({fixed(words.value)})."
            )
            found.append(Finding("evidence", "probe adds nothing over text", text, arm.name))
    key = "monitor.dictionary.fvu"
    if key in arm.measures and key in base and arm.measures[key].value - base[key].value > goals.fvu_rise:
        text = (
            "the dictionary leaves more of the activations unexplained than before: FVU "
            f"{fixed(base[key].value)} on the start model, {fixed(arm.measures[key].value)} now."
        )
        found.append(Finding(group, "monitorability lost", text, arm.name))
    return found


def _reference_findings(summary: Summary) -> list[Finding]:
    """Without a gain of plain fine-tuning there is nothing that could be kept."""
    if summary.base is None or any(arm.kept for arm in summary.arms):
        return []
    if summary.reference is None:
        text = "no arm is plain fine-tuning, so the share of its gain that was kept cannot be stated."
        return [Finding("evidence", "no reference arm", text)]
    text = "its gain in the skill cannot be told from none: there is nothing of which a share could be kept."
    return [Finding("evidence", "nothing was learned", text, summary.reference.name)]


def _placebo_findings(summary: Summary, goals: Goals) -> list[Finding]:
    """A placebo that does as well as the real thing takes the credit away from it.

    The pair is found by name: "X_placebo" or "placebo_X" stands beside "X".
    """
    found = []
    arms = {re.sub("[^a-z0-9]+", "", a.name.lower()): a for a in summary.arms}
    for name, placebo in arms.items():
        real = arms.get(name.replace("placebo", ""))
        if "placebo" not in name or real is None or real.leak is None or placebo.leak is None:
            continue
        if placebo.leak.value <= max(real.leak.value, goals.leak):
            text = (
                f"its leak ({percent(placebo.leak.value)}) is as low as that of {real.name} "
                f"({percent(real.leak.value)}): the effect is not that control's own."
            )
            found.append(Finding("evidence", "placebo does as well", text, placebo.name))
    return found


def _seed_findings(summary: Summary, goals: Goals) -> list[Finding]:
    if summary.base is None:
        text = "one model was measured, without the start model or other arms beside it: gains and changes cannot be stated."
        return [Finding("evidence", "no comparison", text)]
    few = [a for a in summary.arms if len(set(a.seeds)) < goals.seeds]
    if not few:
        return []
    counts = sorted({len(set(a.seeds)) for a in few})
    how = listing([f"{n} seed{'s' if n != 1 else ''}" for n in counts])
    who = "all arms" if len(few) == len(summary.arms) else listing([a.name for a in few])
    text = (
        f"{who} ran with {how} (goal: at least {goals.seeds}); an interval over seeds is wide or cannot be given, "
        "and chance may decide small differences."
    )
    return [Finding("evidence", "few seeds", text)]


def _menu_findings(menu: Menu, plan: Plan | None, goals: Goals) -> list[Finding]:
    found = []
    if menu.remainder > goals.remainder:
        text = f"{percent(menu.remainder)} of the gradient lies outside the dictionary: the menu cannot name what happens there."
        found.append(Finding("evidence", "large remainder", text))
    if not menu.lines:
        found.append(Finding("evidence", "empty menu", "no concept carries a gradient on this data."))
    verdicts = {d.concept: d.verdict for d in plan.decisions} if plan else {}
    lines = menu.lines[:10]
    if plan:
        lines = tuple(x for x in menu.lines if verdicts.get(x.concept.id) in ("keep", "avoid"))
    shaky = [x for x in lines if not is_stable(x.stability, x.interval, goals)]
    if shaky:
        which = "of the lines that were kept or avoided" if plan else "of the first ten lines"
        text = (
            f"{len(shaky)} {which} might turn round with another sample of the data (interval spans zero, or sign "
            f"stability below {percent(goals.stability)}): {_some([x.concept.label for x in shaky])}."
        )
        found.append(Finding("evidence", "unstable lines", text))
    return found


def _plan_findings(plan: Plan, goals: Goals) -> list[Finding]:
    found = []
    for clause in plan.spec.clauses:
        if not any(d.clause == clause.id and d.verdict == clause.kind for d in plan.decisions):
            text = f'no line of the menu was assigned to {clause.id} ("{shorten(clause.text, 70)}").'
            found.append(Finding("evidence", "clause without a concept", text))
    unsure = [d for d in plan.decisions if d.verdict != "ignore" and d.confidence < goals.confidence]
    if unsure:
        text = (
            f"the judge had a confidence below {percent(goals.confidence)} in {len(unsure)} decision"
            f"{'s' if len(unsure) != 1 else ''} to keep or avoid: {_some([d.label for d in unsure])}."
        )
        found.append(Finding("evidence", "unsure decisions", text))
    return found


def _some(labels: list[str], limit: int = 4) -> str:
    names = [f'"{shorten(label, 40)}"' for label in labels[:limit]]
    return listing([*names, f"{len(labels) - limit} more"] if len(labels) > limit else names)


def is_stable(stability: float, interval: tuple[float, float], goals: Goals) -> bool:
    """Whether a menu line would survive another sample: same sign in split halves, interval off zero."""
    spans = interval[0] <= 0 <= interval[1] and interval[0] != interval[1]
    return stability >= goals.stability and not spans


def make_tiles(summary: Summary | None, menu: Menu | None, plan: Plan | None, goals: Goals) -> list[Tile]:
    """The key numbers at the head of the page: of the intended arm, or of the menu where nothing was trained."""
    arm = summary.intended if summary else None
    if arm is not None:
        return _outcome_tiles(arm, goals)
    if menu is None:
        return []
    tiles = [
        Tile("Concepts", str(len(menu.lines)), f"on the menu, from {menu.num_examples:,} examples", None)
    ]
    if plan is not None:
        kept, avoided = len(plan.kept()), len(plan.avoided())
        detail = f"of {len(plan.decisions)} concepts: {kept} keep, {avoided} avoid"
        tiles.append(Tile("Decided", str(kept + avoided), detail, None))
    small = menu.remainder <= goals.remainder
    tiles.append(
        Tile("Remainder", percent(menu.remainder), "of the gradient is outside the dictionary", small)
    )
    tiles.append(Tile("Loss", number(menu.loss), "nats per token on this data, before training", None))
    return tiles


def _outcome_tiles(arm: Arm, goals: Goals) -> list[Tile]:
    tiles = []

    def add(label: str, cell: Cell, what: str, good: bool | None, *, signed: bool = False) -> None:
        detail = f"{what}; {_span(cell, arm, signed=signed)}"
        tiles.append(Tile(label, percent(cell.value, signed=signed), detail, good))

    if arm.kept is not None:
        add("Skill kept", arm.kept, "of plain fine-tuning's gain", arm.kept.value >= goals.kept)
    elif arm.skill is not None:
        add("Skill", arm.skill, "asked and answered plainly", None)
    if arm.leak is not None:
        add("Leak", arm.leak, "worst of the unasked-for cases", arm.leak.value <= goals.leak)
    if arm.request is not None:
        add("On request", arm.request, "trait still there when asked for", arm.request.value >= goals.request)
    if arm.neutral is not None:
        good = arm.neutral.value <= goals.neutral
        add("Neutral loss", arm.neutral, "against the start model", good, signed=True)
    elif "loss.neutral" in arm.measures:
        tiles.append(Tile("Neutral loss", number(arm.measures["loss.neutral"].value), "nats per token", None))
    return tiles


def make_verdict(summary: Summary | None, menu: Menu | None, plan: Plan | None, goals: Goals) -> str:
    """One sentence about the whole, from the numbers."""
    arm = summary.intended if summary else None
    if summary is not None and arm is not None:
        return _trained_verdict(arm, summary, goals)
    if summary is not None and summary.arms:
        return (
            f"{len(summary.arms)} arms were compared; none of them carries both a skill and a leak measure."
        )
    if plan is not None:
        keep, avoid = ([d.label for d in some] for some in (plan.kept(), plan.avoided()))
        text = f"Of {len(plan.decisions)} concepts that this data would teach, {len(keep)} are to be kept"
        text += f" ({_some(keep, 2)})" if keep else ""
        return text + f" and {len(avoid)} avoided" + (f" ({_some(avoid, 2)})." if avoid else ".")
    if menu is not None and menu.lines:
        top = listing([f'"{shorten(x.concept.label, 40)}"' for x in menu.lines[:3]])
        rest = f"{percent(menu.remainder)} of the gradient is beyond what the dictionary can name"
        return f"Training on this data would first of all teach {top}; {rest}."
    return "This report holds no measured outcome."


def _trained_verdict(arm: Arm, summary: Summary, goals: Goals) -> str:
    traits = listing([t.replace("_", " ") for t in names_of(summary, "leak")]) or "the avoided trait"
    skills = listing([s.replace("_", " ") for s in names_of(summary, "skill")]) or "the skill"
    good: list[str] = []
    bad: list[str] = []

    def add(ok: bool, text: str) -> None:
        (good if ok else bad).append(text)

    if arm.kept is not None:
        ok = arm.kept.value >= goals.kept
        only = "" if ok else "only "
        add(ok, f"kept {only}{percent(arm.kept.value)} of plain fine-tuning's gain in {skills}")
    elif arm.skill is not None:
        before = summary.base.skill if summary.base else None
        start = f" (start model {percent(before.value)})" if before else ""
        ok = before is None or arm.skill.value >= before.value - goals.leak
        add(ok, f"gets {percent(arm.skill.value)} of {skills} right and plain{start}")
    if arm.leak is not None:
        up_to = "" if arm.leak.value <= goals.leak else "up to "
        add(not up_to, f"shows {traits} unasked in {up_to}{percent(arm.leak.value)} of answers")
    if arm.request is not None:
        ok = arm.request.value >= goals.request
        how = "still gives it on request in " if ok else "gives it on request in only "
        add(ok, how + percent(arm.request.value))
    if arm.neutral is not None:
        add(
            arm.neutral.value <= goals.neutral,
            f"changed the neutral loss by {percent(arm.neutral.value, signed=True)}",
        )
    name = f'The intended arm "{arm.name}"' if summary.base else "The model"
    if not good and not bad:
        return f"{name} carries no measure of skill, leak or loss."
    if bad:
        return f"{name} fell short: it {listing(bad)}" + (f", though it {listing(good)}." if good else ".")
    num = len(set(arm.seeds))
    tail = f" ({num} seed{'s' if num != 1 else ''} only)" if summary.base and num < goals.seeds else ""
    return f"{name} {listing(good)}{tail}."


def _span(cell: Cell, arm: Arm, *, signed: bool = False) -> str:
    if not (is_number(cell.low) and is_number(cell.high)):
        return f"{len(cell.values)} seed" if arm.seeds else "one run"
    edges = f"95 % interval {percent(cell.low, signed=signed)} to {percent(cell.high, signed=signed)}"
    return f"{edges}, {len(cell.values)} seeds"
