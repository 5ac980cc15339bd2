"""JumpReLU sparse autoencoder (Rajamanoharan et al., arXiv 2407.14435): a learned threshold for each latent.

`a = pre where pre > theta, else 0`; the loss is the squared error per entry plus `sparsity_weight * (L0 / k - 1)^2`, L0 the mean number of
active latents a token. Jumps have no gradient, so that theta gets the paper's straight-through estimators (its equations 11 and 12): the
derivative of the *expected* loss, estimated with a rectangle kernel of width `bandwidth` from the pre-activations near theta.

Of the published penalties this takes the paper's target on L0 rather than the plain L0 penalty or Anthropic's tanh penalty (Circuits
Updates, January 2025): both of these need a sweep over their weight to reach a wanted L0, which a short run cannot afford, and
dictionaries can only be compared at equal L0. Departures, for short runs: thresholds start where the first batch has L0 = k
(the paper: .001), the kernel is wider (.1 where entries are about 1), and AuxK revives dead latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fairlead.dictionaries.autograd_kind import AutogradKind, Forward
from fairlead.dictionaries.batch_topk import geometric_median
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import Params, StepState, fold_scale, register_kind


class _Jump(torch.autograd.Function):
    """`pre * H(pre - theta)`; theta's gradient is `-(theta / width) K((pre - theta) / width)`."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.width / 2
        return grad * (pre > theta), -(theta / ctx.width) * (grad * near).sum(0), None


class _Step(torch.autograd.Function):
    """`H(pre - theta)`; theta's gradient is `-(1 / width) K((pre - theta) / width)`, that of pre is zero."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, width: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, theta = ctx.saved_tensors
        near = (pre - theta).abs() < ctx.width / 2
        return None, -(grad * near).sum(0) / ctx.width, None


def jump(pre: Tensor, theta: Tensor, width: float) -> Tensor:
    """JumpReLU with its straight-through estimator (arXiv 2407.14435, equation 11); pre `[N, F]`, theta `[F]`."""
    return _Jump.apply(pre, theta, width)  # type: ignore[return-value]


def step_above(pre: Tensor, theta: Tensor, width: float) -> Tensor:
    """1 where `pre > theta`, with its straight-through estimator (equation 12): its mean over tokens, summed, is L0."""
    return _Step.apply(pre, theta, width)  # type: ignore[return-value]


class JumpReLU(AutogradKind):
    """The `jumprelu` kind."""

    def start(self, x_ND: Tensor, config: DictionaryConfig, generator: torch.Generator) -> Params:
        """As BatchTopK, with the thresholds at the first batch's `N k`-th largest pre-activation."""
        assert config.d_dict is not None
        decoder = torch.randn(config.d_dict, x_ND.shape[1], generator=generator)
        decoder = decoder / decoder.norm(dim=-1, keepdim=True)
        b_dec = geometric_median(x_ND.float().cpu())
        pre = (x_ND.float().cpu() - b_dec) @ decoder.T
        rank = min(x_ND.shape[0] * config.k, pre.numel())
        least = pre.flatten().topk(rank).values[-1].clamp_min(1e-3)
        return {
            "W_enc": decoder.T.contiguous().clone(),
            "W_dec": decoder,
            "b_enc": torch.zeros(config.d_dict),
            "b_dec": b_dec,
            "log_threshold": least.log().expand(config.d_dict).clone(),
        }

    @override
    def forward(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> Forward:
        bias = params["b_enc"] - params["b_dec"] @ params["W_enc"]
        pre = torch.addmm(bias, x_ND, params["W_enc"])
        theta = params["log_threshold"].exp()
        acts = jump(pre, theta, config.bandwidth)
        error = acts @ params["W_dec"] + params["b_dec"] - x_ND
        l0 = step_above(pre, theta, config.bandwidth).sum(-1).mean()
        loss = error.square().mean() + config.sparsity_weight * (l0 / config.k - 1).square()
        active = acts.detach() > 0
        return Forward(loss, error, x_ND, pre, active.any(0), active.sum(), 0.0)

    def export(self, params: Params, threshold: float, scale: float) -> Params:
        """Every latent keeps its own threshold."""
        return fold_scale(params, params["log_threshold"].exp(), scale)


register_kind("jumprelu", JumpReLU())
