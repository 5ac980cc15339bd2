"""Crosscoder (Lindsey et al., Circuits Updates, October 2024) with BatchTopK (Minder et al., arXiv 2504.02922).

One code for several sites: layers of one model, or one layer of two models (model diffing). The sites' activations lie side by side
(`DictionaryConfig.widths`), each scaled to mean norm `sqrt(width)`; every latent has an encoder column and a decoder row per site.

    a = BatchTopK over the batch of (x W_enc + b_enc), ranked by a_f * sum over sites of |decoder row of f at the site|
    loss = mean over all entries of (a W_dec + b_dec - x)^2

Departure: a latent's row over all sites together has unit norm, so that the ranking cannot be gamed by trading activation for
decoder norm; the shares of the sites stay free. Relative norms say where a latent lives, and may mislead: check with
`latent_scaling` before calling one exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from fairlead.core.errors import DictionaryError
from fairlead.core.nouns import Direction
from fairlead.core.site import Site
from fairlead.dictionaries.autograd_kind import AutogradKind, Forward, batch_topk_pairs, fired_latents
from fairlead.dictionaries.batch_topk import geometric_median
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.dictionary import Dictionary, register_architecture
from fairlead.dictionaries.kinds import Params, StepState, fold_scale, register_kind
from fairlead.dictionaries.sparse import decode, smallest

if TYPE_CHECKING:
    from fairlead.models import Model


def site_norms(w_dec: Tensor, widths: Sequence[int]) -> Tensor:
    """Norm of every decoder row at every site, `[d_dict, num_sites]`."""
    return torch.stack([part.norm(dim=-1) for part in w_dec.split(list(widths), dim=1)], dim=1)


class CrosscoderKind(AutogradKind):
    """The `crosscoder` kind."""

    def start(self, x_ND: Tensor, config: DictionaryConfig, generator: torch.Generator) -> Params:
        """Random rows, the same at sites of equal width; encoder = decoder transposed; `b_dec` = geometric median."""
        assert config.d_dict is not None
        by_width = {
            width: torch.randn(config.d_dict, width, generator=generator)
            for width in sorted(set(config.widths))
        }
        rows = [by_width[width] / by_width[width].norm(dim=-1, keepdim=True) for width in config.widths]
        decoder = torch.cat(rows, dim=1) / len(rows) ** 0.5
        return {
            "W_enc": decoder.T.contiguous().clone(),
            "W_dec": decoder,
            "b_enc": torch.zeros(config.d_dict),
            "b_dec": geometric_median(x_ND.float().cpu()),
        }

    @override
    def forward(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> Forward:
        assert config.d_dict is not None
        bias = params["b_enc"] - params["b_dec"] @ params["W_enc"]
        pre = torch.addmm(bias, x_ND, params["W_enc"])
        weight = site_norms(params["W_dec"].detach(), config.widths).sum(1)
        pairs = batch_topk_pairs(pre, weight, x_ND.shape[0] * config.k, floor=0.5 * state.threshold)
        error = decode(pairs, params["W_dec"]) + params["b_dec"] - x_ND
        ranked = pairs.value.detach() * weight[pairs.latent]
        return Forward(
            loss=error.square().mean(),
            error_ND=error,
            target_ND=x_ND,
            pre_NF=pre,
            fired=fired_latents(pairs, config.d_dict),
            num_active=pairs.value.numel(),
            least=smallest(ranked),
        )

    def export(self, params: Params, threshold: float, scale: float) -> Params:
        """One scale for all sites; the threshold is still one on the ranking.

        `joint.train_crosscoder` makes it one on each latent's activation, and folds the sites' own scales in.
        """
        return fold_scale(params, threshold, scale)


class Crosscoder(Dictionary):
    """A dictionary over several sites: reads and reconstructs them side by side, `[..., sum of widths]`.

    Args:
        weights: As for `Dictionary`, over the joint width, with `site_scale [num_sites]`: what each site was multiplied by in training.
        sites: In the order in which they lie side by side.
        widths: Of each site.
        models: Name of the model of each site.
        fingerprints: `Model.fingerprint` of the model of each site.
    """

    reconstructs_itself = False

    def __init__(
        self,
        weights: dict[str, Tensor],
        *,
        sites: Sequence[Site | str],
        widths: Sequence[int],
        models: Sequence[str] = (),
        fingerprints: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.sites = tuple(Site.parse(site) for site in sites)
        self.widths = tuple(int(width) for width in widths)
        self.models = tuple(models) or ("",) * len(self.sites)
        self.fingerprints = tuple(fingerprints) or ("",) * len(self.sites)
        options["site"] = self.sites[0]
        super().__init__(weights, **options)

    @property
    @override
    def architecture(self) -> str:
        return "crosscoder"

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The sites' hidden states side by side."""
        return torch.cat([part.to(self.weights["W_enc"]) for part in parts], dim=-1)

    def split(self, joint: Tensor) -> tuple[Tensor, ...]:
        """The sites' parts of a joint tensor `[..., sum of widths]`."""
        return joint.split(list(self.widths), dim=-1)

    def norms(self) -> Tensor:
        """Decoder norms `[d_dict, num_sites]` in units in which every site's activations have norm `sqrt(width)`."""
        return site_norms(self.decoder, self.widths) * self.weights["site_scale"]

    def relative_norms(self) -> Tensor:
        """Share of each latent's decoder norm at each site, `[d_dict, num_sites]`: 1/num_sites where it is shared evenly."""
        norms = self.norms()
        return norms / norms.sum(1, keepdim=True).clamp_min(1e-12)

    def direction_at(self, latent: int, index: int) -> Direction:
        """The decoder row of a latent at one of the sites."""
        provenance = {"dictionary": self.sha256, "latent": int(latent), "place": index}
        row = self.split(self.decoder)[index][latent]
        return Direction(self.sites[index], row, f"latent {latent}", provenance)

    @override
    def direction(self, latent: int) -> Direction:
        return self.direction_at(latent, 0)

    @override
    def check(self, model: Model, site: Site | str | None = None, *, any_kind: bool = False) -> None:
        if any_kind and self.fingerprints[0] in ("", model.fingerprint):
            return
        super().check(model, site, any_kind=any_kind)

    def check_models(self, models: Sequence[Model]) -> None:
        """Confirm that these are the models of the sites, in order.

        Raises:
            DictionaryError: Another number, or another model.
        """
        if len(models) != len(self.sites):
            raise DictionaryError(
                f"{self.source or 'crosscoder'}: has {len(self.sites)} sites, but {len(models)} models were given. "
                "Next: give the model of each site, in order."
            )
        for model, wanted, name in zip(models, self.fingerprints, self.models, strict=True):
            if wanted and wanted != model.fingerprint:
                raise DictionaryError(
                    f"{self.source or 'crosscoder'}: made for model {name} (fingerprint {wanted[:12]}), not for {model.name} "
                    f"(fingerprint {model.fingerprint[:12]}). Next: pass the models it was made for, in order."
                )

    @override
    def _shapes(self, weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        joint = weights["W_dec"].shape[1]
        if joint != sum(self.widths) or len(self.widths) != len(self.sites):
            raise DictionaryError(
                f"crosscoder: {len(self.sites)} sites of widths {self.widths}, but rows of {joint}. Next: train it again."
            )
        return {**super()._shapes(weights), "site_scale": (len(self.sites),)}

    @override
    def _digest_text(self) -> str:
        return " ".join(map(str, self.sites))

    @override
    def _layout(self) -> dict[str, Any]:
        return {
            **super()._layout(),
            "sites": [str(site) for site in self.sites],
            "widths": list(self.widths),
            "models": list(self.models),
            "fingerprints": list(self.fingerprints),
        }


register_kind("crosscoder", CrosscoderKind())
register_architecture("crosscoder", Crosscoder)
