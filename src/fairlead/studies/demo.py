"""`fairlead demo`: intentional design on the pocket model, start to finish.

Sums answered in pirate speech; the spec says: keep the sums, leave the pirate. Each step is the study that the CLI verb of the same
name calls, and writes its own run folder, so an interrupted demo goes on where it stopped:

    task/      data.jsonl, spec.md, neutral.jsonl, suite.json
    menu/      the preview with its dictionary
    plan/      the decisions
    compare/   four arms: plain, gradient projection, inoculation, the recipe, each verified

The caller writes the report (`fairlead.reports` stands above the studies).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from fairlead.core.errors import RunError
from fairlead.core.progress import say
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Comparison
from fairlead.core.run import RUN_FILE, read_json
from fairlead.data import load_data, load_spec
from fairlead.studies.compare import compare
from fairlead.studies.decide import decide
from fairlead.studies.organism_data import organism_data
from fairlead.studies.plan import plan_controls
from fairlead.studies.preview import preview

T = TypeVar("T")
ARMS = ("plain", "gradient_projection", "inoculation", "recipe")
STEPS = 150
PREVIEW_EXAMPLES = 384
REHEARSAL = 8
DATA_ROWS = 4000
TEST_ITEMS = 100
NEUTRAL_ROWS = 1500
REPORT_FILE = "report.html"


class DemoResult(NamedTuple):
    """What the demo made."""

    menu: Menu
    plan: Plan
    comparison: Comparison


def demo(
    out: str | Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    arms: Sequence[str] = ARMS,
    skill: str = "addition",
    trait: str = "pirate",
    num: int = DATA_ROWS,
    num_test: int = TEST_ITEMS,
    num_neutral: int = NEUTRAL_ROWS,
    verify_at: Sequence[int] = (),
    workers: int | None = None,
    overwrite: bool = False,
) -> DemoResult:
    """Run the demo into a folder; the report is written by the caller.

    Args:
        out: Folder for all runs and the report; finished steps found there are kept.
        steps: Training steps of each arm; 150 where None.
        seed: Of dictionary, data and trainings.
        arms: Recipes to compare.
        skill: What the data teaches.
        trait: How its answers are worded.
        num: Rows of data.
        num_test: Items a group in the suite.
        num_neutral: Neutral rows for the anchor.
        verify_at: Steps after which every arm is measured, too.
        workers: Training processes of one thread each; one for each core, at most two, where None.
        overwrite: Start over where a finished demo exists already.

    Raises:
        RunError: The folder holds a finished demo and `overwrite` is off.
    """
    from fairlead.models import load_model

    out = Path(out).resolve()
    if (out / REPORT_FILE).exists() and not overwrite:
        raise RunError(f"{out}: holds a finished demo. Next: choose another --out or pass --overwrite.")
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def stage(number: int, text: str) -> None:
        say(f"[{number}/5 at {time.monotonic() - began:.0f} s] {text}")

    stage(1, f"make the task: {skill} answered in the {trait} way")
    task = out / "task"
    if not task.exists():
        organism_data(
            task, skill=skill, trait=trait, num=num, num_test=num_test, num_neutral=num_neutral, seed=seed
        )
    model = load_model("organism:pocket")
    data = load_data(task / "data.jsonl")

    stage(2, "preview: train a dictionary and read what the data would teach")
    menu = _kept(out / "menu", "menu.json", Menu) or preview(
        model, data, out=out / "menu", max_examples=PREVIEW_EXAMPLES, rehearse=REHEARSAL, seed=seed
    )

    stage(3, "decide: hold the menu against the spec")
    spec = load_spec(task / "spec.md")
    plan = _kept(out / "plan", "plan.json", Plan) or decide(out / "menu", spec, model=model, out=out / "plan")
    for decision in plan.decisions:
        if decision.verdict != "ignore":
            say(f"    {decision.verdict:6} {decision.label}: {decision.reason}")

    if "auto" in arms:
        neutral = task / "neutral.jsonl"
        planned = out / "planned"
        plan = _kept(planned, "plan.json", Plan) or plan_controls(
            model, data, plan, neutral=neutral, out=planned, seed=seed
        )

    stage(4, f"train and verify {len(arms)} arms: {', '.join(arms)}")
    comparison = _kept(out / "compare", "comparison.json", Comparison) or compare(
        model,
        data,
        plan,
        out=out / "compare",
        arms=arms,
        seeds=(seed,),
        suite=task / "suite.json",
        neutral=task / "neutral.jsonl",
        steps=steps or STEPS,
        verify_at=verify_at,
        workers=workers or min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1),
    )

    stage(5, "measured; the report follows")
    return DemoResult(menu, plan, comparison)


def _kept(folder: Path, name: str, record: type[T]) -> T | None:
    """The record of a finished run folder; None where the run has to be made."""
    if not (folder / RUN_FILE).is_file() or not (folder / name).is_file():
        return None
    say(f"    kept from before: {folder.name}")
    validate: Callable[[object], T] = record.model_validate  # type: ignore[attr-defined]
    return validate(read_json(folder / name))
