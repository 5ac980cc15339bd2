"""A trained dictionary: encode, decode, identity, and its place on disk.

The file layout is SAELens' (`cfg.json` + `sae_weights.safetensors`, architecture `jumprelu`, arXiv 2407.14435 for the
activation), so that other tools can read it: `W_enc [d_in, d_sae]`, `W_dec [d_sae, d_in]`, `b_enc`, `b_dec`,
`threshold [d_sae]`. Everything is in the units of the model's activations; the scaling used in training is folded in.
Fairlead's own keys (format, version, site, model fingerprint, metrics) stand in `cfg.json` beside SAELens' and in `metadata`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.nouns import Direction
from fairlead.core.run import atomic_path
from fairlead.core.site import Site

if TYPE_CHECKING:
    from fairlead.models import Model

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
FORMAT = "fairlead.dictionary"
VERSION = 1
_SHAPES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_HOOK_NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_act": "blocks.{}.mlp.hook_post",
}


class Dictionary:
    """A sparse autoencoder at one site of one model.

    Activation of latent f at hidden state h: `pre = (h - b_dec) W_enc[:, f] + b_enc[f]`, `a = pre where pre > threshold[f]`
    (and positive), else 0.

    Args:
        weights: The five tensors of the file layout.
        site: Where the activations come from.
        model_fingerprint: `Model.fingerprint` of the model it was made for; "" where unknown (foreign dictionaries).
        config: Settings it was trained with (JSON values).
        metrics: `fvu`, `l0`, `dead`, ... as measured at the end of training or by `evaluate_dictionary`.
        source: Folder it was loaded from.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        *,
        site: Site | str,
        model_fingerprint: str = "",
        model_name: str = "",
        config: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        source: str = "",
    ) -> None:
        _check_weights(weights, source or "dictionary")
        self.weights = {name: weights[name].detach().contiguous() for name in _SHAPES}
        self.site = Site.parse(site)
        self.model_fingerprint, self.model_name = model_fingerprint, model_name
        self.config, self.metrics = dict(config or {}), dict(metrics or {})
        self.source = source
        self._sha256: str | None = None

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.weights["W_dec"].shape[1]

    @property
    def d_dict(self) -> int:
        """Number of latents."""
        return self.weights["W_dec"].shape[0]

    @property
    def decoder(self) -> Tensor:
        """Decoder rows `[d_dict, d_model]`, unit norm for dictionaries trained here."""
        return self.weights["W_dec"]

    @property
    def threshold(self) -> Tensor:
        """Smallest active pre-activation per latent, `[d_dict]`."""
        return self.weights["threshold"]

    @property
    def sha256(self) -> str:
        """Hash of the weights and the site."""
        if self._sha256 is None:
            digest = hashlib.sha256(str(self.site).encode())
            for name in _SHAPES:
                digest.update(self.weights[name].float().cpu().numpy().tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256

    def to(self, device: torch.device | str) -> Dictionary:
        """The same dictionary with its weights on `device` (in place, returned)."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}
        return self

    def encode(self, hidden: Tensor) -> Tensor:
        """Activations `[..., d_dict]` of hidden states `[..., d_model]`; differentiable in `hidden`."""
        w = self.weights
        return _jump(
            torch.addmm(w["b_enc"] - w["b_dec"] @ w["W_enc"], _flat(hidden, w), w["W_enc"]), w["threshold"]
        ).view(*hidden.shape[:-1], -1)

    def encode_latents(self, hidden: Tensor, latents: Tensor | list[int] | tuple[int, ...]) -> Tensor:
        """Activations `[..., len(latents)]` of some latents only: cost in proportion to their number."""
        w = self.weights
        pick = torch.as_tensor(latents, dtype=torch.long, device=w["W_enc"].device)
        encoder = w["W_enc"][:, pick]
        bias = w["b_enc"][pick] - w["b_dec"] @ encoder
        return _jump(torch.addmm(bias, _flat(hidden, w), encoder), w["threshold"][pick]).view(
            *hidden.shape[:-1], -1
        )

    def decode(self, acts: Tensor) -> Tensor:
        """Reconstruction `[..., d_model]` of activations `[..., d_dict]`."""
        return acts @ self.weights["W_dec"] + self.weights["b_dec"]

    def direction(self, latent: int) -> Direction:
        """The decoder row of a latent as a `Direction` with its provenance."""
        provenance = {"dictionary": self.sha256, "latent": int(latent)}
        return Direction(self.site, self.decoder[latent], f"latent {latent}", provenance)

    def check(self, model: Model, site: Site | str | None = None) -> None:
        """Confirm that the dictionary was made for this model and site.

        Raises:
            DictionaryError: Other width, other model (fingerprint) or other site; says what to do.
        """
        where = self.source or "dictionary"
        if self.d_model != model.d_model:
            raise DictionaryError(
                f"{where}: made for width {self.d_model}, but {model.name} has width {model.d_model}. "
                "Next: train one for this model (`fairlead dict train`) or leave the dictionary out."
            )
        if self.model_fingerprint and self.model_fingerprint != model.fingerprint:
            raise DictionaryError(
                f"{where}: made for model {self.model_name or '?'} (fingerprint {self.model_fingerprint[:12]}), not for "
                f"{model.name} (fingerprint {model.fingerprint[:12]}). Next: pass the model it was made for, or train one "
                "for this model (`fairlead dict train`)."
            )
        if site is not None and Site.parse(site) != self.site:
            raise DictionaryError(
                f"{where}: made for site {self.site}, not {site}. Next: use --site {self.site}, or train one for {site}."
            )

    def save(self, folder: str | Path) -> Path:
        """Write the folder atomically; what stood there before stays until all is written.

        Raises:
            RunError: The disk is full or the place cannot be written.
        """
        folder = Path(folder)
        config = {
            "architecture": "jumprelu",
            "d_in": self.d_model,
            "d_sae": self.d_dict,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "hook_name": hook_name(self.site),
            "metadata": {
                "hook_name": hook_name(self.site),
                "model_name": self.model_name,
                "training": self.config,
            },
            "format": FORMAT,
            "version": VERSION,
            "site": str(self.site),
            "model_fingerprint": self.model_fingerprint,
            "metrics": self.metrics,
            "sha256": self.sha256,
        }
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file(
                {name: value.float().cpu() for name, value in self.weights.items()}, temporary / WEIGHTS_FILE
            )
            (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        self.source = str(folder)
        return folder


def load_dictionary(folder: str | Path, *, site: Site | str | None = None) -> Dictionary:
    """Load a dictionary folder, Fairlead's or SAELens' (jumprelu, batchtopk or standard).

    Args:
        folder: Holds `cfg.json` and `sae_weights.safetensors`.
        site: Needed for foreign dictionaries whose `cfg.json` names no site that is understood.

    Raises:
        DictionaryError: Files missing or broken, sizes that contradict `cfg.json`, or a newer format.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        weights = load_file(folder / WEIGHTS_FILE)
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
    if config.get("format", FORMAT) != FORMAT or config.get("version", VERSION) > VERSION:
        raise DictionaryError(
            f"{folder / CONFIG_FILE}: format {config.get('format')} version {config.get('version')} is not known here. "
            "Next: update fairlead."
        )
    if "threshold" not in weights and "b_enc" in weights:
        weights["threshold"] = torch.zeros_like(weights["b_enc"])
    _check_weights(weights, str(folder))
    for key, size in (("d_in", weights["W_dec"].shape[1]), ("d_sae", weights["W_dec"].shape[0])):
        if config.get(key, size) != size:
            raise DictionaryError(
                f"{folder}: {CONFIG_FILE} says {key} = {config[key]} but the weights have {size}."
            )
    metadata = config.get("metadata") or {}
    place = (
        site or config.get("site") or site_of_hook(config.get("hook_name") or metadata.get("hook_name") or "")
    )
    if place is None:
        raise DictionaryError(
            f"{folder / CONFIG_FILE}: names no site. Next: pass site='layers.N.resid_post'."
        )
    found = Dictionary(
        weights,
        site=place,
        model_fingerprint=config.get("model_fingerprint", ""),
        model_name=metadata.get("model_name", ""),
        config=metadata.get("training", {}),
        metrics=config.get("metrics", {}),
        source=str(folder),
    )
    if config.get("sha256", found.sha256) != found.sha256:
        raise DictionaryError(
            f"{folder}: the weights do not match the hash in {CONFIG_FILE}. Next: train or copy it again."
        )
    return found


def hook_name(site: Site) -> str:
    """SAELens' (TransformerLens') name of a site; the site's own name where it has none."""
    if site.layer is None:
        return "hook_embed"
    return _HOOK_NAMES[site.kind].format(site.layer) if site.kind in _HOOK_NAMES else str(site)


def site_of_hook(name: str) -> str | None:
    """The site of a TransformerLens hook name; None where it is not understood."""
    parts = name.split(".")
    if name == "hook_embed":
        return "embed"
    for kind, pattern in _HOOK_NAMES.items():
        if len(parts) > 2 and parts[1].isdigit() and pattern.format(parts[1]) == name:
            return f"layers.{parts[1]}.{kind}"
    return None


def _flat(hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1]).to(weights["W_enc"])


def _jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(
        pre > threshold.clamp_min(0.0), pre, torch.zeros((), dtype=pre.dtype, device=pre.device)
    )


def _check_weights(weights: dict[str, Tensor], where: str) -> None:
    missing = [name for name in _SHAPES if name not in weights]
    if missing:
        raise DictionaryError(
            f"{where}: lacks {', '.join(missing)}. Next: only autoencoders with an encoder and a decoder can be read."
        )
    d_dict, d_model = weights["W_dec"].shape
    expected = {"W_enc": (d_model, d_dict), "b_enc": (d_dict,), "b_dec": (d_model,), "threshold": (d_dict,)}
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise DictionaryError(
                f"{where}: {name} has shape {tuple(weights[name].shape)}, expected {shape}. Next: train it again."
            )
    for name in _SHAPES:
        if not torch.isfinite(weights[name]).all():
            raise DictionaryError(
                f"{where}: {name} holds values that are not finite. Next: train it again with a smaller lr."
            )
