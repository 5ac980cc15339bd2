"""Activations of a data set at one site, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from fairlead.core.errors import ConfigError
from fairlead.core.site import Site
from fairlead.data import Encoded, collate, iter_batches

if TYPE_CHECKING:
    from fairlead.models import Model

Tokens = Literal["response", "all"]


class Activations(NamedTuple):
    """Activations of some tokens.

    Attributes:
        acts: `[n, d]` in the model's dtype, on its device.
        index: `[n]` long, index of each token's row in the data.
        position: `[n]` long, position of the token in its row, padding not counted.
    """

    acts: Tensor
    index: Tensor
    position: Tensor


def iter_activations(
    model: Model,
    encoded: Sequence[Encoded],
    site: str | Site,
    *,
    tokens: Tokens = "response",
    batch_size: int = 32,
    sort: bool = True,
    seed: int | None = None,
) -> Iterator[Activations]:
    """Activations at a site of every wanted token of the data, once each.

    Args:
        model: The model.
        encoded: Encoded rows.
        site: Where.
        tokens: "response" for the tokens in the loss (the activation *at* such a token; the one that predicts
            it is a position earlier), "all" for every token that is not padding.
        batch_size: Rows per forward pass.
        sort: Put rows of like length together (less padding); order of rows is then by length.
        seed: Shuffle batches (`fairlead.data.iter_batches`).

    Raises:
        SiteError: No such site.
        ConfigError: Unknown choice of tokens.
    """
    check_tokens(tokens)
    name = str(Site.parse(site))
    for batch in iter_batches(encoded, batch_size=batch_size, pad_id=model.pad_id, sort=sort, seed=seed):
        acts = model.capture(batch, [name])[name]
        mask = batch.loss_mask if tokens == "response" else batch.attention_mask.bool()
        row, position = mask.nonzero(as_tuple=True)
        yield Activations(acts[row.to(acts.device), position.to(acts.device)], batch.index[row], position)


class SiteActivations(NamedTuple):
    """Activations of a batch of texts at several sites.

    Attributes:
        acts: Site as asked for to `[batch, seq, d]`, padded on the right; tensors of the forward pass, not copies.
        index: `[batch]` long, index of each row in the data.
        lengths: Tokens of each row.
    """

    acts: dict[str, Tensor]
    index: Tensor
    lengths: tuple[int, ...]


def iter_site_activations(
    model: Model, encoded: Sequence[Encoded], sites: Sequence[str | Site], *, batch_size: int = 32
) -> Iterator[SiteActivations]:
    """Activations of texts at several sites, in the order of the texts, one forward pass a batch that ends at the deepest site.

    Raises:
        SiteError: No such site.
    """
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        batch = collate(rows, pad_id=model.pad_id)
        found = model.capture(batch, sites)
        yield SiteActivations(found, batch.index, tuple(len(row) for row in rows))


def check_tokens(tokens: str) -> None:
    """Raise `ConfigError` on an unknown choice of tokens."""
    if tokens not in ("response", "all"):
        raise ConfigError(f"tokens is {tokens!r}; use 'response' or 'all'.")
