"""Where the bundled checkpoint lies."""

from __future__ import annotations

from pathlib import Path

from fairlead.core.errors import OrganismError


def pocket_path() -> Path:
    """The folder of the bundled pocket model. Raises OrganismError where it is missing."""
    folder = Path(__file__).parent / "pocket"
    if not (folder / "model.safetensors").is_file():
        raise OrganismError(f"no pocket model in {folder}; build it with: fairlead organism build pocket")
    return folder
