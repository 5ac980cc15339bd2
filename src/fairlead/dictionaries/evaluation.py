"""How good a dictionary is, beside a random-decoder baseline.

FVU is the squared reconstruction error over the variance around the mean. Cross-entropy recovered is `(CE_mean - CE_dict) / (CE_mean -
CE_model)` with the reconstruction, or the mean activation, in the place of the site's value (mean ablation instead of the usual
zero: zero is not a neutral origin). Position 0 keeps its own value in both, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fairlead.core.errors import DictionaryError
from fairlead.data import Batch, Encoded, iter_batches
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.models.hooks import site_hook

if TYPE_CHECKING:
    from fairlead.models import Model


def token_loss(logits: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """Sum of the losses over the batch's loss tokens, in nats, and their number; the token at t is predicted from t - 1."""
    wanted = batch.loss_mask[:, 1:]
    kept = logits[:, :-1][wanted].float()
    return functional.cross_entropy(kept, batch.input_ids[:, 1:][wanted], reduction="sum"), int(wanted.sum())


def reconstruction_metrics(dictionary: Dictionary, acts_ND: Tensor) -> dict[str, float]:
    """`fvu`, `l0` and the share of `dead` latents on activations `[N, d_model]`."""
    codes = dictionary.encode(acts_ND)
    error = (dictionary.decode(codes) - acts_ND).square().sum()
    variance = (acts_ND - acts_ND.mean(0)).square().sum()
    return {
        "fvu": float(error / variance.clamp_min(1e-12)),
        "l0": float((codes != 0).float().sum(-1).mean()),
        "dead": float((codes != 0).any(0).logical_not().float().mean()),
    }


@torch.no_grad()
def evaluate_dictionary(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    max_tokens: int = 20_000,
) -> dict[str, float]:
    """Measure a dictionary on texts (best: held out from its training).

    Args:
        encoded: Texts; the first that hold `max_tokens` tokens are used.

    Returns:
        `fvu`, `l0`, `dead`, `ce_model`, `ce_dictionary`, `ce_mean` (nats a token), `ce_recovered` (1: as good as the model) and
        `fvu_random`, the FVU of a random decoder with as many active latents (the baseline to beat).

    Raises:
        DictionaryError: Made for another model, or no text.
    """
    dictionary.check(model)
    chosen, held = [], 0
    for row in encoded:
        if held >= max_tokens:
            break
        chosen.append(row)
        held += len(row.input_ids)
    if not chosen:
        raise DictionaryError("no text to evaluate the dictionary on. Next: pass at least one row.")
    batches = [
        batch.to(model.device) for batch in iter_batches(chosen, batch_size=batch_size, pad_id=model.pad_id)
    ]
    kept = [
        model.capture(batch, sites=[dictionary.site])[str(dictionary.site)][_inner(batch)]
        for batch in batches
    ]
    acts = torch.cat(kept).float()
    mean = acts.mean(0)
    found = reconstruction_metrics(dictionary, acts)

    def reconstruct(hidden: Tensor) -> Tensor:
        return dictionary.decode(dictionary.encode(hidden))

    losses = {
        "ce_model": _spliced_loss(model, dictionary, batches, None),
        "ce_dictionary": _spliced_loss(model, dictionary, batches, reconstruct),
        "ce_mean": _spliced_loss(model, dictionary, batches, lambda hidden: mean.expand_as(hidden)),
    }
    span = losses["ce_mean"] - losses["ce_model"]
    recovered = (losses["ce_mean"] - losses["ce_dictionary"]) / span if abs(span) > 1e-9 else math.nan
    random = random_reconstruction_fvu(acts, d_dict=dictionary.d_dict, k=max(1, round(found["l0"])))
    return {**found, **losses, "ce_recovered": recovered, "fvu_random": random}


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


def _inner(batch: Batch) -> Tensor:
    """`[batch, seq]` bool: real tokens but the first of each text (whatever the padding side)."""
    real = batch.attention_mask.bool()
    return real & (real.long().cumsum(1) > 1)


def _spliced_loss(
    model: Model, dictionary: Dictionary, batches: Sequence[Batch], replace: Callable[[Tensor], Tensor] | None
) -> float:
    total, num = 0.0, 0
    for batch in batches:
        if replace is None:
            logits = model.forward(batch)
        else:
            inner = _inner(batch)[..., None]

            def splice(hidden: Tensor, inner: Tensor = inner) -> Tensor:
                return torch.where(inner, replace(hidden).to(hidden), hidden)

            with site_hook(model, dictionary.site, splice):
                logits = model.forward(batch)
        loss, count = token_loss(logits, batch)
        total, num = total + float(loss), num + count
    return total / max(num, 1)
