"""Block-sparse dictionary: groups of 2 to 4 latents are on or off together (arXiv 2606.25234), for concepts of several dimensions.

A concept that lives on a circle or a plane (weekdays, hues) costs an ordinary dictionary many latents, one for each stretch of the
circle. Here a block's codes are a vector without sign (no rectification), and BatchTopK keeps the `N k / block` blocks of largest norm
over the batch, so that k counts latents as in the other kinds. Rows within a block are kept orthonormal: two Newton-Schulz steps towards
the nearest orthonormal rows after every update, so that a block's norm is the length of what it contributes.

    z = (x - b_dec) W_enc + b_enc, block g on where |z_g| is among the largest, x ~ z W_dec + b_dec
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fairlead.dictionaries.autograd_kind import AutogradKind, Forward
from fairlead.dictionaries.batch_topk import geometric_median
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.dictionary import Dictionary, register_architecture
from fairlead.dictionaries.kinds import Params, StepState, fold_scale, register_kind
from fairlead.dictionaries.sparse import Pairs, batch_topk, decode, smallest


def block_norms(codes: Tensor, block: int) -> Tensor:
    """Norm `[..., num_blocks]` of each block of codes `[..., num_blocks * block]`."""
    return codes.unflatten(-1, (-1, block)).norm(dim=-1)


class BlockSparseKind(AutogradKind):
    """The `block_sparse` kind."""

    def start(self, x_ND: Tensor, config: DictionaryConfig, generator: torch.Generator) -> Params:
        """Random orthonormal rows within each block, encoder = decoder transposed, `b_dec` = geometric median."""
        assert config.d_dict is not None
        draws = torch.randn(config.d_dict // config.block, x_ND.shape[1], config.block, generator=generator)
        decoder = torch.linalg.qr(draws).Q.transpose(1, 2)
        return {
            "W_enc": decoder.flatten(0, 1).T.contiguous(),
            "W_dec": decoder.contiguous(),  # [num_blocks, block, D]: the shape tells `constrain` the blocks
            "b_enc": torch.zeros(config.d_dict),
            "b_dec": geometric_median(x_ND.float().cpu()),
        }

    @override
    def forward(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> Forward:
        assert config.d_dict is not None
        bias = params["b_enc"] - params["b_dec"] @ params["W_enc"]
        pre = torch.addmm(bias, x_ND, params["W_enc"])
        wanted = max(1, x_ND.shape[0] * config.k // config.block)
        kept = batch_topk(block_norms(pre.detach(), config.block), wanted, floor=0.5 * state.threshold)
        within = torch.arange(config.block, device=pre.device)
        latent = (kept.latent[:, None] * config.block + within).flatten()
        token = kept.token.repeat_interleave(config.block)
        pairs = Pairs(token, latent, pre[token, latent], x_ND.shape[0])
        error = decode(pairs, params["W_dec"].flatten(0, 1)) + params["b_dec"] - x_ND
        fired = torch.zeros(config.d_dict, dtype=torch.bool, device=pre.device)
        fired[latent] = True
        return Forward(error.square().mean(), error, x_ND, pre, fired, token.numel(), smallest(kept.value))

    @override
    def dead_acts(self, pre_NF: Tensor, dead: Tensor, config: DictionaryConfig) -> tuple[Tensor, Tensor]:
        """The dead blocks of largest norm, all their codes."""
        assert config.k_aux is not None
        index = dead.nonzero().squeeze(-1)  # whole blocks: a block's latents fire together
        codes = pre_NF[:, index].unflatten(-1, (-1, config.block))
        num = min(max(1, config.k_aux // config.block), codes.shape[1])
        best = codes.detach().norm(dim=-1).topk(num, dim=-1).indices
        keep = torch.zeros(codes.shape[:2], device=codes.device).scatter(1, best, 1.0)
        return (codes * keep[..., None]).flatten(1), index

    @override
    def constrain(self, params: Params) -> None:
        """Orthonormal rows within each block (two Newton-Schulz steps from nearly orthonormal ones)."""
        rows = params["W_dec"]
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-8)
        for _ in range(2):
            rows = 1.5 * rows - 0.5 * (rows @ rows.transpose(1, 2)) @ rows
        params["W_dec"].copy_(rows)

    def export(self, params: Params, threshold: float, scale: float) -> Params:
        """The threshold is on a block's norm."""
        return fold_scale({**params, "W_dec": params["W_dec"].flatten(0, 1)}, threshold, scale)


class BlockSparse(Dictionary):
    """A dictionary whose latents are on in blocks; activations may be negative.

    Args:
        weights: As for `Dictionary`; the threshold is on a block's norm.
        block: Latents of a block: latents `block * g` to `block * g + block - 1` form block g.
    """

    def __init__(self, weights: dict[str, Tensor], *, block: int, **options: Any) -> None:
        self.block = int(block)
        super().__init__(weights, **options)

    @classmethod
    @override
    def settings(cls, config: DictionaryConfig) -> dict[str, Any]:
        return {"block": config.block}

    @property
    @override
    def architecture(self) -> str:
        return "block_sparse"

    def block_acts(self, hidden: Tensor) -> Tensor:
        """Norms `[..., num_blocks]` of the active blocks, 0 elsewhere."""
        return block_norms(self.encode(hidden), self.block)

    @override
    def strengths(self, acts: Tensor, latents: Sequence[int] | None = None) -> Tensor:
        """A block's norm in the column of its first latent, 0 in its others: codes have a sign, a block's strength has none."""
        columns = torch.arange(self.d_dict) if latents is None else torch.as_tensor(latents)
        blocks, place = torch.unique(columns // self.block, return_inverse=True)
        first = torch.full((len(blocks),), len(columns)).scatter_reduce(
            0, place, torch.arange(len(columns)), "amin"
        )
        squares = acts.new_zeros(*acts.shape[:-1], len(blocks)).index_add(
            -1, place.to(acts.device), acts.square()
        )
        on = squares > 0
        norms = torch.where(on, squares, 1.0).sqrt() * on  # no infinite slope at zero
        return torch.zeros_like(acts).index_copy(-1, first.to(acts.device), norms)

    @override
    def unit_of(self, latents: Sequence[int]) -> list[int]:
        blocks = sorted({latent // self.block for latent in latents})
        return [block * self.block + place for block in blocks for place in range(self.block)]

    @override
    def encode_latents(self, hidden: Tensor, latents: Tensor | list[int] | tuple[int, ...]) -> Tensor:
        pick = torch.as_tensor(latents, dtype=torch.long, device=self.weights["W_enc"].device)
        blocks, place = torch.unique(pick // self.block, return_inverse=True)
        whole = (blocks[:, None] * self.block + torch.arange(self.block, device=pick.device)).flatten()
        return super().encode_latents(hidden, whole)[..., place * self.block + pick % self.block]

    @override
    def _activate(self, pre: Tensor, threshold: Tensor, pick: Tensor | None) -> Tensor:
        grouped = pre.unflatten(-1, (-1, self.block))
        on = grouped.norm(dim=-1) > threshold[:: self.block]
        return (grouped * on[..., None]).flatten(-2)

    @override
    def _digest_text(self) -> str:
        return f"{self.site} block {self.block}"

    @override
    def _layout(self) -> dict[str, Any]:
        return {**super()._layout(), "block": self.block}


register_kind("block_sparse", BlockSparseKind())
register_architecture("block_sparse", BlockSparse)
