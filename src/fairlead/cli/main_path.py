"""The main path, first half: `preview`, `decide` and `plan`, then the commands of `proof.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli import proof
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

PANEL = "The main path"


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents, in the order of use."""
    app.command("preview", rich_help_panel=PANEL)(preview)
    app.command("decide", rich_help_panel=PANEL)(decide)
    app.command("plan", rich_help_panel=PANEL)(plan)
    app.command("train", rich_help_panel=PANEL)(proof.train)
    app.command("compare", rich_help_panel=PANEL)(proof.compare)
    app.command("verify", rich_help_panel=PANEL)(proof.verify)
    app.command("report", rich_help_panel=PANEL)(proof.report)


def preview(
    model: ModelName,
    data: DataName,
    *,
    dictionary: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Dictionary of this model; one is trained where none is given."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Texts like those the model knows: for a dictionary and as the reference."
        ),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="What is usual: auto (the corpus, else the model's own answers), self (own answers), none, or data.",
        ),
    ] = "auto",
    site: Annotated[
        str | None, typer.Option(help="Where to look, e.g. layers.3.resid_post; the middle by default.")
    ] = None,
    dictionary_tokens: Annotated[
        int | None, typer.Option(min=1000, help="Tokens to train a dictionary on, where none is given.")
    ] = None,
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at once.")] = 32,
    rehearse: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Try so many steps on a copy: which concepts move, and do they spread? 8 will do.",
        ),
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes that measure the uptake together; for many examples on a CPU."),
    ] = 1,
    top: Annotated[int, typer.Option(min=1, help="Lines to print.")] = 15,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    r"""See what the data would teach, before training: the menu of concepts that gradient descent would push.

    JSON: `menu`.

    Example:

        fairlead preview organism:pocket task/data.jsonl --dictionary runs/dictionary \
            --corpus task/neutral.jsonl --out runs/menu
    """
    from fairlead.cli.show import show_menu
    from fairlead.data import load_data
    from fairlead.dictionaries import DictionaryConfig
    from fairlead.models import load_model
    from fairlead.studies.preview import preview as study

    folder = run_folder(out, "preview")
    with working():
        menu = study(
            load_model(model, dtype=dtype, device=device),
            load_data(data, max_records=max_examples),
            dictionary=dictionary,
            corpus=corpus,
            rehearse=rehearse,
            workers=workers,
            reference=reference,
            site=site,
            config=DictionaryConfig.make(num_tokens=dictionary_tokens, seed=seed)
            if dictionary_tokens
            else None,
            max_length=max_length,
            batch_size=batch_size,
            seed=seed,
            out=folder,
            overwrite=overwrite,
        )
    finish(
        "preview",
        as_json=as_json,
        run=folder,
        result={"menu": menu},
        show=lambda console: show_menu(console, menu, top=top),
    )


def decide(
    menu: Annotated[
        Path, typer.Argument(metavar="MENU", help="Run folder of a preview.", show_default=False)
    ],
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="The spec, a Markdown file.", show_default=False)
    ],
    *,
    judge: Annotated[
        str, typer.Option(help="examples (no language model), llm, or ask (you decide here).")
    ] = "examples",
    llm: Annotated[
        str | None,
        typer.Option(help="With --judge llm: openai:MODEL (any compatible endpoint) or scripted:FILE.json."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="With --judge llm: the endpoint.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="For examples: the menu's own model by default.")
    ] = None,
    dictionary: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="For examples: the menu's own dictionary by default.")
    ] = None,
    max_lines: Annotated[int, typer.Option(min=1, help="Lines of the menu to decide, from the top.")] = 40,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Match the menu with the spec: which concepts to keep, to avoid, to ignore, each with its reason.

    JSON: `plan`.

    Example:

        fairlead decide runs/menu task/spec.md --out runs/plan
    """
    from fairlead.cli.show import show_plan
    from fairlead.studies.decide import decide as study

    folder = run_folder(out, "decide")
    with working():
        plan = study(
            menu,
            spec,
            judge=judge,
            model=model,
            dictionary=dictionary,
            llm=llm,
            base_url=base_url,
            max_lines=max_lines,
            seed=seed,
            out=folder,
            overwrite=overwrite,
        )
    finish(
        "decide",
        as_json=as_json,
        run=folder,
        result={"plan": plan},
        show=lambda console: show_plan(console, plan),
    )


def plan(
    model: ModelName,
    data: DataName,
    *,
    plan: Annotated[Path, typer.Option("--plan", metavar="FOLDER", help="Run folder of `fairlead decide`.")],
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA", help="Texts on other topics, for the anchor.")
    ] = None,
    dictionary: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="For the calibration: the plan's own by default.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Examples that are looked at.")] = 256,
    max_length: MaxLength = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Choose controls, evidence and strengths for a plan by measurement, each with its reason; `train --controls auto` uses them.

    Nothing is trained: evidence is compared by how much of the data it accounts for, and the strength is where the pressure on
    the avoided concepts crosses zero. To override a choice, edit plan.json, or name controls to `train`. JSON: `plan`.

    Example:

        fairlead plan organism:pocket task/data.jsonl --plan runs/plan --sample 32 --out runs/planned
    """
    from fairlead.cli.show import show_controls
    from fairlead.data import load_data
    from fairlead.models import load_model
    from fairlead.studies.plan import plan_controls as study

    folder = run_folder(out, "plan")
    with working():
        planned = study(
            load_model(model, dtype=dtype, device=device),
            load_data(data),
            proof.read_record(plan, "plan"),
            neutral=neutral,
            dictionary=dictionary,
            sample=sample,
            max_length=max_length,
            seed=seed,
            out=folder,
            overwrite=overwrite,
        )
    finish(
        "plan",
        as_json=as_json,
        run=folder,
        result={"plan": planned},
        show=lambda console: show_controls(console, planned),
    )
