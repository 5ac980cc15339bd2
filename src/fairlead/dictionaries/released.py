"""Layouts of released dictionary suites that are neither SAELens' nor sparsify's.

- **Gemma Scope** (Lieberum et al., arXiv 2408.05147): `params.npz` with `W_enc, W_dec, b_enc, b_dec, threshold`, no centring of the
  input; folders like `layer_20/width_16k/average_l0_71` in a repository `gemma-scope-2b-pt-res` (`-mlp`, `-att`, `-transcoders`).
  Embedding dictionaries were trained on embeddings without Gemma's factor sqrt(d_model), which is folded in.
- **Gemma Scope 2**: `params.safetensors` (`w_enc, w_dec, ...`, `affine_skip_connection [d_in, d_out]`) and `config.json`.
- **Llama Scope** (He et al., arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors` (`encoder.weight`,
  `decoder.weight`, ...). One threshold; activations are scaled by `sqrt(d) / dataset_average_activation_norm`, folded in as by
  SAELens' converter.
- **Goodfire** (goodfire.ai/blog/sae-open-source-announcement): a `.pt` or `.pth` with a state dict of four tensors (`encoder_linear.weight
  [d_sae, d_in]`, `decoder_linear.weight [d_in, d_sae]` and their biases), ReLU, no centring; the layer stands in the name (`-l19`). It
  is read with torch's tensors-only unpickler (`weights_only=True`), which constructs nothing else; any other pickle is refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.dictionaries.dictionary import site_of_hook
from fairlead.dictionaries.saelens import Layout

_PICKLES = (".pt", ".pth")
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read_released(folder: Path, name: str) -> Layout | None:
    """Read a folder in one of these layouts; None where it is none of them.

    Args:
        name: Repository and path, or the folder: the site is read from it.

    Raises:
        DictionaryError: Tensors lack, or there are pickled weights in another layout.
    """
    if (folder / "params.npz").is_file():
        return _gemma_scope(folder, name)
    if (folder / "params.safetensors").is_file():
        return _gemma_scope_2(folder, name)
    if (folder / "hyperparams.json").is_file():
        return _llama_scope(folder)
    if folder.suffix in _PICKLES:
        return _goodfire(folder, name)
    pickled = [path for ending in _PICKLES for path in sorted(folder.glob(f"*{ending}"))]
    if len(pickled) > 1:
        raise DictionaryError(
            f"{folder}: holds {len(pickled)} files of weights, {pickled[0].name} among them. Next: name one of them."
        )
    return _goodfire(pickled[0], f"{name}/{pickled[0].name}") if pickled else None


def _goodfire(path: Path, name: str) -> Layout:
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise refuse_pickle(path, next(iter(str(error).splitlines()), "broken file")) from error
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise refuse_pickle(path, "it holds more than tensors by name")
    missing = [f"{side}_linear.{part}" for side in ("encoder", "decoder") for part in ("weight", "bias")]
    missing = [key for key in missing if key not in raw]
    if missing:
        raise refuse_pickle(path, f"it lacks {', '.join(missing)}")
    w = {
        "W_enc": raw["encoder_linear.weight"].float().T.contiguous(),
        "W_dec": raw["decoder_linear.weight"].float().T.contiguous(),
        "b_enc": raw["encoder_linear.bias"].float(),
        "b_dec": raw["decoder_linear.bias"].float(),
    }
    w["threshold"] = torch.zeros_like(w["b_enc"])
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "metadata": {"model_name": _goodfire_model(path.stem)},
    }
    layer = re.search(r"[-_]l(\d+)(?!\d)", name)
    if layer:
        config["site"] = f"layers.{layer.group(1)}.resid_post"
    return _uncentred(w, config, transcoder=False)


def _goodfire_model(stem: str) -> str:
    model = stem.split("-SAE")[0]
    return f"meta-llama/{model}" if model != stem and model.startswith("Llama") else ""


def refuse_pickle(path: Path, why: str) -> DictionaryError:
    """The error for pickled weights in another layout than Goodfire's."""
    return DictionaryError(
        f"{path}: these pickled weights are not read ({why}); of pickles only Goodfire's state dicts of tensors are, since a pickle can "
        "run code. Next: in an environment where you trust the file, load it with torch.load(..., weights_only=True), write its tensors "
        "as W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc, b_dec to sae_weights.safetensors, and put a cfg.json with "
        '"architecture": "standard", "apply_b_dec_to_input": false and "hook_name" beside it.'
    )


def _gemma_scope(folder: Path, name: str) -> Layout:
    path = folder / "params.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: torch.from_numpy(np.asarray(file[key])).float() for key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DictionaryError(f"{path}: broken file ({error}). Next: download it again.") from error
    w = _complete({("W_" + k[2:] if k.startswith("w_") else k): v for k, v in found.items()}, path)
    config: dict[str, Any] = {"architecture": "jumprelu", "metadata": {"model_name": _gemma_name(name)}}
    layer = re.search(r"layer_(\d+)", name)
    if "embedding" in name:
        scale = w["W_enc"].shape[0] ** 0.5
        w["W_enc"], w["W_dec"] = w["W_enc"] / scale, w["W_dec"] * scale
        config["site"] = "embed"
    elif layer and "transcoder" in name:
        number = layer.group(1)
        config |= {"site": f"layers.{number}.mlp_in", "to_site": f"layers.{number}.mlp_out"}
    elif layer:
        kind = next((k for tag, k in (("-res", "resid_post"), ("-mlp", "mlp_out")) if tag in name), None)
        config |= {"site": f"layers.{layer.group(1)}.{kind}"} if kind else {}
    return _uncentred(w, config, transcoder="transcoder" in name)


def _gemma_scope_2(folder: Path, name: str) -> Layout:
    path = folder / "params.safetensors"
    raw = {key: value.float() for key, value in load_file(path).items()}
    w = _complete({("W_" + k[2:] if k.startswith("w_") else k): v for k, v in raw.items()}, path)
    settings = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if settings.get("architecture", "jump_relu") != "jump_relu":
        raise DictionaryError(f"{folder}: architecture '{settings['architecture']}' cannot be read.")
    transcoder = "transcoder" in name
    if "affine_skip_connection" in raw:
        w["W_skip"] = raw["affine_skip_connection"].T.contiguous()
        transcoder = True
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "metadata": {"model_name": settings.get("model_name", "")},
    }
    layer = re.search(r"layer_(\d+)", name)
    if layer and transcoder:
        config |= {"site": f"layers.{layer.group(1)}.mlp_in", "to_site": f"layers.{layer.group(1)}.mlp_out"}
    elif layer:
        kind = next((k for k in ("resid_post", "mlp_out") if k in name), None)
        config |= {"site": f"layers.{layer.group(1)}.{kind}"} if kind else {}
    return _uncentred(w, config, transcoder=transcoder)


def _llama_scope(folder: Path) -> Layout:
    settings = _json(folder / "hyperparams.json")
    path = folder / "checkpoints" / "final.safetensors"
    if not path.is_file():
        raise DictionaryError(f"{path}: no such file. Next: download the whole folder.")
    raw = {key: value.float() for key, value in load_file(path).items()}
    norms = settings.get("dataset_average_activation_norm") or {}
    if settings.get("norm_activation", "dataset-wise") != "dataset-wise" or "in" not in norms:
        raise DictionaryError(
            f"{folder / 'hyperparams.json'}: activations are scaled by something else than a constant of the data set "
            f"({settings.get('norm_activation')}). Next: choose a dictionary with norm_activation dataset-wise."
        )
    try:
        w = {
            "W_enc": raw["encoder.weight"].T.contiguous(),
            "W_dec": raw["decoder.weight"].T.contiguous(),
            "b_enc": raw["encoder.bias"],
            "b_dec": raw["decoder.bias"],
        }
    except KeyError as error:
        raise DictionaryError(f"{path}: lacks {error}. Next: download it again.") from None
    into = w["W_enc"].shape[0] ** 0.5 / float(norms["in"])
    out = w["W_dec"].shape[1] ** 0.5 / float(norms.get("out", norms["in"]))
    threshold = float(settings.get("jump_relu_threshold", 0.0)) * into
    w["threshold"] = torch.full_like(w["b_enc"], threshold)
    w["W_enc"], w["W_dec"], w["b_dec"] = w["W_enc"] * into, w["W_dec"] / out, w["b_dec"] / out
    read, write = settings.get("hook_point_in", ""), settings.get("hook_point_out", "")
    place, target = site_of_hook(read), site_of_hook(write)
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "metadata": {"model_name": "meta-llama/Llama-3.1-8B"},
    }
    config |= {"site": place} if place else {}
    transcoder = bool(write) and write != read
    config |= {"to_site": target} if transcoder and target else {}
    return _uncentred(w, config, transcoder=transcoder)


def _complete(w: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    missing = [name for name in _NAMES if name not in w]
    if missing:
        raise DictionaryError(f"{path}: lacks {', '.join(missing)}. Next: download it again.")
    return {name: w[name] for name in _NAMES}


def _uncentred(w: dict[str, Tensor], config: dict[str, Any], *, transcoder: bool) -> Layout:
    """The input is not centred: an autoencoder's `b_dec` goes into the encoder's bias."""
    if transcoder:
        config["architecture"] = "jumprelu_skip_transcoder" if "W_skip" in w else "jumprelu_transcoder"
    else:
        w["b_enc"] = w["b_enc"] + w["b_dec"] @ w["W_enc"]
    return Layout(w, config)


def _gemma_name(name: str) -> str:
    match = re.search(r"gemma-scope-(\d+b)-(pt|it)", name)
    if match is None:
        return ""
    return f"google/gemma-2-{match.group(1)}" + ("-it" if match.group(2) == "it" else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DictionaryError(f"{path}: cannot be read ({error}). Next: download it again.") from error
