"""Transcoder (Dunefsky et al., arXiv 2406.11944; skip: Paulo et al., arXiv 2501.18823): sparse latents from one site to another.

Reads the input site, reconstructs the output site (an MLP's input and output, say), BatchTopK over the batch. With `skip` a linear map
of the input is added, so that latents need only explain what is not linear. A batch holds input and output side by side
(`DictionaryConfig.widths`), each scaled to mean norm `sqrt(width)`.

    a = BatchTopK(x W_enc + b_enc),  y ~ a W_dec + b_dec [+ x W_skip^T]

Start: random unit encoder columns; decoder rows are what a ridge regression of the output on the input says that they do; `b_dec` is
the output's geometric median, `W_skip` zero. (Both papers start the decoder at zero; rows of unit norm, as in the other kinds,
need a direction from the start.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fairlead.core.nouns import Direction
from fairlead.core.site import Site
from fairlead.dictionaries.autograd_kind import AutogradKind, Forward, batch_topk_pairs, fired_latents
from fairlead.dictionaries.batch_topk import geometric_median
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.dictionary import Dictionary, flat, hook_name, register_architecture
from fairlead.dictionaries.kinds import Params, StepState, fold_scale, register_kind
from fairlead.dictionaries.sparse import decode, smallest


class TranscoderKind(AutogradKind):
    """The `transcoder` kind."""

    def start(self, x_ND: Tensor, config: DictionaryConfig, generator: torch.Generator) -> Params:
        """See the head of the file."""
        assert config.d_dict is not None
        read, want = (part.float().cpu() for part in x_ND.split(config.widths, dim=1))
        encoder = torch.randn(config.d_dict, read.shape[1], generator=generator)
        encoder = encoder / encoder.norm(dim=-1, keepdim=True)
        centred, middle = read - read.mean(0), want - want.mean(0)
        gram = centred.T @ centred
        ridge = 0.1 * gram.diagonal().mean().clamp_min(1e-6) * torch.eye(len(gram))
        linear = torch.linalg.solve(gram + ridge, centred.T @ middle)
        decoder = encoder @ linear
        decoder = decoder + 1e-3 * torch.randn(decoder.shape, generator=generator)
        params = {
            "W_enc": encoder.T.contiguous().clone(),
            "W_dec": decoder / decoder.norm(dim=-1, keepdim=True).clamp_min(1e-8),
            "b_enc": -(geometric_median(read) @ encoder.T),
            "b_dec": geometric_median(want),
        }
        return params | ({"W_skip": torch.zeros(want.shape[1], read.shape[1])} if config.skip else {})

    @override
    def forward(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> Forward:
        assert config.d_dict is not None
        read, want = x_ND.split(config.widths, dim=1)
        pre = torch.addmm(params["b_enc"], read, params["W_enc"])
        pairs = batch_topk_pairs(pre, None, read.shape[0] * config.k, floor=0.5 * state.threshold)
        error = decode(pairs, params["W_dec"]) + params["b_dec"] - want
        if "W_skip" in params:
            error = error + read @ params["W_skip"].T
        return Forward(
            loss=error.square().mean(),
            error_ND=error,
            target_ND=want,
            pre_NF=pre,
            fired=fired_latents(pairs, config.d_dict),
            num_active=pairs.value.numel(),
            least=smallest(pairs.value),
        )

    def export(self, params: Params, threshold: float, scale: float) -> Params:
        """One scale of input and output."""
        return fold_scale(params, threshold, scale)


class Transcoder(Dictionary):
    """A dictionary that reads one site and reconstructs another.

    Args:
        weights: As for `Dictionary`, with `W_dec [d_dict, d_out]`, `b_dec [d_out]` and, optionally, `W_skip [d_out, d_model]`.
        site: Where the encoder reads.
        to_site: Where the decoder writes.
    """

    reconstructs_itself = False

    def __init__(self, weights: dict[str, Tensor], *, to_site: Site | str, **options: Any) -> None:
        self.to_site = Site.parse(to_site)
        super().__init__(weights, **options)

    @property
    @override
    def architecture(self) -> str:
        """SAELens' name (it has none for an exact top k)."""
        skip = "skip_" if "W_skip" in self.weights else ""
        if self.topk is not None:
            return f"topk_{skip}transcoder"
        return f"{skip}transcoder" if self.has_no_threshold else f"jumprelu_{skip}transcoder"

    @property
    @override
    def d_out(self) -> int:
        return self.weights["W_dec"].shape[1]

    @override
    def _shapes(self, weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        (d_in, d_dict), d_out = weights["W_enc"].shape, weights["W_dec"].shape[1]
        found: dict[str, tuple[int, ...]] = {
            "W_enc": (d_in, d_dict),
            "W_dec": (d_dict, d_out),
            "b_enc": (d_dict,),
            "b_dec": (d_out,),
            "threshold": (d_dict,),
        }
        return found | ({"W_skip": (d_out, d_in)} if "W_skip" in weights else {})

    @override
    def _encoder_bias(self, pick: Tensor | None) -> Tensor:
        return self.weights["b_enc"] if pick is None else self.weights["b_enc"][pick]

    @override
    def reconstruct(self, hidden: Tensor) -> Tensor:
        """Reconstruction `[..., d_out]` of the output site from the input site's `[..., d_model]`, the skip path included."""
        found = self.decode(self.encode(hidden))
        if "W_skip" in self.weights:
            skip = flat(hidden, self.weights) @ self.weights["W_skip"].T
            found = found + skip.view(found.shape)
        return found

    @override
    def direction(self, latent: int) -> Direction:
        found = super().direction(latent)
        return Direction(self.to_site, found.vector, found.name, found.provenance)

    @override
    def _layout(self) -> dict[str, Any]:
        out = {"hook_name_out": hook_name(self.to_site)}
        own = {"d_out": self.d_out, "to_site": str(self.to_site), "apply_b_dec_to_input": False}
        return {**super()._layout(), **own, **out}

    @override
    def _digest_text(self) -> str:
        return f"{super()._digest_text()} > {self.to_site}"


register_kind("transcoder", TranscoderKind())
for _name in ("", "jumprelu_", "topk_"):
    register_architecture(f"{_name}transcoder", Transcoder)
    register_architecture(f"{_name}skip_transcoder", Transcoder)
