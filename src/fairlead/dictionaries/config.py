"""Settings of a dictionary and of its training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from fairlead.core.config import Config

HarvestType = Literal["model", "bfloat16"]
_OF_KIND = {
    "matryoshka": ("prefixes",),
    "jumprelu": ("bandwidth", "sparsity_weight"),
    "block_sparse": ("block",),
    "transcoder": ("skip", "widths"),
    "crosscoder": ("widths",),
}
_BEFORE = {"fit_start": False, "harvest_dtype": "model"}  # as before there was a choice
_NO_MATTER = {"checkpoint_every", "precision", "prefetch", "spike"}


class DictionaryConfig(Config):
    """How a dictionary is made.

    The defaults suit a small model and a short run (a few hundred thousand tokens); sizes left at None follow the model.

    Attributes:
        kind: Name in the registry of kinds.
        d_dict: Number of latents; None: 8 times `d_model`.
        k: Active latents a token, on average over a batch.
        num_tokens: Tokens trained on, repetitions included.
        batch_tokens: Tokens of one step.
        buffer_tokens: Tokens held in memory and shuffled at once.
        passes: Times each harvested token is trained on before the buffer is refilled.
        lr: Adam's step size; None: 2e-4 / sqrt(d_dict / 2^14), four times that in runs below ten million tokens.
        warmup: Share of the steps with rising step size.
        decay: Share of the steps, at the end, with falling step size.
        aux_weight: Weight of the loss that revives dead latents (AuxK).
        k_aux: Dead latents used a token in AuxK; None: `d_model / 2`.
        dead_window: Share of the run's tokens after which a latent that never fired counts as dead.
        threshold_start: Share of the steps after which the inference threshold starts to follow the batch minimum.
        threshold_rate: Weight of the newest batch minimum in the moving average.
        prefixes: Shares of d_dict that have to reconstruct by themselves (kind "matryoshka" only).
        fit_start: Scale the encoder at the start by the one number with which the first batch is reconstructed best (batch_topk, topk,
            matryoshka). Unscaled, many overlapping latents overshoot, which a short run spends a good part of its steps on.
        precision: Type in which active latents are looked for: "float32", "bfloat16" (those found are computed again in float32, and
            the search is repeated in float32 where rounding could have hidden one), or "auto": bfloat16 where it is much faster here.
        harvest_dtype: Type of the model while activations are harvested: "model" (as it was loaded), or "bfloat16" (a copy of it).
            Faster with AMX or tensor cores; activations about a hundredth of their norm off.
        prefetch: Whether a thread harvests the next chunk while the dictionary trains; None: where there is a GPU.
        spike: A batch whose loss is this many times the usual one, or not finite, is passed over.
        bandwidth: Width of the kernel of JumpReLU's straight-through estimators, where an activation's entries are about 1.
        sparsity_weight: Weight of JumpReLU's penalty on `(L0 / k - 1)^2`.
        block: Latents selected together (kind "block_sparse" only).
        skip: A transcoder's linear path from input to output beside the latents.
        widths: Widths of the sites that lie side by side in a batch (transcoder: input, output; crosscoder: all); () is one site.
        checkpoint_every: Steps between saved states.
        seed: Order of the tokens and the initial decoder.
    """

    kind: str = "batch_topk"
    d_dict: int | None = Field(default=None, ge=2)
    k: int = Field(default=24, ge=1)
    num_tokens: int = Field(default=300_000, ge=1)
    batch_tokens: int = Field(default=512, ge=2)
    buffer_tokens: int = Field(default=150_000, ge=2)
    passes: int = Field(default=3, ge=1)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.3, ge=0, le=1)
    aux_weight: float = Field(default=1 / 32, ge=0)
    k_aux: int | None = Field(default=None, ge=1)
    dead_window: float = Field(default=0.02, gt=0, le=1)
    threshold_start: float = Field(default=0.05, ge=0, le=1)
    threshold_rate: float = Field(default=0.01, gt=0, le=1)
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    fit_start: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    harvest_dtype: HarvestType = "model"
    prefetch: bool | None = None
    spike: float = Field(default=20.0, gt=1)
    bandwidth: float = Field(default=0.1, gt=0)
    sparsity_weight: float = Field(default=1.0, ge=0)
    block: int = Field(default=2, ge=2, le=4)
    skip: bool = False
    widths: tuple[Annotated[int, Field(ge=1)], ...] = ()
    checkpoint_every: int = Field(default=200, ge=1)
    seed: int = 0

    def sized(self, d_model: int) -> DictionaryConfig:
        """The same settings with every size and rate filled in for a model of width `d_model`."""
        d_dict = self.d_dict or 8 * d_model
        if self.kind == "block_sparse":
            d_dict = max(1, d_dict // self.block) * self.block
        boost = 4.0 if self.num_tokens < 10_000_000 else 1.0
        return self.model_copy(
            update={
                "d_dict": d_dict,
                "k": min(self.k, d_dict),
                "k_aux": min(self.k_aux or max(1, d_model // 2), d_dict),
                "lr": self.lr or boost * 2e-4 / math.sqrt(d_dict / 2**14),
            }
        )

    def identity(self) -> dict[str, Any]:
        """The settings that decide on the result: those of other kinds, of safety and of speed are left out."""
        foreign = {name for kind, names in _OF_KIND.items() if kind != self.kind for name in names}
        own = set(_OF_KIND.get(self.kind, ()))
        unused = {name for name in ("fit_start", "harvest_dtype") if getattr(self, name) == _BEFORE[name]}
        return self.model_dump(mode="json", exclude=_NO_MATTER | (foreign - own) | unused)

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return max(1, math.ceil(self.num_tokens / self.batch_tokens))
