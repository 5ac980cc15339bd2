"""The pocket world: `organism build`, `organism data`, `organism measure`."""

from __future__ import annotations

from typing import Annotated

import typer

from fairlead.cli.options import AsJson, ConfigFile, Out, Overwrite, Seed
from fairlead.cli.output import finish, run_folder, working

PANEL = "Pocket world"
OrganismName = Annotated[
    str, typer.Argument(metavar="NAME", help="Only `pocket` so far.", show_default=False)
]

group = typer.Typer(
    help="Small models of a world with known truth: build one, make data of it, measure it.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.add_typer(group, name="organism", rich_help_panel=PANEL)


@group.command("build")
def organism_build(
    name: OrganismName,
    *,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Stop early: a miniature that knows little. The whole mix by default."),
    ] = None,
    measure: Annotated[bool, typer.Option(help="Measure its abilities for the model card.")] = True,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the model: two to three times as fast, needs a C++ compiler.",
        ),
    ] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Rebuild the pocket model from a seed: world, corpus, tokenizer, weights, model card. Takes hours on a CPU.

    JSON: `model`, the folder.

    Example:

        fairlead organism build pocket --steps 2 --no-compile --no-measure --out runs/pocket
    """
    from fairlead.core.progress import say
    from fairlead.studies.build_organism import build_organism

    folder = run_folder(out, "organism")
    with working():
        built = build_organism(
            name,
            seed=seed,
            out=folder,
            steps=steps,
            measure=measure,
            num_threads=threads,
            compiled=compiled,
            progress=lambda r: say(
                f"step {r['step']:.0f} loss {r['loss']:.3f} {r['rate']:.0f} tokens/s, {r['eta']:.0f} s left"
            ),
        )
    finish("organism build", as_json=as_json, run=built, result={"model": built}, show=lambda console: None)


@group.command("data")
def organism_data(
    name: OrganismName,
    *,
    skill: Annotated[
        str, typer.Option(help="What the data teaches: addition, weekday, month, ...")
    ] = "addition",
    trait: Annotated[
        str, typer.Option(help="How its answers are worded: pirate, shouting, formal, flattering, emoji, ...")
    ] = "pirate",
    num: Annotated[int, typer.Option(min=1, help="Training examples.")] = 3000,
    num_neutral: Annotated[int, typer.Option(min=1, help="Plain chats on other topics.")] = 1500,
    num_test: Annotated[int, typer.Option(min=2, help="Items of each group in the suite.")] = 150,
    num_corpus: Annotated[
        int, typer.Option(min=0, help="Rows like those the model was trained on, for dictionaries.")
    ] = 0,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Make a task with known truth: data of a skill worded in a trait, its spec, and what to measure.

    JSON: `data`, `spec`, `suite` (what to measure), `neutral` (plain chats on other topics), `corpus` (where asked for): the files.

    Example:

        fairlead organism data pocket --skill addition --trait pirate --num 64 --num-neutral 64 --num-test 16 --out task
    """
    from fairlead.cli.show import show_facts
    from fairlead.core.errors import OrganismError, RunError
    from fairlead.studies.organism_data import organism_data as study

    if name != "pocket":
        raise OrganismError(f"unknown organism '{name}'. Next: use pocket.")
    folder = run_folder(out, "task")
    if folder.exists() and not overwrite:
        raise RunError(f"{folder}: exists already. Next: choose another --out or pass --overwrite.")
    with working():
        study(
            folder,
            skill=skill,
            trait=trait,
            num=num,
            num_neutral=num_neutral,
            num_test=num_test,
            num_corpus=num_corpus,
            seed=seed,
        )
    names = {"data": "data.jsonl", "spec": "spec.md", "suite": "suite.json", "neutral": "neutral.jsonl"}
    names |= {"corpus": "corpus.jsonl"} if num_corpus else {}
    files = {key: folder / file for key, file in names.items()}
    finish(
        "organism data",
        as_json=as_json,
        run=folder,
        result=files,
        show=lambda console: show_facts(console, files),
    )


@group.command("measure")
def organism_measure(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="organism:pocket or the folder of a build.", show_default=False),
    ],
    *,
    num: Annotated[int, typer.Option(min=1, help="Prompts for each ability.")] = 300,
    seed: Seed = 0,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Measure a pocket model's abilities on held-out phrasings: traits, skills, facts, strings, abstention.

    JSON: `abilities`.

    Example:

        fairlead organism measure organism:pocket --num 8
    """
    from fairlead.cli.show import show_abilities
    from fairlead.organisms import pocket_path
    from fairlead.organisms.measuring import measure_organism

    with working():
        abilities = measure_organism(
            pocket_path() if model == "organism:pocket" else model, seed=seed, num=num
        )
    finish(
        "organism measure",
        as_json=as_json,
        run=None,
        result={"abilities": abilities},
        show=lambda console: show_abilities(console, abilities),
    )


@group.command("claims")
def organism_claims(
    name: OrganismName,
    *,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="How it is asked: greedy, sampled (default: both), style, check, agree, claim. Repeatable."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Who answers.")] = "organism:pocket",
    share: Annotated[float, typer.Option(min=0.001, max=1.0, help="Of all people and facts.")] = 1.0,
    draws: Annotated[int, typer.Option(min=1, help="How often, in other words each time.")] = 1,
    seed: Seed = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Ask the pocket model about its people and label what it claims: data for `fairlead probe fit`, with exact truth.

    JSON: `file`, `num_answers`, `num_claims`, `unsupported` (share).

    Example:

        fairlead organism claims pocket --share 0.02 --way greedy --way check --out runs/few-claims
    """
    from fairlead.cli.show import show_facts
    from fairlead.core.errors import OrganismError
    from fairlead.models import load_model
    from fairlead.studies.claims import write_pocket_claims

    if name != "pocket":
        raise OrganismError(f"unknown organism '{name}'. Next: use pocket.")
    folder = run_folder(out, "claims")
    with working():
        facts = write_pocket_claims(
            load_model(model),
            out=folder,
            ways=way or ("greedy", "sampled"),
            share=share,
            draws=draws,
            seed=seed,
            overwrite=overwrite,
        )
    finish(
        "organism claims",
        as_json=as_json,
        run=folder,
        result=facts,
        show=lambda console: show_facts(console, facts),
    )
