"""The main path, second half: `train`, `compare`, `verify`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.options import (
    AsJson,
    ConfigFile,
    DataName,
    Device,
    Dtype,
    MaxExamples,
    MaxLength,
    ModelName,
    Out,
    Overwrite,
    Seed,
)
from fairlead.cli.output import finish, run_folder, working

SpecFile = Annotated[
    Path | None,
    typer.Option(
        "--spec", metavar="SPEC", help="What to keep and to avoid; previews and decides on the way."
    ),
]
PlanFolder = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FOLDER", help="Run folder of `fairlead decide` or `plan`, in place of --spec."
    ),
]
DictionaryFolder = Annotated[
    str | None,
    typer.Option("--dictionary", metavar="FOLDER", help="With --spec: dictionary for the preview."),
]
SuiteFile = Annotated[
    Path | None,
    typer.Option("--suite", metavar="FILE", help="What to measure; made from the spec by default."),
]
Neutral = Annotated[
    str | None,
    typer.Option("--neutral", metavar="DATA", help="Texts on other topics, for the anchor and the suite."),
]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples a step.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate of AdamW.")]
Anchor = Annotated[
    bool | None,
    typer.Option("--anchor/--no-anchor", help="Add or remove the anchor; as each recipe has it by default."),
]
Method = Annotated[str, typer.Option(help="full or lora.")]
VerifyAt = Annotated[
    list[int] | None,
    typer.Option(
        "--verify-at", metavar="STEP", help="Measure after this step, too, with the suite; may be repeated."
    ),
]
OnLong = Annotated[str, typer.Option(help="A longer example is an error, or: truncate, drop.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Micro-batches of --batch-size in an optimizer step.")]
Precision = Annotated[
    str, typer.Option(help="Autocast: float32, bfloat16, or auto (bfloat16 on a GPU that has it).")
]
CheckpointEvery = Annotated[
    int,
    typer.Option(min=0, help="Steps between checkpoints from which the same command goes on; 0 for none."),
]
LoraRank = Annotated[int, typer.Option(min=1, help="With --method lora: rank of the adapter.")]


def train(
    model: ModelName,
    data: DataName,
    *,
    spec: SpecFile = None,
    plan: PlanFolder = None,
    dictionary: DictionaryFolder = None,
    neutral: Neutral = None,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--controls",
            metavar="CONTROL",
            help="A recipe or control, may be repeated: recipe (explain away + anchor + spec examples + own counterparts), loop, auto "
            "(what `fairlead plan` chooses), plain, inoculation, ... With settings: 'inoculation:avoid.1(paraphrase=true)', "
            "'explain_away(strength=0.5, gate=none)', or a table `[[controls]]` of --config. Your own: path/to/file.py:ClassName.",
        ),
    ] = None,
    anchor: Anchor = None,
    steps: Steps = 200,
    batch_size: BatchSize = 32,
    lr: LearningRate = 5e-4,
    method: Method = "full",
    lora_rank: LoraRank = 16,
    accumulate: Accumulate = 1,
    precision: Precision = "auto",
    verify_at: VerifyAt = None,
    suite: Annotated[
        Path | None, typer.Option("--suite", metavar="FILE", help="What --verify-at measures.")
    ] = None,
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    on_long: OnLong = "error",
    checkpoint_every: CheckpointEvery = 100,
    packing: Annotated[
        bool,
        typer.Option("--packing", help="Lay rows end to end instead of padding them; for flash attention."),
    ] = False,
    observe: Annotated[
        bool, typer.Option("--observe/--no-observe", help="Record the pressure on the plan's concepts.")
    ] = True,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Train so that the model learns what the spec keeps and not what it avoids.

    JSON: `model` (folder of the weights), `controls`, `seconds`, `loss` of the last step, `checkups` (of `--verify-at`), `notes`.

    Example:

        fairlead train organism:pocket task/data.jsonl --plan runs/plan --steps 2 --batch-size 8 --out runs/train
    """
    from fairlead.cli.show import show_training
    from fairlead.data import load_data
    from fairlead.models import load_model
    from fairlead.studies.train import train as study
    from fairlead.training.processes import is_first, join, on_first

    join()
    folder = on_first(lambda: run_folder(out, "train"))
    with working():
        _check_controls([controls or []])
        start = load_model(model, dtype=dtype, device=device)
        rows = load_data(data, max_records=max_examples)
        run = study(
            start,
            rows,
            on_first(
                lambda: _plan(start, rows, plan, spec, dictionary, folder, neutral=neutral, arms=controls)
            ),
            out=folder,
            controls=(controls[0] if len(controls) == 1 else controls) if controls else "recipe",
            anchor=anchor,
            neutral=neutral,
            dictionary=dictionary,
            suite=suite,
            verify_at=verify_at or (),
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            method=method,
            lora_rank=lora_rank,
            accumulate=accumulate,
            precision=precision,
            max_length=max_length,
            on_long=on_long,
            checkpoint_every=checkpoint_every,
            packing=packing,
            observe=observe,
            seed=seed,
            overwrite=overwrite,
        )
    if not is_first():
        return
    last = run.steps[-1] if run.steps else None
    finish(
        "train",
        as_json=as_json,
        run=folder,
        result={
            "model": run.model_folder,
            "arm": run.arm,
            "controls": run.controls,
            "seconds": run.seconds,
            "loss": last.loss if last else None,
            "checkups": run.checkups,
            "notes": run.notes,
        },
        show=lambda console: show_training(console, run),
    )


def compare(
    model: ModelName,
    data: DataName,
    *,
    spec: SpecFile = None,
    plan: PlanFolder = None,
    dictionary: DictionaryFolder = None,
    suite: SuiteFile = None,
    menu: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Preview, for predicted against measured; the plan's by default."
        ),
    ] = None,
    neutral: Neutral = None,
    heldout: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Without --suite: rows on the topic that are not trained on."),
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="CONTROL",
            help="A recipe or control, with settings as for `fairlead train --controls`; repeat for more; plain, gradient_projection, "
            "inoculation and recipe by default.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 1,
    anchor: Annotated[
        bool, typer.Option("--anchor/--no-anchor", help="The same anchor for every arm.")
    ] = True,
    verify_at: VerifyAt = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = 1,
    steps: Steps = 200,
    batch_size: BatchSize = 32,
    lr: LearningRate = 5e-4,
    method: Method = "full",
    lora_rank: LoraRank = 16,
    accumulate: Accumulate = 1,
    precision: Precision = "auto",
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    on_long: OnLong = "error",
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    r"""Train several arms over seeds, verify each, and set them side by side with the start model.

    JSON: `comparison`.

    Example:

        fairlead compare organism:pocket task/data.jsonl --plan runs/plan --suite task/suite.json \
            --arm plain --arm recipe --steps 2 --out runs/compare
    """
    from fairlead.cli.show import show_comparison
    from fairlead.data import load_data
    from fairlead.models import load_model
    from fairlead.studies.compare import DEFAULT_ARMS
    from fairlead.studies.compare import compare as study

    folder = run_folder(out, "compare")
    with working():
        _check_controls([[arm] for arm in arms or ()])
        start = load_model(model, dtype=dtype, device=device)
        rows = load_data(data, max_records=max_examples)
        result = study(
            start,
            rows,
            _plan(start, rows, plan, spec, dictionary, folder, neutral=neutral, arms=arms),
            arms=arms or DEFAULT_ARMS,
            seeds=list(range(seeds)),
            suite=suite,
            neutral=neutral,
            heldout=heldout,
            dictionary=dictionary,
            menu=menu,
            verify_at=verify_at or (),
            anchor=anchor,
            workers=workers,
            out=folder,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            method=method,
            lora_rank=lora_rank,
            accumulate=accumulate,
            precision=precision,
            max_length=max_length,
            on_long=on_long,
            overwrite=overwrite,
        )
    finish(
        "compare",
        as_json=as_json,
        run=folder,
        result={"comparison": result},
        show=lambda console: show_comparison(console, result),
    )


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a training.", show_default=False)],
    *,
    suite: SuiteFile = None,
    neutral: Neutral = None,
    heldout: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Without --suite: rows on the topic that were not trained on."),
    ] = None,
    menu: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Preview, for predicted against measured; the plan's by default."
        ),
    ] = None,
    dictionary: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Dictionary, for monitorability; the plan's by default."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Prove it: the skill on held-out items, leaks, the trait on request, general loss, monitorability.

    The result is kept in the run's folder. JSON: `verification`.

    Example:

        fairlead verify runs/train --suite task/suite.json
    """
    from fairlead.cli.show import show_verification
    from fairlead.studies.verify import verify as study

    with working():
        result = study(run, suite=suite, data=heldout, neutral=neutral, menu=menu, dictionary=dictionary)
    finish(
        "verify",
        as_json=as_json,
        run=run,
        result={"verification": result},
        show=lambda console: show_verification(console, result),
    )


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One or more run folders.", show_default=False)
    ],
    *,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write; report.html in the first run by default."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Write what the runs found as one self-contained HTML page: menu, decisions, arms, proof, what failed.

    JSON: `report`, the file.

    Example:

        fairlead report runs/menu runs/plan runs/compare --file runs/report.html
    """
    from fairlead.reports import report_run

    with working():
        path = report_run(runs, file, title=title)
    finish(
        "report",
        as_json=as_json,
        run=runs[0],
        result={"report": path},
        show=lambda console: console.print(f"report: {path}"),
    )


def _is_planned(arm: str) -> bool:
    from fairlead.training import RECIPES

    return arm in RECIPES and RECIPES[arm].from_plan


def _check_controls(arms: list[list[str]]) -> None:
    """Refuse controls that do not exist or do not go together, before any work is done."""
    from fairlead.training import resolve

    for arm in arms:
        resolve([item for item in arm if not _is_planned(item)])


def _plan(
    model: Any,
    data: Any,
    plan: Path | None,
    spec: Path | None,
    dictionary: str | None,
    out: Path,
    *,
    neutral: str | None = None,
    arms: list[str] | None = None,
) -> Any:
    """The plan of a folder, or one made from a spec by preview and decide, or None where neither is given.

    The preview is kept beside the run as `OUT-menu` and taken again when the command is repeated. Where "auto" (or its placebo) is
    among `arms` and the plan has no controls yet, they are chosen here.
    """
    from fairlead.core.errors import ConfigError

    if plan is not None and spec is not None:
        raise ConfigError("--plan and --spec contradict each other. Next: give one of them.")
    if plan is not None:
        made = read_record(plan, "plan")
    elif spec is not None:
        from fairlead.data import load_spec
        from fairlead.studies.decide import decide
        from fairlead.studies.preview import preview

        rules = load_spec(spec)
        folder = out.with_name(f"{out.name}-menu")
        kept = read_record(folder, "menu") if (folder / "menu.json").is_file() else None
        if kept is None or (kept.model_fingerprint, kept.data_sha256) != (model.fingerprint, data.sha256):
            preview(model, data, dictionary=dictionary, out=folder)
        made = decide(folder, rules, model=model)
    else:
        return None
    if any(_is_planned(arm) for arm in arms or ()) and not made.controls:
        from fairlead.studies.plan import plan_controls
        from fairlead.training.processes import num_processes

        if num_processes() > 1:  # an expert would be trained here, by this process alone
            raise ConfigError(
                "the plan has no controls yet, and they are chosen in one process. "
                "Next: run `fairlead plan` first and give its folder as --plan."
            )
        made = plan_controls(model, data, made, neutral=neutral, dictionary=dictionary)
    return made


def read_record(path: Path, name: str) -> Any:
    """The menu or plan of a run folder, or of a file."""
    from pydantic import ValidationError

    from fairlead.core.config import describe_validation
    from fairlead.core.errors import RunError
    from fairlead.core.records import Menu, Plan
    from fairlead.core.run import read_json

    path = path / f"{name}.json" if path.is_dir() else path
    try:
        return {"menu": Menu, "plan": Plan}[name].model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(f"{path}: not a {name}: {describe_validation(error, name)}") from error
