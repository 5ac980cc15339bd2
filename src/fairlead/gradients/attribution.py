"""The gradient of the loss at a site, written in the latents of a dictionary.

Shape suffixes: N tokens, D d_model, F latents, P active (token, latent) pairs.

`-<dL/dh, d_f> a_f(h)` is the first-order fall of the loss when latent f's contribution `a_f d_f` at that token grows by the factor
`1 + alpha`, per unit of alpha (DESIGN 5.1; the test compares it with a finite difference). Positive: the data pushes it up.
The backward pass ends at the site and computes no weight gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fairlead.data import Batch
from fairlead.dictionaries import Dictionary, outside_span
from fairlead.dictionaries.sparse import Pairs, dense_to_pairs, gather_dot
from fairlead.models.hooks import read_gradient

if TYPE_CHECKING:
    from fairlead.models import Model

MAX_ACTIVE = 64  # decoder rows per token in the remainder: the strongest ones


class SiteGradient(NamedTuple):
    """One batch at a site.

    Attributes:
        hidden: `[batch, seq, d_model]`.
        grad: dL/dh `[batch, seq, d_model]`, L the SUM of the batch's token losses.
        losses: `[batch]` each example's summed loss, in nats; L is their sum.
        num_tokens: Loss tokens.
    """

    hidden: Tensor
    grad: Tensor
    losses: Tensor
    num_tokens: int


class TokenUptake(NamedTuple):
    """Uptake of the active pairs of a batch, not yet divided by the number of loss tokens.

    Attributes:
        row: `[P]` row in the batch.
        position: `[P]` position in the row.
        latent: `[P]`.
        value: `[P]` `-<dL/dh, d_f> a_f`.
        act: `[P]` activation `a_f`.
    """

    row: Tensor
    position: Tensor
    latent: Tensor
    value: Tensor
    act: Tensor


def site_gradient(model: Model, batch: Batch, site: object) -> SiteGradient:
    """Forward and backward above the site; the sum of losses, so that no example's gradient depends on its batch."""
    wanted = batch.loss_mask[:, 1:]
    losses = torch.zeros(len(batch.index), device=batch.input_ids.device)

    def loss() -> Tensor:
        kept = model.forward(batch)[:, :-1][wanted].float()
        each = functional.cross_entropy(kept, batch.input_ids[:, 1:][wanted], reduction="none")
        losses.index_add_(0, wanted.nonzero()[:, 0], each.detach())
        return each.sum()

    hidden, grad, _ = read_gradient(model, str(site), loss)
    return SiteGradient(hidden, grad, losses, int(wanted.sum()))


def token_uptake(
    dictionary: Dictionary, batch: Batch, found: SiteGradient
) -> tuple[TokenUptake, Pairs, Tensor]:
    """Uptake of every active latent at every position that some loss depends on.

    Returns:
        The pairs with their values, the same pairs by token, and the gradients `[N, D]` of those tokens.
    """
    used = batch.attention_mask.bool() & (found.grad.abs().amax(-1) > 0)
    row, position = used.nonzero(as_tuple=True)
    grad_ND = found.grad[used].to(dictionary.decoder)
    pairs = dense_to_pairs(dictionary.encode(found.hidden[used]))
    value = -gather_dot(pairs, grad_ND, dictionary.decoder) * pairs.value
    return (
        TokenUptake(row[pairs.token], position[pairs.token], pairs.latent, value, pairs.value),
        pairs,
        grad_ND,
    )


def remainder_parts(
    dictionary: Dictionary, pairs: Pairs, grad_ND: Tensor, *, max_tokens: int
) -> tuple[float, float, float]:
    """Squared gradient outside the dictionary, in all, and outside by chance, over evenly spaced tokens.

    The span of ALL rows of an overcomplete dictionary is the whole space, so "inside" means what the dictionary says about this
    token: the span of the decoder rows ACTIVE at it (at most the `MAX_ACTIVE` strongest), by least squares. A random subspace of the
    same dimension r leaves `1 - r / d_model` outside on average: the chance level beside which the remainder must be read.

    Args:
        max_tokens: Tokens used; the sample is even over the batch.
    """
    num = grad_ND.shape[0]
    step = max(1, -(-num // max_tokens))
    order = torch.arange(pairs.token.numel(), device=pairs.token.device)
    counts = torch.bincount(pairs.token, minlength=num)
    starts = counts.cumsum(0) - counts
    width = max(1, min(MAX_ACTIVE, int(counts.max()) if num else 1))
    slot = order - starts[pairs.token]
    if int(counts.max() if num else 0) > width:  # keep the strongest: rank pairs within their token
        ranked = torch.argsort(pairs.value, descending=True)
        ranked = ranked[torch.argsort(pairs.token[ranked], stable=True)]
        slot = torch.empty_like(order)
        slot[ranked] = order - starts[pairs.token[ranked]]
    keep = (slot < width) & (pairs.token % step == 0)
    tokens = torch.arange(0, num, step, device=grad_ND.device)
    index = torch.zeros(tokens.numel(), width, dtype=torch.long, device=grad_ND.device)
    used = torch.zeros(tokens.numel(), width, dtype=torch.bool, device=grad_ND.device)
    place = torch.div(pairs.token[keep], step, rounding_mode="floor")
    index[place, slot[keep]] = pairs.latent[keep]
    used[place, slot[keep]] = True
    grad = grad_ND[tokens]
    outside = outside_span(grad, dictionary.decoder, index, used)
    total = grad.square().sum(-1)
    chance = total * (1 - used.sum(-1) / grad_ND.shape[1]).clamp_min(0)
    return float(outside.sum()), float(total.sum()), float(chance.sum())
