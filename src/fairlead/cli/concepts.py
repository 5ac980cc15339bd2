"""Concepts of a model: `concepts build`, `search`, `show`, `neighbours`, `contrast`, `inspect`, `page`.

`build` needs model, dictionary and data; the others take the catalogue's folder and find the model by the name in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.inside import PANEL, DictionaryArgument
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

if TYPE_CHECKING:
    from fairlead.concepts import Catalogue
    from fairlead.models import Model

group = typer.Typer(
    help="A catalogue of a model's concepts: build, search, contrast, inspect.", no_args_is_help=True
)

CatalogueArgument = Annotated[
    Path,
    typer.Argument(metavar="CATALOGUE", help="Folder that `concepts build` wrote.", show_default=False),
]
ConceptId = Annotated[
    str,
    typer.Argument(
        metavar="CONCEPT",
        help="Id of a concept, such as c12, or its place in the list, such as 1.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Name or folder of the model; that of the catalogue by default.")
]
Num = Annotated[int, typer.Option("--num", min=1, help="Lines to print.")]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with highlighted tokens.")
]


def register(app: typer.Typer) -> None:
    """Add the group to the table of contents."""
    app.add_typer(group, name="concepts", rich_help_panel=PANEL)


@group.command("build")
def concepts_build(
    model: ModelName,
    dictionary: DictionaryArgument,
    data: DataName,
    *,
    examples: Annotated[int, typer.Option(min=1, help="Top examples of each concept.")] = 8,
    single: Annotated[
        bool, typer.Option("--single", help="Every latent is a concept: do not group latents that act alike.")
    ] = False,
    placebo: Annotated[
        int,
        typer.Option(
            min=0, help="Concepts of random directions whose label scores stand beside; 0 for none."
        ),
    ] = 100,
    llm: Annotated[
        str | None,
        typer.Option(
            help="Language model that labels and scores: openai:MODEL, ollama:MODEL, openrouter:MODEL, gemini:MODEL, scripted:FILE; "
            "labels of words by default."
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="With --llm openai:MODEL: the endpoint, any that speaks OpenAI's protocol."),
    ] = None,
    llm_concepts: Annotated[
        int | None, typer.Option(min=1, help="Ask it about the most frequent N concepts only.")
    ] = None,
    window: Annotated[
        int, typer.Option(min=8, help="Longer texts are looked at in stretches of N tokens.")
    ] = 128,
    max_examples: MaxExamples = None,
    max_length: MaxLength = None,
    top: Annotated[int, typer.Option(min=1, help="Lines to print.")] = 20,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Build a catalogue of a dictionary's concepts on some data: examples, labels with scores, statistics; interrupted, it goes on.

    DATA may be a folder that `fairlead dict harvest` wrote at the dictionary's site: its activations are read, the model is not run.

    JSON: `concepts`, the best labelled first (each with label, scores, statistics, promoted tokens), `placebo`, `num_tokens`.

    Example:

        fairlead concepts build organism:pocket runs/dictionary task/data.jsonl --max-examples 800 --out runs/concepts
    """
    from fairlead.activations import ActivationStore
    from fairlead.cli.show_concepts import show_catalogue
    from fairlead.data import load_data
    from fairlead.llm import connect
    from fairlead.models import load_model
    from fairlead.studies.concepts import build_catalogue

    folder = run_folder(out, "concepts")
    with working():
        found = build_catalogue(
            load_model(model, dtype=dtype, device=device),
            dictionary,
            data if ActivationStore.is_one(data) else load_data(data, max_records=max_examples),
            max_rows=max_examples if ActivationStore.is_one(data) else None,
            num_examples=examples,
            group=not single,
            placebo=placebo,
            llm=connect(llm, base_url=base_url) if llm else None,
            llm_concepts=llm_concepts,
            window=window,
            max_length=max_length,
            seed=seed,
            out=folder,
            overwrite=overwrite,
        )
    finish(
        "concepts build",
        as_json=as_json,
        run=folder,
        result={
            "concepts": found.entries,
            "placebo": found.meta["placebo"],
            "num_tokens": found.meta["num_tokens"],
        },
        show=lambda console: show_catalogue(console, found, top=top),
    )


@group.command("search")
def concepts_search(
    catalogue: CatalogueArgument,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="Words, a description, or an example sentence.", show_default=False
        ),
    ],
    *,
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="A text that shows what TEXT describes; repeat it. Together they count as much as TEXT.",
            show_default=False,
        ),
    ] = None,
    words_only: Annotated[
        bool, typer.Option("--words-only", help="Do not let the model read the text; needs no model.")
    ] = False,
    num: Num = 10,
    model: ModelOption = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Find concepts by words, by a description, or by an example of what they are about.

    JSON: `hits`, best first: `concept`, `score`, `why`.

    Example:

        fairlead concepts search runs/concepts "talk like a pirate"

        fairlead concepts search runs/concepts "add two numbers" --example "What is 17 plus 25?"
    """
    from fairlead.cli.show_concepts import show_hits

    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device, load=not words_only)
        hits = found.search(text, examples=example or (), num=num, model=loaded)
    finish(
        "concepts search",
        as_json=as_json,
        run=catalogue,
        result={"hits": [hit._asdict() for hit in hits]},
        show=lambda console: show_hits(console, found, hits),
    )


@group.command("show")
def concepts_show(
    catalogue: CatalogueArgument,
    concept: ConceptId,
    *,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show all of one concept: scores, statistics, promoted tokens, examples.

    JSON: `entry` (concept, scores, statistics, promoted, suppressed, words), `examples`, `neighbours`.

    Example:

        fairlead concepts show runs/concepts 1
    """
    from fairlead.cli.show_concepts import show_entry
    from fairlead.concepts import Catalogue

    with working():
        found = Catalogue.open(catalogue)
        name = _concept_id(found, concept)
        entry, examples, near = found.entry(name), found.examples(name), found.neighbours(name, 5)
    finish(
        "concepts show",
        as_json=as_json,
        run=catalogue,
        result={"entry": entry, "examples": examples, "neighbours": [one._asdict() for one in near]},
        show=lambda console: show_entry(console, found, entry, examples, near),
    )


@group.command("neighbours")
def concepts_neighbours(
    catalogue: CatalogueArgument,
    concept: ConceptId,
    *,
    by: Annotated[
        str, typer.Option(help="cosine (of their directions) or together (acting on the same tokens).")
    ] = "cosine",
    num: Num = 10,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List the concepts near one, by direction or by acting on the same tokens.

    JSON: `neighbours`, nearest first: `concept`, `cosine`, `together` (phi coefficient).

    Example:

        fairlead concepts neighbours runs/concepts 1 --by together
    """
    from fairlead.cli.show_concepts import show_neighbours
    from fairlead.concepts import Catalogue
    from fairlead.core.errors import ConfigError

    if by not in ("cosine", "together"):
        raise ConfigError(f"--by is '{by}'; use cosine or together.")
    found = Catalogue.open(catalogue)
    near = found.neighbours(_concept_id(found, concept), num, by=by)
    finish(
        "concepts neighbours",
        as_json=as_json,
        run=catalogue,
        result={"neighbours": [one._asdict() for one in near]},
        show=lambda console: show_neighbours(console, near),
    )


@group.command("contrast")
def concepts_contrast(
    catalogue: CatalogueArgument,
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="Data set with the property.", show_default=False)
    ],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Data set without it.", show_default=False)],
    *,
    measure: Annotated[str, typer.Option(help="mean or max activation of a concept in a text.")] = "mean",
    tokens: Annotated[str, typer.Option(help="all tokens, or those of the answer.")] = "all",
    max_examples: MaxExamples = 500,
    max_length: MaxLength = None,
    num: Num = 15,
    seed: Seed = 0,
    model: ModelOption = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Rank concepts by how well they tell two sets of texts or chats apart.

    JSON: `contrasts`, best first: `concept`, `auroc`, `low`, `high` (bootstrap), `p` (permutation), `q` (false discovery rate),
    `first`, `second` (mean activation).

    Example:

        fairlead concepts contrast runs/concepts task/data.jsonl task/neutral.jsonl --max-examples 60
    """
    from fairlead.cli.show_concepts import show_contrasts
    from fairlead.concepts import contrast
    from fairlead.core.errors import ConfigError
    from fairlead.data import encode, load_data

    if measure not in ("mean", "max") or tokens not in ("all", "answer"):
        raise ConfigError("--measure is mean or max, --tokens all or answer. Next: use one of these.")
    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device)
        assert loaded is not None
        sides = [
            encode(
                load_data(name, max_records=max_examples),
                loaded.tokenizer,
                max_length=max_length or loaded.max_length,
                on_long="truncate",
            )
            for name in (first, second)
        ]
        lines = contrast(
            loaded, found.load_dictionary(), found.concepts, *sides, measure=measure, tokens=tokens, seed=seed
        )
    finish(
        "concepts contrast",
        as_json=as_json,
        run=catalogue,
        result={"contrasts": [line._asdict() for line in lines[:num]]},
        show=lambda console: show_contrasts(console, lines[:num]),
    )


@group.command("inspect")
def concepts_inspect(
    catalogue: CatalogueArgument,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="The text; with --prompt, an answer.", show_default=False)
    ],
    *,
    prompt: Annotated[str | None, typer.Option(help="Question that the text answers (chat models).")] = None,
    system: Annotated[str | None, typer.Option(help="System message before it.")] = None,
    num: Num = 12,
    html: HtmlFile = None,
    model: ModelOption = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show which concepts are active in a text, token by token.

    JSON: `tokens`, `concepts`, the most remarkable first: `concept`, `scores` (one a token), `peak`, `mean`, `times_usual`, `surprise`.

    Example:

        fairlead concepts inspect runs/concepts "Arr, it be 12, matey!" --prompt "What is 5 plus 7?" --html inspect.html
    """
    from fairlead.cli.show_concepts import show_inspection
    from fairlead.concepts import inspect_text
    from fairlead.data import Message, Row, encode
    from fairlead.reports import write_inspection

    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device)
        assert loaded is not None
        row = Row(text=text)
        if prompt is not None or system is not None:
            row = Row(messages=(Message("user", prompt or ""), Message("assistant", text)))
        encoded = encode(
            [row], loaded.tokenizer, max_length=loaded.max_length, system=system, on_long="truncate"
        )[0]
        seen = inspect_text(found, loaded, encoded)
        if html is not None:
            write_inspection(html, found, seen, num=num)
    finish(
        "concepts inspect",
        as_json=as_json,
        run=catalogue,
        result={"tokens": seen.tokens, "concepts": [one._asdict() for one in seen.concepts[:num]]},
        show=lambda console: show_inspection(console, seen, num=num),
    )


@group.command("page")
def concepts_page(
    catalogue: CatalogueArgument,
    *,
    file: Annotated[
        Path | None, typer.Option(help="HTML file; page.html in the catalogue by default.")
    ] = None,
    max_concepts: Annotated[
        int, typer.Option(min=1, help="Concepts on the page, the best labelled first.")
    ] = 1000,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Write the catalogue as one self-contained page that can be searched without a network.

    JSON: `page`.

    Example:

        fairlead concepts page runs/concepts
    """
    from fairlead.concepts import Catalogue
    from fairlead.reports import write_catalogue_page

    with working():
        path = write_catalogue_page(
            file or catalogue / "page.html", Catalogue.open(catalogue), limit=max_concepts
        )
    finish(
        "concepts page",
        as_json=as_json,
        run=catalogue,
        result={"page": path},
        show=lambda console: console.print(f"page: {path}", markup=False),
    )


def _concept_id(catalogue: Catalogue, name: str) -> str:
    """The id of a concept given by its id or its place in the list, from 1."""
    if name.isdigit() and 1 <= int(name) <= len(catalogue):
        return catalogue.concepts[int(name) - 1].id
    return name


def open_catalogue(
    folder: Path, model: str | None, dtype: str, device: str, *, load: bool = True
) -> tuple[Catalogue, Model | None]:
    """The catalogue, and the model it describes where it is needed."""
    from fairlead.concepts import Catalogue
    from fairlead.models import load_model

    found = Catalogue.open(folder)
    if not load:
        return found, None
    loaded = load_model(model or found.model_name, dtype=dtype, device=device)
    found.check_model(loaded)
    return found, loaded
