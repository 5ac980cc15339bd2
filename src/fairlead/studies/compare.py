"""Compare arms over seeds: every arm and seed a training with its verification, beside the start model, in one table."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import ConfigError
from fairlead.core.progress import Meter, quiet, say
from fairlead.core.records import Menu, Plan
from fairlead.core.results import ArmResult, Comparison, StepRecord, Verification
from fairlead.core.run import Run, read_json, sha256_json
from fairlead.core.workers import worker_pool
from fairlead.data import ChatData, Row, load_data
from fairlead.data.suite import Suite
from fairlead.models.loading import reloadable
from fairlead.studies.tables import comparison_table
from fairlead.studies.train import as_neutral, find_dictionary, plan_checkups, train
from fairlead.studies.verify import (
    VERIFICATION_FILE,
    Reference,
    base_verification,
    make_reference,
    resolve_menu,
    resolve_suite,
    verify,
)
from fairlead.training import TrainConfig, load_run, read_metrics, resolve

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model

DEFAULT_ARMS = ("plain", "gradient_projection", "inoculation", "recipe")
_UNSAFE = re.compile(r"[^\w.,=+-]+")  # in the name of an arm's folder
KEPT_STEPS = 100  # step records per run in comparison.json; all of them stand in the run's metrics.jsonl


@dataclass(frozen=True)
class Job:
    """One arm with one seed; everything a worker process needs."""

    arm: str
    seed: int
    folder: Path
    data: ChatData
    plan: Plan | None
    suite: Suite
    neutral: list[Row]
    reference: Reference
    menu: Menu | None
    cache: Path
    anchor: bool | None
    verify_at: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def compare(
    model: Model | str | Path,
    data: ChatData | str | Path,
    plan: Plan | None,
    *,
    out: str | Path,
    arms: Sequence[str] = DEFAULT_ARMS,
    seeds: Sequence[int] = (0,),
    suite: Suite | str | Path | None = None,
    neutral: ChatData | str | Path | None = None,
    heldout: ChatData | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    menu: Menu | str | Path | None = None,
    anchor: bool | None = True,
    verify_at: Collection[int] = (),
    workers: int = 1,
    resume: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> Comparison:
    """Train and verify every arm with every seed.

    Arms and seeds that an interrupted comparison had finished are kept. All arms of a seed see the same data rows in the same order.

    Args:
        model: The start model, or its name or folder.
        data: The data set, or its file.
        plan: Decisions and spec.
        out: Run folder; the trainings stand under `arms/`.
        arms: Recipes.
        seeds: Of the trainings.
        suite: What to measure; made of the spec, `heldout` and `neutral` where None.
        neutral: Neutral rows, for the anchor and the default suite.
        heldout: Rows on the topic that are not trained on, for the default suite.
        dictionary: For observation and monitorability; the plan's where None.
        menu: For predictions; the plan's where None.
        anchor: True gives every arm the same anchor (but those that exclude it), None leaves it to the recipes.
        verify_at: Steps after which every student is measured, too (`ArmResult.checkups`).
        workers: Processes, one thread each.
        resume: Continue an unfinished comparison of the same settings.
        overwrite: Replace a finished one.
        settings: Fields of `TrainConfig` for all arms (steps, batch_size, lr, method, ...).

    Raises:
        ConfigError: No or unknown arms, or a setting that is unknown.
        RunError: The run folder exists, is locked or belongs to other settings.
    """
    from fairlead.models import load_model

    if not arms or not seeds or workers < 1:
        raise ConfigError("compare needs at least one arm, one seed and one worker. Next: name them.")
    for arm in arms:
        resolve(arm, anchor=anchor, plan=plan)
    model = load_model(model) if isinstance(model, str | Path) else model
    data = load_data(data) if isinstance(data, str | Path) else data
    neutral_data = load_data(neutral) if isinstance(neutral, str | Path) else neutral
    rows = as_neutral(neutral_data)
    checks = resolve_suite(suite, plan, data=heldout, neutral=neutral_data)
    plan_checkups(checks, verify_at, steps=TrainConfig.make(settings).steps)
    preview = resolve_menu(menu, plan)
    found = find_dictionary(plan, dictionary)
    inputs = {
        "model": model.fingerprint,
        "data": data.sha256,
        "plan": sha256_json(plan.model_dump(mode="json")) if plan is not None else "",
        "suite": sha256_json(checks.model_dump(mode="json")),
        "neutral": sha256_json([row.as_record() for row in rows]),
        "dictionary": found.sha256 if found is not None else "",
    }
    about = {"arms": list(arms), "seeds": list(seeds), "anchor": anchor, "model": model.name, **settings}
    about |= {"verify_at": sorted(verify_at)} if verify_at else {}
    with Run.start(
        out, study="compare", config=about, inputs=inputs, resume=resume, overwrite=overwrite
    ) as run:
        say("measuring the start model")
        reference = make_reference(model, checks)
        base = base_verification(model, reference, checks, dictionary=found)
        jobs = [
            Job(
                arm=arm,
                seed=seed,
                folder=run.folder / "arms" / f"{_UNSAFE.sub('_', arm)}-seed{seed}",
                data=data,
                plan=plan,
                suite=checks,
                neutral=rows,
                reference=reference,
                menu=preview,
                cache=run.folder / "cache",
                anchor=anchor,
                verify_at=tuple(sorted(verify_at)),
                settings=settings,
            )
            for seed in seeds
            for arm in arms
        ]
        left = [job for job in jobs if not (job.folder / VERIFICATION_FILE).is_file()]
        if len(left) < len(jobs):
            say(f"{len(jobs) - len(left)} of {len(jobs)} trainings were finished before and are kept")
        if workers == 1 or len(left) <= 1:
            for number, job in enumerate(left, start=1):
                say(f"[{number}/{len(left)}] {job.arm}, seed {job.seed}")
                run_job(job, model, found)
        else:
            _run_parallel(left, model, found, workers=workers, scratch=run.folder / "start")
        comparison = Comparison(
            model=model.name,
            data=data.source,
            base=base,
            arms=tuple(_result(job) for job in jobs),
            command=" ".join(sys.argv),
            notes=tuple(f"{arm}: {resolve(arm, anchor=anchor, plan=plan).controls_text()}" for arm in arms),
        )
        run.write_json("comparison.json", comparison)
        run.path("comparison.md").write_text(comparison_table(comparison), "utf-8")
        for name in ("cache", "start"):
            shutil.rmtree(run.folder / name, ignore_errors=True)
        run.finish({"arms": len(arms), "seeds": len(seeds)})
    return comparison


def run_job(job: Job, model: Model, dictionary: Dictionary | None) -> None:
    """Train one arm with one seed (or go on with it) and verify it."""
    if not job.folder.is_dir():
        train(
            model,
            job.data,
            job.plan,
            out=job.folder,
            controls=job.arm,
            anchor=job.anchor,
            seed=job.seed,
            neutral=job.neutral,
            dictionary=dictionary,
            cache=job.cache,
            suite=job.suite,
            verify_at=job.verify_at,
            **job.settings,
        )
    verify(
        load_run(job.folder),
        suite=job.suite,
        base=model,
        menu=job.menu,
        dictionary=dictionary,
        reference=job.reference,
    )


def _run_parallel(
    jobs: list[Job], model: Model, dictionary: Dictionary | None, *, workers: int, scratch: Path
) -> None:
    """Run jobs in worker processes; progress is read from their metrics."""
    source = reloadable(model, scratch)
    total = sum(TrainConfig.make(job.settings).steps for job in jobs)
    meter = Meter(f"compare ({len(jobs)} trainings, {workers} processes)", total, "step")
    try:
        with worker_pool(workers) as pool:
            futures: dict[Future, Job] = {pool.submit(_work, job, source, dictionary): job for job in jobs}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                seen = sum(_steps_done(job) for job in jobs)
                meter.advance(
                    max(0, seen - meter.done), f"{len(jobs) - len(waiting)} of {len(jobs)} verified"
                )
                for future in done:
                    future.result()
                    say(f"done: {futures[future].arm}, seed {futures[future].seed}")
    finally:
        meter.close()


def _work(job: Job, source: str, dictionary: Dictionary | None) -> None:
    from fairlead.models import load_model

    with quiet():
        run_job(job, load_model(source), dictionary)


def _steps_done(job: Job) -> int:
    for folder in (job.folder, job.folder.with_name(job.folder.name + ".part")):
        path = folder / "metrics.jsonl"
        if path.is_file():
            return path.read_bytes().count(b"\n")
    return 0


def _result(job: Job) -> ArmResult:
    trained = load_run(job.folder)
    steps = read_metrics(job.folder / "metrics.jsonl")
    every = -(-len(steps) // KEPT_STEPS) if steps else 1
    kept: list[StepRecord] = [record for record in steps if record.step % every == 0 or record is steps[-1]]
    return ArmResult(
        arm=job.arm,
        seed=job.seed,
        controls=tuple(control["name"] for control in trained.controls),
        steps=tuple(kept),
        checkups=trained.checkups,
        verification=Verification.model_validate(read_json(job.folder / VERIFICATION_FILE)),
        seconds=trained.seconds,
        folder=f"arms/{job.folder.name}",
    )
