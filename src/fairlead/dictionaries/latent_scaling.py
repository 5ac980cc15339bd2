"""Latent scaling (Minder et al., arXiv 2504.02922, section 2.2): is a latent of a crosscoder really exclusive to one site or model?

A decoder row of norm zero at a site does not prove that the concept is absent there: sparsity may have shrunk it away although the
concept is present (the site's *error* then holds it), or other latents may carry it there (its *reconstruction* holds it). For a latent
with activations f_i and unit decoder row d at the site where it is strong, the least-squares factor on a target y_i is

    beta(y) = sum_i f_i <d, y_i> / sum_i f_i^2

Steps: for both sites, beta on the reconstruction (without bias) and on the error with the latent's own contribution put back;
`nu = beta at the weak site / beta at the strong site`, near 0 for a latent that is exclusive, near 1 for one that is shared. Departure:
sites are compared in units in which their mean norms are equal (the paper's models have them nearly equal as they are).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.dictionaries.crosscoder import Crosscoder

_ROWS_AT_ONCE = 4096


class LatentScaling(NamedTuple):
    """Per latent asked for.

    Attributes:
        latents: `[n]` long.
        share: Share of the strong site in the decoder's norm; .5 is shared evenly, 1 looks exclusive.
        nu_error: Ratio of betas on the error: high where the weak site's error holds the concept (shrinkage).
        nu_reconstruction: Ratio of betas on the reconstruction: high where other latents carry it there (decoupling).
        num_active: Tokens on which the latent was active.
    """

    latents: Tensor
    share: Tensor
    nu_error: Tensor
    nu_reconstruction: Tensor
    num_active: Tensor

    def exclusive(self, *, at_most: float = 0.3) -> Tensor:
        """`[n]` bool: both ratios at most this, so that the latent is exclusive by the data and not only by its decoder."""
        return (self.nu_error.abs() <= at_most) & (self.nu_reconstruction.abs() <= at_most)


@torch.no_grad()
def latent_scaling(
    crosscoder: Crosscoder, acts: tuple[Tensor, Tensor] | list[Tensor], *, strong: int, latents: Tensor
) -> LatentScaling:
    """Test whether latents that look exclusive to one of two sites are so.

    Args:
        crosscoder: Over two sites.
        acts: Activations `[N, width]` of both sites at the same tokens (`joint.harvest_joint`).
        strong: 0 or 1: the site to which the latents seem to belong.
        latents: `[n]` long.

    Raises:
        DictionaryError: Not two sites, or the two have other widths (then a row of one has no meaning at the other).
    """
    if len(crosscoder.sites) != 2 or crosscoder.widths[0] != crosscoder.widths[1]:
        raise DictionaryError(
            f"latent scaling compares two sites of one width, not widths {crosscoder.widths}. Next: train a crosscoder over two."
        )
    scale = crosscoder.weights["site_scale"]
    rows = [part[latents] * s for part, s in zip(crosscoder.split(crosscoder.decoder), scale, strict=True)]
    direction = rows[strong] / rows[strong].norm(dim=-1, keepdim=True).clamp_min(1e-12)
    zeros = torch.zeros(2, len(latents))
    on_error, on_recon = zeros.clone(), zeros.clone()
    squares, active = torch.zeros(len(latents)), torch.zeros(len(latents))
    for parts in zip(*(part.split(_ROWS_AT_ONCE) for part in acts), strict=True):
        codes = crosscoder.encode(crosscoder.join(parts))
        recon = crosscoder.split(codes @ crosscoder.decoder)
        bias = crosscoder.split(crosscoder.weights["b_dec"])
        chosen = codes[:, latents]
        squares += chosen.square().sum(0)
        active += (chosen > 0).sum(0)
        for site in range(2):
            error = (parts[site] - recon[site] - bias[site]) * scale[site]
            on_error[site] += (chosen * (error @ direction.T)).sum(0)
            on_recon[site] += (chosen * (recon[site] * scale[site] @ direction.T)).sum(0)
    squares = squares.clamp_min(1e-12)
    for site in range(2):
        own = (rows[site] * direction).sum(-1)  # the latent's own contribution, put back into the error
        on_error[site] = on_error[site] / squares + own
        on_recon[site] = on_recon[site] / squares
    weak = 1 - strong
    norms = torch.stack([row.norm(dim=-1) for row in rows])
    return LatentScaling(
        latents=latents,
        share=norms[strong] / norms.sum(0).clamp_min(1e-12),
        nu_error=on_error[weak] / _away_from_zero(on_error[strong]),
        nu_reconstruction=on_recon[weak] / _away_from_zero(on_recon[strong]),
        num_active=active.long(),
    )


def _away_from_zero(value: Tensor) -> Tensor:
    return torch.where(value.abs() < 1e-9, torch.full_like(value, 1e-9), value)
