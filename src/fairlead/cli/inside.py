"""Look inside a model: `dict train`, `dict evaluate`."""

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
    app.add_typer(group, name="dict", rich_help_panel=PANEL)


@group.command("train")
def dict_train(
    model: ModelName,
    data: DataName,
    *,
    site: Annotated[
        str | None, typer.Option(help="Where, e.g. layers.3.resid_post; the middle by default.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1000, help="Tokens to train on, repetitions included.")
    ] = None,
    latents: Annotated[
        int | None, typer.Option(min=2, help="Latents; 8 times the model's width by default.")
    ] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Active latents a token.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="batch_topk (default), topk, or matryoshka (nested: general latents stay general)."
        ),
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
    """Train a dictionary (sparse autoencoder) on a model's activations; interrupted, the same command goes on.

    JSON: `site`, `d_model`, `d_dict`, `metrics` (fvu, l0, dead).

    Example:

        fairlead dict train organism:pocket task/data.jsonl --tokens 10000 --latents 256 --out runs/dictionary
    """
    from fairlead.cli.show import show_facts
    from fairlead.data import load_data
    from fairlead.dictionaries import DictionaryConfig, train_dictionary
    from fairlead.models import load_model

    folder = run_folder(out, "dictionary")
    settings = DictionaryConfig.make(num_tokens=tokens, d_dict=latents, k=k, kind=kind, seed=seed)
    with working():
        found = train_dictionary(
            load_model(model, dtype=dtype, device=device),
            load_data(data, max_records=max_examples),
            site=site,
            config=settings,
            out=folder,
            max_length=max_length,
        )
    facts = {
        "site": str(found.site),
        "d_model": found.d_model,
        "d_dict": found.d_dict,
        "metrics": found.metrics,
    }
    finish(
        "dict train",
        as_json=as_json,
        run=folder,
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
