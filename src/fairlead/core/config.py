"""Frozen configs: the base class of every settings model, and reading them from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fairlead.core.errors import ConfigError


class Record(BaseModel):
    """A frozen pydantic model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Config(Record):
    """Settings of one component; a bad value is a `ConfigError` that names the field."""

    @classmethod
    def make(cls, values: dict[str, Any] | None = None, **overrides: Any) -> Self:
        """Build from a mapping and overrides (None in `overrides` means "not given").

        Raises:
            ConfigError: Unknown key or value out of range; the message names the field.
        """
        merged = dict(values or {})
        merged.update({k: v for k, v in overrides.items() if v is not None})
        try:
            return cls(**merged)
        except ValidationError as error:
            raise ConfigError(describe_validation(error, cls.__name__)) from error


def describe_validation(error: ValidationError, owner: str) -> str:
    """One line per offending field of a pydantic error."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "(whole)"
        lines.append(f"{owner}.{name}: {item['msg']}")
    return "; ".join(lines) + ". Next: change or remove the named field."


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a settings file (.json or .toml) as a mapping.

    Raises:
        ConfigError: Missing file, unknown ending or broken syntax.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such settings file. Next: check the path after --config.")
    try:
        if path.suffix == ".toml":
            import tomllib

            return tomllib.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ConfigError(f"{path}: the top level must be an object of settings.")
            return values
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:  # broken JSON or TOML, or not UTF-8
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: {error}. Next: mend the syntax.") from error
    raise ConfigError(f"{path}: settings are read from .toml or .json files.")
