"""Look inside a model: `dict train`, `dict harvest`, `dict evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

PANEL = "Look inside"
STEPS = "Steps and stream"  # panel of the options of training itself
DictionaryArgument = Annotated[
    Path,
    typer.Argument(metavar="DICTIONARY", help="Folder of a dictionary of this model.", show_default=False),
]

group = typer.Typer(
    help="Dictionaries (sparse autoencoders) of a model's activations: train, evaluate.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.add_typer(group, name="dict", rich_help_panel=PANEL)


@group.command("train")
def dict_train(
    model: ModelName,
    data: DataName,
    *,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Where, e.g. layers.3.resid_post; the middle by default. Repeatable, as are the next three; all of a crosscoder's."
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="SITE", help="Where a transcoder writes, e.g. layers.3.mlp_out.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Second model of a crosscoder over two models.")
    ] = None,
    latents: Annotated[
        list[int] | None, typer.Option(min=2, help="Latents; 8 times the model's width by default.")
    ] = None,
    k: Annotated[list[int] | None, typer.Option(min=1, help="Active latents a token.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="batch_topk (default), topk, jumprelu, matryoshka (nested: general latents stay general), "
            "block_sparse (concepts of several dimensions), transcoder, crosscoder."
        ),
    ] = None,
    block: Annotated[
        int | None, typer.Option(min=2, max=4, help="Latents of a block (block_sparse).")
    ] = None,
    skip: Annotated[
        bool | None, typer.Option("--skip/--no-skip", help="Linear path beside the latents (transcoder).")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1000, help="Tokens to train on, repetitions included.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Adam's step size; from width and length by default.", rich_help_panel=STEPS
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the steps with rising step size.", rich_help_panel=STEPS),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the steps, at the end, with falling step size.",
            rich_help_panel=STEPS,
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a step.", rich_help_panel=STEPS)
    ] = None,
    buffer_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens held in memory and shuffled at once.", rich_help_panel=STEPS),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(min=1, help="Times each harvested token is trained on.", rich_help_panel=STEPS),
    ] = None,
    fit_start: Annotated[
        bool | None,
        typer.Option(
            "--fit-start/--no-fit-start",
            help="Scale the encoder at the start so that it reconstructs best.",
            rich_help_panel=STEPS,
        ),
    ] = None,
    aux_weight: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the loss that revives dead latents.", rich_help_panel=STEPS),
    ] = None,
    dead_window: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1,
            help="Share of the run after which a silent latent is dead.",
            rich_help_panel=STEPS,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the search for active latents: auto, float32, bfloat16.", rich_help_panel=STEPS
        ),
    ] = None,
    harvest_dtype: Annotated[
        str | None,
        typer.Option(help="Of the model in the harvest: model, bfloat16.", rich_help_panel=STEPS),
    ] = None,
    prefetch: Annotated[
        bool | None,
        typer.Option("--prefetch/--no-prefetch", help="Harvest ahead in a thread.", rich_help_panel=STEPS),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between saved states.", rich_help_panel=STEPS)
    ] = None,
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Train dictionaries (sparse autoencoders, transcoders, crosscoders) on a model's activations; interrupted, the same command goes on.

    Given several sites, widths, k or kinds, every combination is trained from one pass over the model, each in a folder of its own in the
    run folder. DATA may be a folder that `fairlead dict harvest` wrote (a crosscoder over two models needs the texts). Under torchrun the
    processes train batch_topk, topk or matryoshka together; the other kinds are refused there.

    JSON: `dictionaries`: for each `folder`, `kind`, `site`, `d_model`, `d_dict`, `metrics` (fvu, l0, dead); a single one's also at the top.

    Example:

        fairlead dict train organism:pocket task/data.jsonl --tokens 10000 --latents 256 --out runs/dictionary

        fairlead dict train organism:pocket task/data.jsonl --tokens 2000 --latents 64 --k 4 --k 8 --out runs/two-dictionaries

        fairlead dict train organism:pocket task/data.jsonl --tokens 8000 --batch-tokens 1024 --passes 1 --lr 0.001 --out runs/quick

        fairlead dict train organism:pocket task/data.jsonl --kind transcoder --to layers.2.mlp_out --tokens 5000 --out runs/transcoder
    """
    from fairlead.cli.show import show_facts
    from fairlead.core.processes import is_first, join, num_processes, on_first
    from fairlead.dictionaries import DictionaryConfig
    from fairlead.models import load_model
    from fairlead.studies.dictionaries import JOINT, train_several

    join()
    several = max(len(each or ()) for each in (latents, k, kind)) > 1
    several |= len(site or ()) > 1 and not set(kind or ()) & set(JOINT)
    mark = "dictionaries.json" if several else ""
    folder = on_first(lambda: run_folder(out, "dictionary", mark=mark))
    with working():
        found = train_several(
            load_model(model, dtype=dtype, device=device),
            data,
            config=DictionaryConfig.make(
                num_tokens=tokens,
                block=block,
                skip=skip,
                lr=lr,
                warmup=warmup,
                decay=decay,
                batch_tokens=batch_tokens,
                buffer_tokens=buffer_tokens,
                passes=passes,
                fit_start=fit_start,
                aux_weight=aux_weight,
                dead_window=dead_window,
                precision=precision,
                harvest_dtype=harvest_dtype,
                prefetch=prefetch,
                checkpoint_every=checkpoint_every,
                seed=seed,
            ),
            sites=site or (),
            widths=latents or (),
            ks=k or (),
            kinds=kind or (),
            to_site=to,
            against=load_model(against, dtype=dtype, device=device) if against else None,
            max_examples=max_examples,
            max_length=max_length,
            out=folder,
            together=num_processes() > 1,
        )
    if not is_first():
        return
    facts = {**(found[0] if len(found) == 1 else {}), "dictionaries": found}
    shown = found[0] if len(found) == 1 else {each["folder"].name: each for each in found}
    finish(
        "dict train",
        as_json=as_json,
        run=folder,
        result=facts,
        show=lambda console: show_facts(console, shown),
    )


@group.command("harvest")
def dict_harvest(
    model: ModelName,
    data: DataName,
    *,
    site: Annotated[
        list[str] | None, typer.Option(help="Where; repeatable. The middle of the model by default.")
    ] = None,
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Keep a model's activations on disk, to train dictionaries on them without the model's forward passes.

    The store lies in a folder of OUT that is named by what is in it; interrupted, the same command goes on.

    JSON: `sites`, `num_texts`, `num_tokens`.

    Example:

        fairlead dict harvest organism:pocket task/data.jsonl --site layers.2.resid_post --max-examples 50
    """
    from fairlead.activations import ActivationStore
    from fairlead.cli.show import show_facts
    from fairlead.core.processes import is_first, join, num_processes
    from fairlead.data import load_data
    from fairlead.models import load_model

    join()
    with working():
        start = load_model(model, dtype=dtype, device=device)
        store = ActivationStore.harvest(
            start,
            load_data(data, max_records=max_examples),
            site or [start.default_site()],
            out or Path("runs") / "activations",
            max_length=max_length,
            together=num_processes() > 1,
        )
    if not is_first():
        return
    facts = {"sites": store.sites, "num_texts": len(store.lengths), "num_tokens": store.num_tokens}
    finish(
        "dict harvest",
        as_json=as_json,
        run=store.folder,
        result=facts,
        show=lambda console: show_facts(console, facts),
    )


@group.command("evaluate")
def dict_evaluate(
    model: ModelName,
    dictionary: DictionaryArgument,
    data: DataName,
    *,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="DICTIONARY", help="A second one (another seed): how much of this one comes back?"
        ),
    ] = None,
    second: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The other model of a crosscoder over two.", show_default=False),
    ] = None,
    planted: Annotated[
        int,
        typer.Option(metavar="TOKENS", min=0, help="Train this kind on so many tokens of planted features."),
    ] = 0,
    max_tokens: Annotated[int, typer.Option(min=100, help="Tokens to measure on.")] = 20_000,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Measure a dictionary on texts, best held out from its training, beside a random decoder and PCA at equal L0.

    DICTIONARY is a folder (Fairlead's, SAELens', sparsify's, Gemma Scope's, Llama Scope's) or hf:ORG/REPOSITORY/FOLDER. The run folder
    gets quality.json and quality.html.

    JSON: `metrics`: fvu, fvu_random and fvu_pca (to beat), l0, dead, ce_model, ce_dictionary, ce_mean, ce_recovered; `density`,
    `stability`, `places` (of a crosscoder), `planted`.

    Example:

        fairlead dict evaluate organism:pocket runs/dictionary task/data.jsonl --max-tokens 2000 --out runs/quality
    """
    from fairlead.cli.show import show_facts
    from fairlead.models import load_model
    from fairlead.reports import write_quality
    from fairlead.studies.dictionary_quality import evaluate

    folder = run_folder(out, "quality")
    with working():
        found = evaluate(
            load_model(model, dtype=dtype, device=device),
            dictionary,
            data,
            against=against,
            second_model=load_model(second, dtype=dtype, device=device) if second is not None else None,
            planted_tokens=planted,
            max_tokens=max_tokens,
            max_length=max_length,
            out=folder,
            overwrite=overwrite,
        )
        write_quality(
            folder / "quality.html", found, command=f"fairlead dict evaluate {model} {dictionary} {data}"
        )
    facts = {**found.metrics, **found.stability, **found.places}
    facts |= {f"planted.{name}": row for name, row in found.planted.items()}
    finish(
        "dict evaluate",
        as_json=as_json,
        run=folder,
        result=found.model_dump(mode="json"),
        show=lambda console: show_facts(console, facts),
    )
