"""Changes of activations while a block of code runs.

| name | value h at the site becomes |
|---|---|
| `add` | h + scale * v |
| `ablate` | h - (<h, u> - m) u, u = v / abs(v), m = 0 or the mean (zero is not a neutral origin) |
| `project` | h - Q Q^T h, the columns of Q an orthonormal basis of the directions |
| `patch` | other values |
| `steer_all_layers` | h_l + scale * (v_l - v_(l-1)): increments, whose sum is v_l (DESIGN 5.2) |

All are context managers around `models.hooks.site_hook`: they act on every forward pass inside (also in
generation), take a `Model` or a bare, PEFT-wrapped or DDP-wrapped transformers module, keep gradients
flowing, and leave nothing behind, also after an exception. `when` limits them to passes with ("grad") or
without ("no_grad") gradients. `tokens` limits them to some tokens: a bool mask `[batch, seq]` of the batch
that is run, or a function from the value `[batch, seq, d]` to such a mask (for generation, where shapes
change from call to call).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fairlead.core.errors import ConfigError, SiteError
from fairlead.core.nouns import Direction
from fairlead.core.site import Site
from fairlead.models.hooks import When, site_hook, sites_of

if TYPE_CHECKING:
    from fairlead.models import Model, Sites

TokenMask = Tensor | Callable[[Tensor], Tensor] | None


@contextmanager
def add(
    model: Model | nn.Module | Sites,
    direction: Direction,
    *,
    scale: float = 1.0,
    tokens: TokenMask = None,
    when: When = "always",
) -> Iterator[None]:
    """Add `scale` times a direction's vector (its own length, not the unit vector) at its site.

    Raises:
        SiteError: No such site, or the vector has another width than the site (when a pass reaches it).
        ConfigError: A token mask of another shape than the batch.
    """
    vector = _Constant(direction.vector * scale, direction.site)
    with site_hook(
        model, direction.site, lambda h: _where(tokens, h + vector.like(h), h, direction.site), when=when
    ):
        yield


@contextmanager
def ablate(
    model: Model | nn.Module | Sites,
    direction: Direction,
    *,
    mean: float | Tensor | None = None,
    tokens: TokenMask = None,
    when: When = "always",
) -> Iterator[None]:
    """Set the coefficient along a direction to zero, or to its mean.

    Args:
        model: What is run.
        direction: What is removed.
        mean: None for zero ablation; a number for the coefficient along the unit vector; or a mean activation
            `[d]`, whose coefficient is taken.
        tokens: Where (all tokens by default).
        when: On which passes.

    Raises:
        SiteError: As `add`.
    """
    site = direction.site
    unit = _Constant(direction.unit(), site)
    if isinstance(mean, Tensor) and mean.numel() > 1:
        if mean.shape != direction.vector.shape:
            raise ConfigError(
                f"mean has shape {list(mean.shape)}, the direction {list(direction.vector.shape)}. Next: "
                f"pass one "
                "number, or the mean activation at the direction's site."
            )
        target = float(mean.double().cpu() @ direction.unit().double().cpu())
    else:
        target = 0.0 if mean is None else float(mean)

    def edit(h: Tensor) -> Tensor:
        u = unit.like(h)
        return _where(tokens, h - ((h @ u) - target)[..., None] * u, h, site)

    with site_hook(model, site, edit, when=when):
        yield


@contextmanager
def project(
    model: Model | nn.Module | Sites,
    directions: Direction | Sequence[Direction],
    *,
    tokens: TokenMask = None,
    when: When = "always",
) -> Iterator[None]:
    """Remove the subspace that directions span; those of different sites form one subspace each.

    Raises:
        SiteError: As `add`.
        ConfigError: No direction.
    """
    given = [directions] if isinstance(directions, Direction) else list(directions)
    if not given:
        raise ConfigError("directions is empty. Next: pass at least one.")
    resolved = sites_of(model)
    groups: dict[Site, list[Tensor]] = {}
    for direction in given:
        groups.setdefault(resolved.normal(direction.site), []).append(direction.vector)
    with ExitStack() as stack:
        for site, vectors in groups.items():
            basis = _Constant(orthonormal(torch.stack([v.float().cpu() for v in vectors])), site)

            def edit(h: Tensor, basis: _Constant = basis, site: Site = site) -> Tensor:
                rows = basis.like(h)  # [rank, d]
                return _where(tokens, h - (h @ rows.T) @ rows, h, site)

            stack.enter_context(site_hook(resolved, site, edit, when=when))
        yield


@contextmanager
def patch(
    model: Model | nn.Module | Sites,
    site: str | Site,
    values: Tensor,
    *,
    tokens: TokenMask = None,
    when: When = "always",
) -> Iterator[None]:
    """Put other values in place of a site's.

    Args:
        model: What is run.
        site: Where.
        values: `[batch, seq, d]` of the batch that is run, or anything that broadcasts to it, such as `[d]`.
        tokens: Which tokens (all by default).
        when: On which passes.

    Raises:
        SiteError: As `add`.
    """
    site = Site.parse(site)

    def edit(h: Tensor) -> Tensor:
        try:
            new = values.to(h).expand_as(h)
        except RuntimeError:
            raise SiteError(
                f"{site}: values of shape {list(values.shape)} do not fit {list(h.shape)}. Next: capture "
                f"them from a batch of "
                "the same shape."
            ) from None
        return _where(tokens, new, h, site)

    with site_hook(model, site, edit, when=when):
        yield


@contextmanager
def steer_all_layers(
    model: Model | nn.Module | Sites,
    vectors: Mapping[str | Site, Tensor],
    scale: float = 1.0,
    *,
    increments: bool = True,
    tokens: TokenMask = None,
    when: When = "always",
) -> Iterator[None]:
    """Steer at many layers at once.

    Args:
        model: What is run.
        vectors: Site to vector `[d]`, the wanted shift of the residual stream there (a trait's mean
            difference).
        scale: Factor on all.
        increments: Add at each layer only what the layers before it (of the same kind of site) have not added
            yet, v_l - v_(l-1); with False, each vector as it is.
        tokens: Which tokens (all by default).
        when: On which passes.

    Raises:
        SiteError: As `add`.
        ConfigError: No vector.
    """
    if not vectors:
        raise ConfigError("vectors is empty. Next: pass at least one site with its vector.")
    resolved = sites_of(model)
    ordered = sorted(
        ((resolved.normal(site), vector) for site, vector in vectors.items()),
        key=lambda pair: (pair[0].kind, -1 if pair[0].layer is None else pair[0].layer),
    )
    with ExitStack() as stack:
        before: dict[str, Tensor] = {}
        for site, vector in ordered:
            step = vector - before[site.kind] if increments and site.kind in before else vector
            before[site.kind] = vector
            direction = Direction(site, step, name="steer_all_layers")
            stack.enter_context(add(resolved, direction, scale=scale, tokens=tokens, when=when))
        yield


def orthonormal(vectors: Tensor, *, tolerance: float = 1e-5) -> Tensor:
    """Orthonormal basis `[rank, d]` of the span of `vectors` `[n, d]` (right singular vectors)."""
    _, values, basis = torch.linalg.svd(vectors.float(), full_matrices=False)
    return basis[values > tolerance * values.max().clamp_min(1e-30)]


class _Constant:
    """A tensor that follows the device and dtype of what it is applied to, converted once."""

    def __init__(self, value: Tensor, site: Site) -> None:
        self.value, self.site = value.detach(), site

    def like(self, hidden: Tensor) -> Tensor:
        if self.value.shape[-1] != hidden.shape[-1]:
            raise SiteError(
                f"{self.site}: a direction of width {self.value.shape[-1]} at a site of width "
                f"{hidden.shape[-1]}. Next: "
                "use a direction that was made at this site of this model."
            )
        if self.value.dtype != hidden.dtype or self.value.device != hidden.device:
            self.value = self.value.to(hidden)
        return self.value


def _where(tokens: TokenMask, new: Tensor, old: Tensor, site: Site) -> Tensor:
    if tokens is None:
        return new
    mask = tokens(old) if callable(tokens) else tokens
    if mask.shape != old.shape[:2]:
        raise ConfigError(
            f"tokens: a mask of shape {list(mask.shape)} at {site} for a batch of shape "
            f"{list(old.shape[:2])}. Next: pass "
            "the mask of the batch that is run, or a function of the value (in generation shapes change)."
        )
    return torch.where(mask.to(old.device, torch.bool)[..., None], new, old)
