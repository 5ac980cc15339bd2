"""Arguments and options that several commands share, and settings files behind --config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

SHARED = "Shared options"
_NOT_SETTINGS = frozenset({"as_json", "config", "help"})


FIELDS = (
    "fairlead.fields"  # key in a context's `meta`: fields of the component's config that a settings file gave
)


def _apply_config(context: typer.Context, path: Path | None) -> Path | None:
    return None if path is None else _read_settings(context, path, fields=frozenset(), aliases={})


def _read_settings(
    context: typer.Context, path: Path, *, fields: frozenset[str], aliases: Mapping[str, str]
) -> Path:
    """Use a settings file as defaults of this command's options; the command line wins.

    The file's top level holds settings by option name (`max_examples` or `max-examples`); a table named
    after a command (`[train]`, `[dict.train]`) holds settings for that command only, so that one file can
    serve a whole project. A list may hold tables (`[[controls]]`, `[[train.controls]]`).

    Args:
        context: Of the command.
        path: The file.
        fields: Fields of the command's config that are no options; they are put into `context.meta`, and may be tables.
        aliases: Fields that are options of another name.

    Raises:
        ConfigError: Unknown setting; the message lists those of the command.
    """
    from fairlead.core.config import read_config
    from fairlead.core.errors import ConfigError

    words = context.command_path.split()[1:]
    known = {p.name for p in context.command.params if p.name} - _NOT_SETTINGS
    values = read_config(path)
    section: Any = values
    for word in words:
        section = section.get(word, {}) if isinstance(section, Mapping) else {}
    settings: dict[str, Any] = {}
    for table in (values, section):
        settings |= {k: v for k, v in table.items() if k in fields or not isinstance(v, Mapping)}
    settings = {key.replace("-", "_"): value for key, value in settings.items()}
    settings = {aliases.get(key, key): value for key, value in settings.items()}
    unknown = sorted(set(settings) - known - fields)
    if unknown:
        raise ConfigError(
            f"{path}: '{unknown[0]}' is not a setting of `fairlead {' '.join(words)}`. "
            f"Next: use one of {', '.join(sorted(known | fields))}."
        )
    context.meta[FIELDS] = {key: settings.pop(key) for key in sorted(fields & set(settings) - known)}
    many = {p.name for p in context.command.params if getattr(p, "multiple", False)}
    settings = {k: [v] if k in many and isinstance(v, str) else _as_text(v) for k, v in settings.items()}
    context.default_map = {**(context.default_map or {}), **settings}
    return path


def _as_text(value: Any) -> Any:
    """Tables in a list (`[[controls]]`) as JSON text, which the option reads."""
    if not isinstance(value, list):
        return value
    return [json.dumps(item) if isinstance(item, Mapping) else item for item in value]


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel=SHARED),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings from a .toml or .json file; the command line wins.",
        is_eager=True,
        callback=_apply_config,
        rich_help_panel=SHARED,
    ),
]


def config_file_of(owner: str, **aliases: str) -> Any:
    """`ConfigFile` for a command whose file may set every field of a config.

    Args:
        owner: `module:Class` of the config, imported when a file is given.
        aliases: Fields that are options of another name.
    """

    def apply(context: typer.Context, path: Path | None) -> Path | None:
        if path is None:
            return None
        from importlib import import_module

        module, _, name = owner.partition(":")
        fields = frozenset(getattr(import_module(module), name).model_fields) - set(aliases)
        return _read_settings(context, path, fields=fields, aliases=aliases)

    return typer.Option(
        "--config",
        metavar="FILE",
        help=f"Settings from a .toml or .json file, all fields of {owner.partition(':')[2]} among them; the command line wins.",
        is_eager=True,
        callback=apply,
        rich_help_panel=SHARED,
    )


Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what stands in the run folder.", rich_help_panel=SHARED)
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=SHARED)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.", rich_help_panel=SHARED)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16.", rich_help_panel=SHARED)]

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face name, folder, or organism:pocket.",
        show_default=False,
    ),
]
DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="JSONL, JSON, Parquet, CSV or .txt file, or a `datasets` name: chat, prompt/completion, preference pairs or text.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Run folder; the next free runs/NAME-N by default.",
        rich_help_panel=SHARED,
    ),
]
MaxExamples = Annotated[int | None, typer.Option(min=1, help="Use the first N examples only.")]
MaxLength = Annotated[
    int | None, typer.Option(min=8, help="Longest example in tokens; that of the model by default.")
]
