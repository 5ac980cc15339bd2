"""A trained dictionary: encode, decode, identity, and its place on disk.

The file layout is SAELens' (`cfg.json` + `sae_weights.safetensors`, architecture `jumprelu`, arXiv 2407.14435 for the
activation), so that other tools can read it: `W_enc [d_in, d_sae]`, `W_dec [d_sae, d_in]`, `b_enc`, `b_dec`,
`threshold [d_sae]`. Everything is in the units of the model's activations; the scaling used in training is folded in.
Fairlead's own keys (format, version, site, model fingerprint, metrics) stand in `cfg.json` beside SAELens' and in `metadata`.
Kinds that reconstruct something else than their own site (transcoder, crosscoder) or select otherwise (block-sparse) are subclasses
in the kind's file: they add tensors and keys and register the architecture that their `cfg.json` names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.nouns import Direction
from fairlead.core.run import atomic_path
from fairlead.core.site import Site

if TYPE_CHECKING:
    from fairlead.dictionaries.config import DictionaryConfig
    from fairlead.models import Model

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
FORMAT = "fairlead.dictionary"
VERSION = 2  # 1: jumprelu autoencoders only; those are still written as version 1
_HOOK_NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_act": "blocks.{}.mlp.hook_post",
}
_ARCHITECTURES: dict[str, type[Dictionary]] = {}


def register_architecture(name: str, kind: type[Dictionary]) -> None:
    """Say which class reads files whose `cfg.json` names this architecture."""
    _ARCHITECTURES[name] = kind


def find_architecture(name: str) -> type[Dictionary] | None:
    """The class that reads this architecture; None where there is none."""
    return _ARCHITECTURES.get(name)


class Dictionary:
    """A sparse autoencoder at one site of one model.

    Activation of latent f at hidden state h: `pre = (h - b_dec) W_enc[:, f] + b_enc[f]`, `a = pre where pre > threshold[f]`
    (and positive), else 0; with `topk` only a token's `topk` largest of these.

    Attributes:
        reconstructs_itself: Whether it reconstructs the site it reads (an autoencoder), so that it can stand in its place.

    Args:
        weights: The five tensors of the file layout.
        topk: Most active latents a token (foreign TopK dictionaries); None: the thresholds decide alone.
        site: Where the activations come from.
        model_fingerprint: `Model.fingerprint` of the model it was made for; "" where unknown (foreign dictionaries).
        config: Settings it was trained with (JSON values).
        metrics: `fvu`, `l0`, `dead`, ... as measured at the end of training or by `evaluate_dictionary`.
        source: Folder it was loaded from.
    """

    reconstructs_itself = True

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
        topk: int | None = None,
    ) -> None:
        self._check_weights(weights, source or "dictionary")
        self.weights = {name: weights[name].detach().contiguous() for name in self._shapes(weights)}
        self.topk = topk
        self.site = Site.parse(site)
        self.model_fingerprint, self.model_name = model_fingerprint, model_name
        self.config, self.metrics = dict(config or {}), dict(metrics or {})
        self.source = source
        self._sha256: str | None = None

    @classmethod
    def settings(cls, config: DictionaryConfig) -> dict[str, Any]:
        """What the class needs to know of the settings it was trained with, beside the weights."""
        return {}

    @property
    def architecture(self) -> str:
        """Name in `cfg.json`, SAELens' where it has one."""
        return "topk" if self.topk is not None and self.has_no_threshold else "jumprelu"

    @property
    def has_no_threshold(self) -> bool:
        """Whether every positive pre-activation counts."""
        return not bool(self.threshold.any())

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.weights["W_enc"].shape[0]

    @property
    def d_out(self) -> int:
        """Width of what it reconstructs."""
        return self.d_model

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
        """Hash of the weights, the site and what else decides on the activations."""
        if self._sha256 is None:
            digest = hashlib.sha256(self._digest_text().encode())
            for name in self.weights:
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
        pre = torch.addmm(self._encoder_bias(None), flat(hidden, w), w["W_enc"])
        return self._activate(pre, w["threshold"], None).view(*hidden.shape[:-1], -1)

    def encode_latents(self, hidden: Tensor, latents: Tensor | list[int] | tuple[int, ...]) -> Tensor:
        """Activations `[..., len(latents)]` of some latents only.

        The cost is in proportion to their number where a latent's activation depends on itself alone (not with `topk`).
        """
        w = self.weights
        pick = torch.as_tensor(latents, dtype=torch.long, device=w["W_enc"].device)
        if self.topk is not None:
            return self.encode(hidden)[..., pick]
        pre = torch.addmm(self._encoder_bias(pick), flat(hidden, w), w["W_enc"][:, pick])
        return self._activate(pre, w["threshold"][pick], pick).view(*hidden.shape[:-1], len(pick))

    def strengths(self, acts: Tensor, latents: Sequence[int] | None = None) -> Tensor:
        """How strongly latents act, never negative, of their activations `[..., n]`; what catalogues count and sum.

        Args:
            latents: Which latents the columns are; None: all, in order.
        """
        return acts

    def unit_of(self, latents: Sequence[int]) -> list[int]:
        """These latents with those that are always selected together with them, in order."""
        return sorted(latents)

    def decode(self, acts: Tensor) -> Tensor:
        """Reconstruction `[..., d_out]` of activations `[..., d_dict]`."""
        return acts @ self.weights["W_dec"] + self.weights["b_dec"]

    def reconstruct(self, hidden: Tensor) -> Tensor:
        """`decode(encode(hidden))`, `[..., d_out]`, with whatever else the kind adds."""
        return self.decode(self.encode(hidden))

    def direction(self, latent: int) -> Direction:
        """The decoder row of a latent as a `Direction` with its provenance."""
        provenance = {"dictionary": self.sha256, "latent": int(latent)}
        return Direction(self.site, self.decoder[latent], f"latent {latent}", provenance)

    def check(self, model: Model, site: Site | str | None = None, *, any_kind: bool = False) -> None:
        """Confirm that the dictionary was made for this model and site.

        Args:
            any_kind: Accept those that do not reconstruct the site they read.

        Raises:
            DictionaryError: Other width, other model (fingerprint), other site, or a transcoder or crosscoder where an autoencoder is
                needed; says what to do.
        """
        where = self.source or "dictionary"
        if not (any_kind or self.reconstructs_itself):
            raise DictionaryError(
                f"{where}: a {type(self).__name__.lower()} does not reconstruct the one site it reads. "
                "Next: pass an autoencoder (`fairlead dict train` without --kind)."
            )
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
        config = {**self._layout(), "sha256": self.sha256}
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file(self._stored(), temporary / WEIGHTS_FILE)
            (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        self.source = str(folder)
        return folder

    def _encoder_bias(self, pick: Tensor | None) -> Tensor:
        """What is added to `h W_enc`, for all latents or those in `pick`."""
        w = self.weights
        if pick is None:
            return w["b_enc"] - w["b_dec"] @ w["W_enc"]
        return w["b_enc"][pick] - w["b_dec"] @ w["W_enc"][:, pick]

    def _activate(self, pre: Tensor, threshold: Tensor, pick: Tensor | None) -> Tensor:
        """Activations of pre-activations `[N, n]` of all latents or those in `pick`."""
        acts = _jump(pre, threshold)
        if self.topk is None or self.topk >= acts.shape[-1]:
            return acts
        kept = acts.topk(self.topk, dim=-1)
        return torch.zeros_like(acts).scatter(-1, kept.indices, kept.values)

    def _stored(self) -> dict[str, Tensor]:
        """Tensors of the file."""
        found = {name: value.float().cpu().contiguous() for name, value in self.weights.items()}
        if self.architecture in ("topk", "transcoder", "skip_transcoder"):
            found.pop("threshold")  # all zero, and SAELens has no such tensor there
        return found

    def _digest_text(self) -> str:
        """What the hash covers besides the tensors."""
        return str(self.site) + (f" top {self.topk}" if self.topk is not None else "")

    def _layout(self) -> dict[str, Any]:
        """`cfg.json` without the hash."""
        plain = self.architecture == "jumprelu"
        return {
            "architecture": self.architecture,
            "d_in": self.d_model,
            "d_sae": self.d_dict,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "hook_name": hook_name(self.site),
            **({"k": self.topk} if self.topk is not None else {}),
            "metadata": {
                "hook_name": hook_name(self.site),
                "model_name": self.model_name,
                "training": self.config,
            },
            "format": FORMAT,
            "version": 1 if plain else VERSION,
            "site": str(self.site),
            "model_fingerprint": self.model_fingerprint,
            "metrics": self.metrics,
        }

    def _shapes(self, weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors, by the sizes of the decoder."""
        d_dict, d_model = weights["W_dec"].shape
        return {
            "W_enc": (d_model, d_dict),
            "W_dec": (d_dict, d_model),
            "b_enc": (d_dict,),
            "b_dec": (d_model,),
            "threshold": (d_dict,),
        }

    def _check_weights(self, weights: dict[str, Tensor], where: str) -> None:
        missing = [n for n in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold") if n not in weights]
        if missing:
            raise DictionaryError(
                f"{where}: lacks {', '.join(missing)}. Next: only autoencoders with an encoder and a decoder can be read."
            )
        for name, shape in self._shapes(weights).items():
            if name not in weights or tuple(weights[name].shape) != shape:
                found = tuple(weights[name].shape) if name in weights else "none"
                raise DictionaryError(
                    f"{where}: {name} has shape {found}, expected {shape}. Next: train it again."
                )
            if not torch.isfinite(weights[name]).all():
                raise DictionaryError(
                    f"{where}: {name} holds values that are not finite. Next: train it again with a smaller lr."
                )


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


def flat(hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Hidden states as rows `[N, d]`, in the type and on the device of the encoder."""
    return hidden.reshape(-1, hidden.shape[-1]).to(weights["W_enc"])


def _jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(
        pre > threshold.clamp_min(0.0), pre, torch.zeros((), dtype=pre.dtype, device=pre.device)
    )


for _name in ("jumprelu", "topk"):
    register_architecture(_name, Dictionary)
