"""Look inside a model: `dict train`, `dict harvest`, `dict evaluate`, `concepts`."""

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
DictionaryArgument = Annotated[
    Path,
    typer.Argument(metavar="DICTIONARY", help="Folder of a dictionary of this model.", show_default=False),
]

group = typer.Typer(
    help="Dictionaries (sparse autoencoders) of a model's activations: train, evaluate.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.command("concepts", rich_help_panel=PANEL)(concepts)
    app.add_typer(group, name="dict", rich_help_panel=PANEL)


@group.command("train")
def dict_train(
    model: ModelName,
    data: DataName,
    *,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Where, e.g. layers.3.resid_post; the middle by default. Repeatable, as are the next three."
        ),
    ] = None,
    latents: Annotated[
        list[int] | None, typer.Option(min=2, help="Latents; 8 times the model's width by default.")
    ] = None,
    k: Annotated[list[int] | None, typer.Option(min=1, help="Active latents a token.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="batch_topk (default), topk, or matryoshka (nested: general latents stay general)."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1000, help="Tokens to train on, repetitions included.")
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
    """Train dictionaries (sparse autoencoders) on a model's activations; interrupted, the same command goes on.

    Given several sites, widths, k or kinds, every combination is trained from one pass over the model, each in a folder of its own in the
    run folder. DATA may be a folder that `fairlead dict harvest` wrote. Under torchrun the processes train together.

    JSON: `dictionaries`: for each `folder`, `site`, `d_model`, `d_dict`, `metrics` (fvu, l0, dead); of a single one also at the top.

    Example:

        fairlead dict train organism:pocket task/data.jsonl --tokens 10000 --latents 256 --out runs/dictionary

        fairlead dict train organism:pocket task/data.jsonl --tokens 2000 --latents 64 --k 4 --k 8 --out runs/two-dictionaries
    """
    from fairlead.cli.show import show_facts
    from fairlead.core.processes import is_first, join, num_processes, on_first
    from fairlead.models import load_model
    from fairlead.studies.dictionaries import train_several

    join()
    several = max(len(each or ()) for each in (site, latents, k, kind)) > 1
    mark = "dictionaries.json" if several else ""
    folder = on_first(lambda: run_folder(out, "dictionary", mark=mark))
    with working():
        found = train_several(
            load_model(model, dtype=dtype, device=device),
            data,
            sites=site or (),
            widths=latents or (),
            ks=k or (),
            kinds=kind or (),
            num_tokens=tokens,
            seed=seed,
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
    max_tokens: Annotated[int, typer.Option(min=100, help="Tokens to measure on.")] = 20_000,
    max_length: MaxLength = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Measure a dictionary on texts, best held out from its training, beside a random decoder.

    JSON: `metrics`: fvu, fvu_random (to beat), l0, dead, ce_model, ce_dictionary, ce_mean, ce_recovered.

    Example:

        fairlead dict evaluate organism:pocket runs/dictionary task/data.jsonl --max-tokens 2000
    """
    from fairlead.cli.show import show_facts
    from fairlead.data import encode, load_data
    from fairlead.dictionaries import evaluate_dictionary, load_dictionary
    from fairlead.models import load_model

    with working():
        start = load_model(model, dtype=dtype, device=device)
        found = load_dictionary(dictionary)
        encoded = encode(
            load_data(data), start.tokenizer, max_length=max_length or start.max_length, on_long="truncate"
        )
        metrics = evaluate_dictionary(start, found, encoded, max_tokens=max_tokens)
    finish(
        "dict evaluate",
        as_json=as_json,
        run=dictionary,
        result={"metrics": metrics},
        show=lambda console: show_facts(console, metrics),
    )


def concepts(
    model: ModelName,
    dictionary: DictionaryArgument,
    data: DataName,
    *,
    examples: Annotated[int, typer.Option(min=1, help="Examples kept for each concept.")] = 8,
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    top: Annotated[int, typer.Option(min=1, help="Lines to print.")] = 30,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List the concepts of a dictionary on some data: latents that act alike, with label and examples.

    JSON: `concepts`, most frequent first.

    Example:

        fairlead concepts organism:pocket runs/dictionary task/data.jsonl --out runs/concepts
    """
    from fairlead.cli.show import show_concepts
    from fairlead.data import load_data
    from fairlead.models import load_model
    from fairlead.studies.concepts import list_concepts

    folder = run_folder(out, "concepts")
    with working():
        found = list_concepts(
            load_model(model, dtype=dtype, device=device),
            dictionary,
            load_data(data, max_records=max_examples),
            num_examples=examples,
            max_length=max_length,
            out=folder,
            overwrite=overwrite,
        )
    finish(
        "concepts",
        as_json=as_json,
        run=folder,
        result={"concepts": found},
        show=lambda console: show_concepts(console, found, top=top),
    )
