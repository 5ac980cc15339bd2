"""Controls in a single file of the user's own: `path/to/file.py:ClassName`, without a package.

All controls of the file join the registry under their names (a placebo stands beside what it is the placebo of). A run keeps the
file's place, so that a resumed run, a replay and a branch find it again; it is the user's own code and is run as such.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fairlead.core.errors import ConfigError
from fairlead.training.controls.base import Control

_LOADED: dict[Path, dict[str, type[Control]]] = {}


def is_file_name(name: str) -> bool:
    """Whether a control's name is that of a class in a file."""
    return ".py:" in name


def control_in_file(name: str) -> tuple[str, str]:
    """Name in the registry, and the file with its class, of `path/to/file.py:ClassName`.

    Raises:
        ConfigError: No such file or class.
    """
    path, _, wanted = name.rpartition(":")
    found = controls_of(path)
    for control in found.values():
        if control.__name__ == wanted:
            return control.name, str(Path(path).resolve())
    names = ", ".join(control.__name__ for control in found.values())
    raise ConfigError(f"{path}: has no control '{wanted}'. Next: use one of {names}.")


def controls_of(path: str | Path) -> dict[str, type[Control]]:
    """The controls that a file defines, by name; the file is run once.

    Raises:
        ConfigError: There is no such file, it cannot be run, or it defines no control.
    """
    path = Path(path).resolve()
    if path in _LOADED:
        return _LOADED[path]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path}: no such file with a control. Next: give path/to/file.py:ClassName.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"{path}: cannot be run ({type(error).__name__}: {error}). Next: mend it."
        ) from error
    made = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Control)
    ]
    own = {kind.name: kind for kind in made if kind.__module__ == module.__name__ and hasattr(kind, "name")}
    if not own:
        raise ConfigError(f"{path}: defines no control. Next: subclass fairlead.training.Control there.")
    _LOADED[path] = own
    return own
