"""Controls as text: what `--controls` takes for one control with its settings.

    explain_away                                       a name, its settings as they are by default
    explain_away(strength=0.5, gate=none)              with a strength, and options by name
    inoculation:avoid.1(paraphrase=true)               for one clause of the spec
    path/to/file.py:ClassName(words=[arr, matey])      a control in a file of one's own
    {"name": "explain_away", "strength": 0.5}          the same as JSON (so a `[[controls]]` table of a settings file arrives)

Values are JSON (numbers, true, "text", lists); bare words are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fairlead.core.errors import ConfigError
from fairlead.training.config import ControlConfig
from fairlead.training.controls.files import control_in_file, is_file_name

_TEXT = re.compile(r"(?P<name>[^()]+?)\s*(?:\((?P<settings>.*)\))?\s*", re.S)
_OPEN, _CLOSE, _QUOTES = "[{(", "]})", "\"'"


def read_control(text: str) -> ControlConfig:
    """A control's settings from text.

    Raises:
        ConfigError: It is no such text, or sets what a control does not have.
    """
    if text.lstrip().startswith("{"):
        try:
            return control_config(json.loads(text))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{text}: is no JSON object ({error}). Next: mend it.") from error
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text}: is no control. Next: write NAME, or NAME(setting=value, ...).")
    settings: dict[str, Any] = {}
    for part in _split(found["settings"] or "", text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier():
            raise ConfigError(f"{text}: '{part.strip()}' is not setting=value. Next: write it so.")
        if name in settings:
            raise ConfigError(f"{text}: '{name}' is given twice. Next: give it once.")
        settings[name] = _value(value, text)
    about: dict[str, Any] = {key: settings.pop(key) for key in ("strength", "clause") if key in settings}
    name = found["name"].strip()
    if not is_file_name(name) and ":" in name:
        name, _, about["clause"] = name.partition(":")
    return control_config({"name": name, **about, "options": settings})


def control_config(values: Mapping[str, Any]) -> ControlConfig:
    """Settings of a control from a mapping; its name may be that of a class in a file.

    Raises:
        ConfigError: Unknown field.
    """
    values = dict(values)
    name = values.get("name")
    if isinstance(name, str) and is_file_name(name):
        values["name"], values["file"] = control_in_file(name)
    return ControlConfig.make(values)


def _split(text: str, whole: str) -> list[str]:
    """Parts between commas that stand in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES:
            quote = letter
        depth += (not quote and letter in _OPEN) - (not quote and letter in _CLOSE)
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if depth or quote:
        raise ConfigError(f"{whole}: a bracket or quote is left open. Next: close it.")
    return [part for part in parts if part.strip()]


def _value(text: str, whole: str) -> Any:
    """JSON where it is, a list of such values, else the text as it stands."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if text.startswith("[") and text.endswith("]"):
        return [_value(part.strip(), whole) for part in _split(text[1:-1], whole)]
    if text[:1] in _QUOTES and text.endswith(text[0]) and len(text) > 1:
        return text[1:-1]
    return text
