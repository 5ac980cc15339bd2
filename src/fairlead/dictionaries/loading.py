"""Load a dictionary, whoever wrote it: Fairlead, SAELens, sparsify, Gemma Scope, Llama Scope, Goodfire; from a folder or by `hf:` name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.site import Site
from fairlead.dictionaries import sparsify
from fairlead.dictionaries.dictionary import (
    CONFIG_FILE,
    FORMAT,
    VERSION,
    WEIGHTS_FILE,
    Dictionary,
    find_architecture,
    site_of_hook,
)
from fairlead.dictionaries.hub import PREFIX, fetch_dictionary
from fairlead.dictionaries.released import read_released
from fairlead.dictionaries.saelens import Layout, from_saelens


def load_dictionary(
    folder: str | Path, *, site: Site | str | None = None, to_site: Site | str | None = None
) -> Dictionary:
    """Load a dictionary from a folder, or by its Hugging Face name.

    Args:
        folder: Folder of Fairlead, SAELens (`cfg.json`, `sae_weights.safetensors`), sparsify (`cfg.json`, `sae.safetensors`), Gemma
            Scope (`params.npz`) or Llama Scope (`hyperparams.json`), folder or file of Goodfire (`.pt`, `.pth`); or
            `hf:ORG/REPOSITORY/FOLDER`.
        site: Needed for foreign dictionaries whose files name no site that is understood.
        to_site: The same for where a transcoder writes.

    Returns:
        A `Dictionary`; transcoders, crosscoders and block-sparse ones as their own class.

    Raises:
        DictionaryError: Files missing or broken, sizes that contradict `cfg.json`, a variant that cannot be expressed, or a newer
            format.
    """
    name = str(folder)
    folder = fetch_dictionary(name) if name.startswith(PREFIX) else Path(folder)
    try:
        layout = _read(folder, name)
    except FileNotFoundError as error:
        raise DictionaryError(
            f"{error.filename}: no such file. Next: pass the folder that `fairlead dict train` wrote."
        ) from None
    except OSError as error:
        raise DictionaryError(
            f"{folder}: cannot read ({error.strerror or error}). Next: check the path."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise DictionaryError(
            f"{folder}: broken file ({error}). Next: train or copy the dictionary again."
        ) from error
    found = _build(layout, folder, name if name.startswith(PREFIX) else str(folder), site, to_site)
    if layout.config.get("sha256", found.sha256) != found.sha256:
        raise DictionaryError(
            f"{folder}: the weights do not match the hash in {CONFIG_FILE}. Next: train or copy it again."
        )
    return found


def is_own_folder(folder: str | Path) -> bool:
    """Whether a folder holds a dictionary that Fairlead wrote, so that its path alone brings it back."""
    path = Path(folder) / CONFIG_FILE
    if not str(folder) or not path.is_file():
        return False
    try:
        return json.loads(path.read_text("utf-8")).get("format") == FORMAT
    except (OSError, ValueError):
        return False


def _read(folder: Path, name: str) -> Layout:
    if not (folder / CONFIG_FILE).is_file():
        released = read_released(folder, name)
        if released is not None:
            return released
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    if (folder / sparsify.WEIGHTS_FILE).is_file():
        return sparsify.from_sparsify(load_file(folder / sparsify.WEIGHTS_FILE), config, folder)
    weights = load_file(folder / WEIGHTS_FILE)
    if "format" not in config:
        return from_saelens(weights, config, str(folder))
    if config["format"] != FORMAT or config.get("version", VERSION) > VERSION:
        raise DictionaryError(
            f"{folder / CONFIG_FILE}: format {config['format']} version {config.get('version')} is not known here. "
            "Next: update fairlead."
        )
    if "threshold" not in weights and "b_enc" in weights:
        weights["threshold"] = torch.zeros_like(weights["b_enc"])
    return Layout(weights, config)


def _build(
    layout: Layout, folder: Path, source: str, site: Site | str | None, to_site: Site | str | None
) -> Dictionary:
    weights, config = layout
    metadata = config.get("metadata") or {}
    architecture = config.get("architecture", "jumprelu")
    kind = find_architecture(architecture)
    if kind is None:
        raise DictionaryError(
            f"{folder / CONFIG_FILE}: architecture '{architecture}' is not known here. Next: update fairlead."
        )
    options: dict[str, Any] = {
        "model_fingerprint": config.get("model_fingerprint", ""),
        "model_name": metadata.get("model_name") or "",
        "config": metadata.get("training", {}),
        "metrics": config.get("metrics", {}),
        "source": source,
        "topk": config.get("k"),
    }
    own = ("sites", "widths", "models", "fingerprints", "block")
    options |= {key: config[key] for key in own if key in config}
    if "sites" not in config:
        options["site"] = _place(config, "site", "hook_name", site, folder)
    if "transcoder" in architecture:
        options["to_site"] = _place(config, "to_site", "hook_name_out", to_site, folder)
    found = kind(weights, **options)
    _check_sizes(config, found.weights, folder)
    return found


def _place(config: dict[str, Any], key: str, hook: str, given: Site | str | None, folder: Path) -> str | Site:
    metadata = config.get("metadata") or {}
    name = config.get(hook) or metadata.get(hook) or ""
    place = given or config.get(key) or site_of_hook(name)
    if place is None:
        example = "layers.N.resid_post" if key == "site" else "layers.N.mlp_out"
        raise DictionaryError(
            f"{folder / CONFIG_FILE}: names no {key} that is understood"
            + (f" ('{name}')" if name else "")
            + f". Next: pass {key}='{example}'."
        )
    return place


def _check_sizes(config: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> None:
    for key, size in (("d_in", weights["W_enc"].shape[0]), ("d_sae", weights["W_dec"].shape[0])):
        if config.get(key, size) != size:
            raise DictionaryError(
                f"{folder}: {CONFIG_FILE} says {key} = {config[key]} but the weights have {size}."
            )
