"""The step of the kinds whose gradients autograd writes: JumpReLU, transcoder, crosscoder, block-sparse.

Shape suffixes: N tokens, F latents, D width of a batch (several sites may lie side by side).

Such a kind gives its loss as a tensor over the parameters; the base class adds AuxK (Gao et al., arXiv 2406.04093: dead latents predict
the residual, which itself gets no gradient), differentiates, and removes the gradient along unit decoder rows. Decoding is sparse
(`embedding_bag` has its own sparse backward), but the pre-activations and their gradient are dense matrices, and JumpReLU decodes densely:
such a step costs three matmuls of the encoder's size and more. The common kinds (BatchTopK and its relatives) write their gradients by
hand and never hold those matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import Params, StepResult, StepState
from fairlead.dictionaries.sparse import Pairs, batch_topk


class Forward(NamedTuple):
    """What a kind computes on a batch.

    Attributes:
        loss: Scalar with its graph, AuxK not included.
        error_ND: Reconstruction minus target.
        target_ND: What was to be reconstructed.
        pre_NF: Pre-activations with their graph, for AuxK.
        fired: `[F]` bool.
        num_active: Active (token, latent) pairs.
        least: What the inference threshold follows.
    """

    loss: Tensor
    error_ND: Tensor
    target_ND: Tensor
    pre_NF: Tensor
    fired: Tensor
    num_active: int | Tensor
    least: float | Tensor


class AutogradKind(ABC):
    """Base of a kind that gives its loss and leaves the gradients to autograd."""

    @abstractmethod
    def forward(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> Forward:
        """The loss on a batch, with its graph over `params`."""

    def dead_acts(self, pre_NF: Tensor, dead: Tensor, config: DictionaryConfig) -> tuple[Tensor, Tensor]:
        """Activations `[N, n]` of dead latents for AuxK, and the latents' indices `[n]`."""
        assert config.k_aux is not None
        index = dead.nonzero().squeeze(-1)
        acts = pre_NF[:, index].relu()
        if index.numel() > config.k_aux:
            kept = acts.topk(config.k_aux, dim=-1)
            acts = torch.zeros_like(acts).scatter(1, kept.indices, kept.values)
        return acts, index

    def step(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> StepResult:
        """Loss and gradients on a batch."""
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            found = self.forward(leaves, x_ND, config, state)
            loss = found.loss
            if config.aux_weight > 0 and bool(state.dead.any()):
                acts, index = self.dead_acts(found.pre_NF, state.dead, config)
                miss = acts @ leaves["W_dec"].flatten(0, -2)[index] + found.error_ND.detach()
                loss = loss + config.aux_weight * miss.square().mean()
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        named = {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
        }
        rows = params["W_dec"]
        named["W_dec"] = named["W_dec"] - (named["W_dec"] * rows).sum(-1, keepdim=True) * rows
        target = found.target_ND
        return StepResult(
            loss=loss.detach(),
            grads=named,
            fired=found.fired,
            least=found.least,
            squared_error=found.error_ND.detach().square().sum(),
            variance=(target - target.mean(0)).square().sum(),
            num_active=found.num_active,
        )

    def constrain(self, params: Params) -> None:
        """Unit-norm decoder rows."""
        params["W_dec"] /= params["W_dec"].norm(dim=-1, keepdim=True).clamp_min(1e-8)


def batch_topk_pairs(pre_NF: Tensor, weight_F: Tensor | None, num_pairs: int, *, floor: float = 0.0) -> Pairs:
    """The batch's `num_pairs` largest positive pre-activations (times a weight a latent), with the graph of `pre_NF` in `value`."""
    ranked = pre_NF.detach() if weight_F is None else pre_NF.detach() * weight_F
    pairs = batch_topk(ranked, num_pairs, floor=floor)
    return Pairs(pairs.token, pairs.latent, pre_NF[pairs.token, pairs.latent], pairs.num_tokens)


def fired_latents(pairs: Pairs, d_dict: int) -> Tensor:
    """`[d_dict]` bool: latents with a pair."""
    fired = torch.zeros(d_dict, dtype=torch.bool, device=pairs.latent.device)
    fired[pairs.latent] = True
    return fired
