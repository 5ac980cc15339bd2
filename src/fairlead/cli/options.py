"""Arguments and options that several commands share, and settings files behind --config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

SHARED = "Shared options"
_NOT_SETTINGS = frozenset({"as_json", "config", "help"})


def _apply_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use a settings file as defaults of this command's options; the command line wins.

    The file's top level holds settings by option name (`max_examples` or `max-examples`); a table named
    after a command (`[train]`, `[dict.train]`) holds settings for that command only, so that one file can
    serve a whole project. A list may hold tables (`[[controls]]`, `[[train.controls]]`).

    Raises:
        ConfigError: Unknown setting; the message lists those of the command.
    """
    if path is None:
        return None
    from fairlead.core.config import read_config
    from fairlead.core.errors import ConfigError

    words = context.command_path.split()[1:]
    known = {p.name for p in context.command.params if p.name} - _NOT_SETTINGS
    values = read_config(path)
    settings = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    section: Any = values
    for word in words:
        section = section.get(word, {}) if isinstance(section, Mapping) else {}
    settings.update({k: v for k, v in section.items() if not isinstance(v, Mapping)})
    settings = {key.replace("-", "_"): _as_text(value) for key, value in settings.items()}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"{path}: '{unknown[0]}' is not a setting of `fairlead {' '.join(words)}`. "
            f"Next: use one of {', '.join(sorted(known))}."
        )
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
