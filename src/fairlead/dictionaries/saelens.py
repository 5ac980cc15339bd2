"""SAELens' files (6.x and older) as Fairlead reads them: every architecture turned into thresholds on plain pre-activations.

| SAELens | becomes |
|---|---|
| standard, jumprelu (BatchTopK and Matryoshka are saved as this) | the same; standard has thresholds of zero |
| topk | at most k a token; `rescale_acts_by_decoder_norm`: the decoder's norms go into the encoder (SAELens' `fold_W_dec_norm`) |
| gated | exact: `H(x W + b_gate) relu(e^r x W + b_mag)` is JumpReLU on `e^r x W + b_mag` with threshold `b_mag - e^r b_gate` |
| transcoder, skip_transcoder, jumprelu_transcoder, jumprelu_skip_transcoder | a transcoder |

Folded in: `apply_b_dec_to_input = false` (into the encoder's bias), a constant scale of the activations where the file holds it
(`norm_scaling_factor`), `finetuning_scaling_factor`. Refused, with the step to take: scales that depend on the token, whitening, a scale
that the file does not hold, and architectures that have no such form (abstopk, matching_pursuit, temporal).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairlead.core.errors import DictionaryError

AUTOENCODERS = ("standard", "jumprelu", "topk", "gated")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


class Layout(NamedTuple):
    """A dictionary's files in Fairlead's terms.

    Attributes:
        weights: Tensors of `Dictionary`.
        config: Keys of `cfg.json`, architecture one that Fairlead registers.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]


def from_saelens(weights: dict[str, Tensor], config: dict[str, Any], where: str) -> Layout:
    """Turn SAELens' tensors and settings into Fairlead's.

    Args:
        where: Name of the folder for messages.

    Raises:
        DictionaryError: A variant that cannot be expressed; says what to do.
    """
    config = _modern(config)
    architecture = config["architecture"]
    if architecture not in (*AUTOENCODERS, *TRANSCODERS):
        raise DictionaryError(
            f"{where}: architecture '{architecture}' cannot be read. Next: choose one of {', '.join((*AUTOENCODERS, *TRANSCODERS))}."
        )
    if config.get("activation_fn", "relu") not in ("relu", "topk"):
        raise DictionaryError(
            f"{where}: activation function '{config['activation_fn']}' cannot be read. Next: choose a dictionary with relu or topk."
        )
    w = {name: value.float() for name, value in weights.items()}
    if architecture == "gated":
        w = _ungate(w, where)
    if "threshold" not in w and "b_enc" in w:
        w["threshold"] = torch.zeros_like(w["b_enc"])
    missing = [n for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold") if n not in w]
    if missing:
        raise DictionaryError(
            f"{where}: lacks {', '.join(missing)}. Next: only dictionaries with an encoder and a decoder can be read."
        )
    _finetuned(w, config)
    if config.get("rescale_acts_by_decoder_norm"):
        norm = w["W_dec"].norm(dim=-1)
        w["W_enc"], w["b_enc"] = w["W_enc"] * norm, w["b_enc"] * norm
        w["W_dec"] = w["W_dec"] / norm[:, None].clamp_min(1e-12)
    _scaled(w, config, where)
    if architecture in TRANSCODERS:
        if config.get("apply_b_dec_to_input"):
            raise DictionaryError(
                f"{where}: a transcoder with apply_b_dec_to_input. Next: SAELens has no such thing; check cfg.json."
            )
    elif not config.get("apply_b_dec_to_input", True):
        w["b_enc"] = w["b_enc"] + w["b_dec"] @ w["W_enc"]
    config["architecture"] = "jumprelu" if architecture in ("standard", "gated") else architecture
    kept = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")
    return Layout({name: w[name] for name in kept if name in w}, config)


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of older versions under their present names, defaults filled in."""
    names = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    found = {names.get(key, key): value for key, value in config.items()}
    found["architecture"] = found.get("architecture") or "standard"
    k = (found.get("activation_fn_kwargs") or {}).get("k")
    if found.get("activation_fn") == "topk" and k is not None:
        found |= {"architecture": "topk", "k": k}
    normal = found.get("normalize_activations")
    if isinstance(normal, bool) or normal is None:
        found["normalize_activations"] = "expected_average_only_in" if normal else "none"
    return found


def _ungate(w: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    if not {"W_enc", "b_gate", "b_mag", "r_mag"} <= set(w):
        raise DictionaryError(f"{where}: a gated dictionary without b_gate, b_mag and r_mag.")
    gain = w["r_mag"].exp()
    found = {name: w[name] for name in ("W_dec", "b_dec")}
    threshold = (w["b_mag"] - gain * w["b_gate"]).clamp_min(0.0)
    return found | {"W_enc": w["W_enc"] * gain, "b_enc": w["b_mag"], "threshold": threshold}


def _finetuned(w: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Activations are multiplied by this before the decoder: it goes into the decoder's rows."""
    factor = w.get("finetuning_scaling_factor", w.get("scaling_factor"))
    if config.get("finetuning_scaling_factor") and factor is not None:
        w["W_dec"] = w["W_dec"] * factor[:, None]


def _scaled(w: dict[str, Tensor], config: dict[str, Any], where: str) -> None:
    how, factor = config["normalize_activations"], config.get("norm_scaling_factor")
    if how == "none":
        return
    if how == "expected_average_only_in" and isinstance(factor, int | float):
        w["W_enc"] = w["W_enc"] * factor
        w["W_dec"], w["b_dec"] = w["W_dec"] / factor, w["b_dec"] / factor
        return
    if how == "expected_average_only_in":
        raise DictionaryError(
            f"{where}: its activations were scaled by a constant that {where}/cfg.json does not hold. Next: in SAELens, call "
            "sae.fold_activation_norm_scaling_factor(FACTOR) and save it again, or add norm_scaling_factor to cfg.json."
        )
    raise DictionaryError(
        f"{where}: normalize_activations is '{how}', which depends on the token or needs statistics that are not in the file. "
        "Next: choose a dictionary with 'none' (SAELens folds whitening in when it saves)."
    )
