"""How good a dictionary is, beside a random decoder and principal components at equal L0.

FVU is the squared reconstruction error over the variance around the mean. Cross-entropy recovered is `(CE_mean - CE_dict) / (CE_mean -
CE_model)` with the reconstruction, or the mean activation, in the place of the site's value (mean ablation instead of the usual
zero: zero is not a neutral origin). Position 0 keeps its own value in both, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fairlead.core.errors import DictionaryError
from fairlead.core.site import Site
from fairlead.data import Batch, Encoded, iter_batches
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.transcoder import Transcoder
from fairlead.models.hooks import site_hook

if TYPE_CHECKING:
    from fairlead.models import Model

_ROWS_AT_ONCE = 2048


def token_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """Sum of the losses over the batch's loss tokens, in nats, and their number; the token at t is predicted from t - 1."""
    wanted = batch.loss_mask[:, 1:]
    kept = logits[:, :-1][wanted].float()
    return functional.cross_entropy(kept, batch.input_ids[:, 1:][wanted], reduction="sum"), int(wanted.sum())


class Measured(NamedTuple):
    """What a dictionary does with some activations.

    Attributes:
        fvu: Squared error over the variance of the target.
        l0: Active latents a token.
        density: `[d_dict]`: share of the tokens on which each latent is active.
    """

    fvu: float
    l0: float
    density: Tensor


def measure(dictionary: Dictionary, acts_ND: Tensor, target_ND: Tensor | None = None) -> Measured:
    """Reconstruct activations `[N, d_model]` some rows at a time; a transcoder's `target_ND` is what its output site holds."""
    target = acts_ND if target_ND is None else target_ND
    error, on = 0.0, torch.zeros(dictionary.d_dict, device=acts_ND.device)
    for read, want in zip(acts_ND.split(_ROWS_AT_ONCE), target.split(_ROWS_AT_ONCE), strict=True):
        on += (dictionary.encode(read) != 0).sum(0)
        error += float((dictionary.reconstruct(read) - want).square().sum())
    variance = float((target - target.mean(0)).square().sum())
    num = max(len(acts_ND), 1)
    return Measured(error / max(variance, 1e-12), float(on.sum()) / num, on / num)


def reconstruction_metrics(
    dictionary: Dictionary, acts_ND: Tensor, target_ND: Tensor | None = None
) -> dict[str, float]:
    """`fvu`, `l0` and the share of `dead` latents on activations `[N, d_model]`."""
    found = measure(dictionary, acts_ND, target_ND)
    return {"fvu": found.fvu, "l0": found.l0, "dead": float((found.density == 0).float().mean())}


class Held(NamedTuple):
    """Texts made ready for measuring a dictionary.

    Attributes:
        batches: On the model's device.
        read: `[N, d_model]` float32: what the dictionary reads, position 0 of every text left out.
        target: `[N, d_out]` float32: what it reconstructs; the same tensor for an autoencoder.
    """

    batches: list[Batch]
    read: Tensor
    target: Tensor


def take_texts(encoded: Sequence[Encoded], max_tokens: int) -> list[Encoded]:
    """The first texts that hold so many tokens.

    Raises:
        DictionaryError: There is none.
    """
    chosen, held = [], 0
    for row in encoded:
        if held >= max_tokens:
            break
        chosen.append(row)
        held += len(row.input_ids)
    if not chosen:
        raise DictionaryError("no text to evaluate the dictionary on. Next: pass at least one row.")
    return chosen


@torch.no_grad()
def hold_texts(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    max_tokens: int = 20_000,
) -> Held:
    """Batches and activations of the first texts that hold `max_tokens` tokens.

    Raises:
        DictionaryError: Made for another model, a crosscoder, or no text.
    """
    dictionary.check(model, any_kind=isinstance(dictionary, Transcoder))
    chosen = take_texts(encoded, max_tokens)
    batches = [
        batch.to(model.device) for batch in iter_batches(chosen, batch_size=batch_size, pad_id=model.pad_id)
    ]
    read, target = [], []
    for batch in batches:
        found, inner = (
            model.capture(batch, sites=[dictionary.site, target_site(dictionary)]),
            inner_tokens(batch),
        )
        read.append(found[str(dictionary.site)][inner])
        target.append(found[str(target_site(dictionary))][inner])
    if target_site(dictionary) == dictionary.site:
        target = read
    return Held(batches, torch.cat(read).float(), torch.cat(target).float())


def target_site(dictionary: Dictionary) -> Site:
    """Where the reconstruction belongs."""
    return dictionary.to_site if isinstance(dictionary, Transcoder) else dictionary.site


@torch.no_grad()
def evaluate_dictionary(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    max_tokens: int = 20_000,
    held: Held | None = None,
) -> dict[str, float]:
    """Measure a dictionary on texts (best: held out from its training).

    Args:
        encoded: Texts; the first that hold `max_tokens` tokens are used.
        held: What `hold_texts` made of them, where that is there already.

    Returns:
        `fvu`, `l0`, `dead`, `ce_model`, `ce_dictionary`, `ce_mean` (nats a token), `ce_recovered` (1: as good as the model) and two
        baselines at equal L0: `fvu_random` of a random decoder and `fvu_pca` of as many principal components. A transcoder is measured on
        its output site.

    Raises:
        DictionaryError: Made for another model, a crosscoder, or no text.
    """
    held = held or hold_texts(model, dictionary, encoded, batch_size=batch_size, max_tokens=max_tokens)
    mean = held.target.mean(0)
    found = reconstruction_metrics(dictionary, held.read, held.target)
    losses = {
        "ce_model": _spliced_loss(model, dictionary, held.batches, None),
        "ce_dictionary": _spliced_loss(model, dictionary, held.batches, dictionary.reconstruct),
        "ce_mean": _spliced_loss(
            model, dictionary, held.batches, lambda hidden: mean.expand(*hidden.shape[:-1], -1)
        ),
    }
    span = losses["ce_mean"] - losses["ce_model"]
    recovered = (losses["ce_mean"] - losses["ce_dictionary"]) / span if abs(span) > 1e-9 else math.nan
    k = max(1, round(found["l0"]))
    random = random_reconstruction_fvu(held.target, d_dict=dictionary.d_dict, k=k)
    pca = pca_fvu(held.target, k=k)
    return {**found, **losses, "ce_recovered": recovered, "fvu_random": random, "fvu_pca": pca}


def pca_fvu(acts_ND: Tensor, *, k: int) -> float:
    """FVU of the projection on the `k` leading principal components, fitted on these very activations.

    Every token uses the same k directions, where a dictionary chooses k of many.
    """
    centred = acts_ND - acts_ND.mean(0)
    values = torch.linalg.eigvalsh((centred.T @ centred).double())
    return float(
        values[: max(0, len(values) - k)].clamp_min(0).sum() / values.clamp_min(0).sum().clamp_min(1e-12)
    )


def random_reconstruction_fvu(
    acts_ND: Tensor, *, d_dict: int, k: int, seed: int = 0, max_tokens: int = 2000
) -> float:
    """FVU of a random unit decoder on its `k` best-aligned rows a token, centred, with least-squares values.

    Least squares is the best any encoder could do with these rows, so the baseline is a strong one.
    """
    acts = acts_ND[:max_tokens].cpu()
    centred = acts - acts.mean(0)
    decoder = torch.randn(d_dict, acts.shape[1], generator=torch.Generator().manual_seed(seed))
    decoder = decoder / decoder.norm(dim=-1, keepdim=True)
    k = min(k, d_dict, acts.shape[1])
    index = (centred @ decoder.T).topk(k, dim=-1).indices
    left = outside_span(centred, decoder, index, torch.ones_like(index, dtype=torch.bool))
    return float(left.sum() / centred.square().sum().clamp_min(1e-12))


def outside_span(
    vector_ND: Tensor, decoder_FD: Tensor, index_NK: Tensor, used_NK: Tensor, *, ridge: float = 1e-4
) -> Tensor:
    """Squared length `[N]` of each vector outside the span of its own decoder rows.

    Least squares on the rows `decoder[index]` where `used`, by normal equations with a small ridge (relative to unit rows), so
    that parallel rows do no harm.
    """
    rows = decoder_FD[index_NK] * used_NK[..., None]
    gram = rows @ rows.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).add_(ridge + (~used_NK).float())
    inner = (rows @ vector_ND[..., None]).squeeze(-1)
    weights = torch.cholesky_solve(inner[..., None], torch.linalg.cholesky(gram))
    inside = (weights.transpose(1, 2) @ rows).squeeze(1)
    return (vector_ND - inside).square().sum(-1)


def inner_tokens(batch: Batch) -> Tensor:
    """`[batch, seq]` bool: real tokens but the first of each text (whatever the padding side)."""
    real = batch.attention_mask.bool()
    return real & (real.long().cumsum(1) > 1)


def _spliced_loss(
    model: Model, dictionary: Dictionary, batches: Sequence[Batch], replace: Callable[[Tensor], Tensor] | None
) -> float:
    """Loss with the target site's value replaced by what `replace` makes of the site that the dictionary reads."""
    total, num = 0.0, 0
    for batch in batches:
        if replace is None:
            logits = model.forward(batch)
        else:
            inner = inner_tokens(batch)[..., None]
            seen: dict[str, Tensor] = {}

            def note(hidden: Tensor, seen: dict[str, Tensor] = seen) -> None:
                seen["read"] = hidden

            def splice(hidden: Tensor, inner: Tensor = inner, seen: dict[str, Tensor] = seen) -> Tensor:
                return torch.where(inner, replace(seen.get("read", hidden)).to(hidden), hidden)

            with ExitStack() as stack:
                if target_site(dictionary) != dictionary.site:
                    stack.enter_context(site_hook(model, dictionary.site, note))
                stack.enter_context(site_hook(model, target_site(dictionary), splice))
                logits = model.forward(batch)
        loss, count = token_loss(logits, batch)
        total, num = total + float(loss), num + count
    return total / max(num, 1)
