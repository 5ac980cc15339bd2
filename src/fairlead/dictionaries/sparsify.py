"""sparsify's files (EleutherAI, 1.3): a folder per hook point with `cfg.json` and `sae.safetensors`, read and written.

A sparsify coder keeps the k largest rectified pre-activations of every token: `encoder.weight [num_latents, d_in]`, `encoder.bias`,
`W_dec [num_latents, d_in]`, `b_dec`, with `transcode` no centring of the input, and with `skip_connection` `W_skip [d_in, d_in]`.
The folder's name is the module that was hooked (`layers.3`, `h.3`, `layers.3.mlp`): an autoencoder reads that module's output, a transcoder
its input and output. Thresholds have no place in these files: a dictionary that has them is written only with a k that the caller names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.run import atomic_path
from fairlead.core.site import Site
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.saelens import Layout
from fairlead.dictionaries.transcoder import Transcoder

WEIGHTS_FILE = "sae.safetensors"
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)(?:\.(\w+))?$")
_PARTS = {
    "mlp": "mlp_out",
    "feed_forward": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
}


def site_of_hookpoint(name: str) -> str | None:
    """The site of a module's output by the module's name; None where it is not understood."""
    if name.split(".")[-1] in ("embed_tokens", "wte", "embed_in"):
        return "embed"
    match = _BLOCK.search(name)
    if match is None:
        return None
    layer, part = match.groups()
    kind = "resid_post" if part is None else _PARTS.get(part)
    return f"layers.{layer}.{kind}" if kind else None


def from_sparsify(weights: dict[str, Tensor], config: dict[str, Any], folder: Path) -> Layout:
    """Turn sparsify's tensors and settings into Fairlead's.

    Raises:
        DictionaryError: A variant that cannot be expressed, or tensors that lack.
    """
    if config.get("activation", "topk") != "topk":
        raise DictionaryError(
            f"{folder}: activation '{config['activation']}' cannot be read. Next: choose a dictionary with topk."
        )
    missing = [n for n in ("encoder.weight", "encoder.bias", "W_dec", "b_dec") if n not in weights]
    if missing:
        raise DictionaryError(
            f"{folder}: lacks {', '.join(missing)}. Next: only dictionaries with a decoder can be read."
        )
    transcode = bool(config.get("transcode"))
    if "W_skip" in weights and not transcode:
        raise DictionaryError(
            f"{folder}: an autoencoder with a skip connection. Next: choose one without, or a transcoder."
        )
    w = {name: value.float() for name, value in weights.items()}
    found = {
        "W_enc": w["encoder.weight"].T.contiguous(),
        "W_dec": w["W_dec"],
        "b_enc": w["encoder.bias"],
        "b_dec": w["b_dec"],
        "threshold": torch.zeros_like(w["encoder.bias"]),
    }
    if "W_skip" in w:
        found["W_skip"] = w["W_skip"]
    kept: dict[str, Any] = {
        "k": int(config.get("k", 32)),
        "d_in": config.get("d_in", found["W_enc"].shape[0]),
    }
    place = site_of_hookpoint(folder.name)
    if not transcode:
        return Layout(found, {**kept, "architecture": "topk", **({"site": place} if place else {})})
    kept["architecture"] = "topk_skip_transcoder" if "W_skip" in w else "topk_transcoder"
    if place is not None and place.endswith(".mlp_out"):
        kept |= {"site": place.removesuffix("out") + "in", "to_site": place}
    elif place is not None and place.endswith(".resid_post"):
        kept |= {"site": place.removesuffix("post") + "pre", "to_site": place}
    return Layout(found, kept)


def hookpoint_of(site: Site) -> str:
    """Sparsify's name of a Llama-like model's module whose output is the site.

    Raises:
        DictionaryError: No module has that output.
    """
    if site.layer is None:
        return "embed_tokens"
    tail = {"resid_post": "", "mlp_out": ".mlp", "attn_out": ".self_attn"}.get(site.kind)
    if tail is None:
        raise DictionaryError(
            f"{site}: sparsify hooks the output of modules, and no module has this one. Next: keep Fairlead's layout."
        )
    return f"layers.{site.layer}{tail}"


def save_sparsify(
    dictionary: Dictionary, folder: str | Path, *, k: int | None = None, hookpoint: str | None = None
) -> Path:
    """Write a dictionary as sparsify does, in a folder of its hook point below `folder`; returns that folder.

    Args:
        k: Active latents of every token. Needed where the dictionary decides by thresholds, which these files cannot hold: the
            written one then keeps each token's k largest instead.
        hookpoint: Name of the module; that of a Llama-like model by default.

    Raises:
        DictionaryError: Crosscoder or block-sparse, or thresholds and no k.
    """
    transcode = isinstance(dictionary, Transcoder)
    if type(dictionary) not in (Dictionary, Transcoder):
        raise DictionaryError(
            f"a {type(dictionary).__name__} has no place in sparsify's files. Next: keep Fairlead's layout (`save`)."
        )
    k = k if k is not None else dictionary.topk
    if k is None:
        raise DictionaryError(
            "sparsify's files hold no thresholds, and this dictionary decides by them. Next: pass k, the active latents of every "
            "token (its outputs change), or keep Fairlead's layout, which SAELens reads (`save`)."
        )
    if transcode and dictionary.d_out != dictionary.d_model:
        raise DictionaryError("sparsify's transcoders have one width for input and output. Next: use `save`.")
    target = Path(folder) / (hookpoint or hookpoint_of(dictionary.to_site if transcode else dictionary.site))
    w = {name: value.float().cpu() for name, value in dictionary.weights.items()}
    tensors = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"].contiguous(),
        "W_dec": w["W_dec"].contiguous(),
        "b_dec": w["b_dec"].contiguous(),
    }
    if "W_skip" in w:
        tensors["W_skip"] = w["W_skip"].contiguous()
    config = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.d_dict // dictionary.d_model),
        "normalize_decoder": True,
        "num_latents": dictionary.d_dict,
        "k": int(k),
        "multi_topk": False,
        "skip_connection": "W_skip" in w,
        "transcode": transcode,
        "d_in": dictionary.d_model,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / WEIGHTS_FILE)
        (temporary / "cfg.json").write_text(json.dumps(config) + "\n", "utf-8")
    return target
