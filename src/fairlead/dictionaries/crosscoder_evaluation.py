"""How good a crosscoder is, place by place: each of its sites (of one model or of two) has an FVU and a cross-entropy recovered of its own.

The whole is the mean over the places, so that a site with large activations does not count for all. Baselines read the places side by
side, each scaled to the same variance. The loss at a place is that of its model with the place's reconstruction in it, where the
codes come from a pass before, since they need what the sites behind it hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.data import Batch, Encoded, iter_batches
from fairlead.dictionaries.crosscoder import Crosscoder
from fairlead.dictionaries.evaluation import (
    inner_tokens,
    pca_fvu,
    random_reconstruction_fvu,
    take_texts,
    token_loss,
)
from fairlead.models.hooks import site_hook

if TYPE_CHECKING:
    from fairlead.models import Model


class CrosscoderMeasured(NamedTuple):
    """What was measured.

    Attributes:
        metrics: As `evaluate_dictionary`, means over the places.
        places: `fvu` and `ce_recovered` of each place, by name.
        density: `[d_dict]`: share of the tokens on which each latent is active.
        num_tokens: Tokens measured on.
    """

    metrics: dict[str, float]
    places: dict[str, dict[str, float]]
    density: Tensor
    num_tokens: int


@torch.no_grad()
def evaluate_crosscoder(
    models: Sequence[Model],
    crosscoder: Crosscoder,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    max_tokens: int = 20_000,
) -> CrosscoderMeasured:
    """Measure a crosscoder on texts (best: held out from its training).

    Args:
        models: The model of each of its sites, in order.
        encoded: Texts; the first that hold `max_tokens` tokens are used.

    Raises:
        DictionaryError: Other models, or no text.
    """
    crosscoder.check_models(models)
    texts = take_texts(encoded, max_tokens)
    batches = [
        batch.to(models[0].device)
        for batch in iter_batches(texts, batch_size=batch_size, pad_id=models[0].pad_id)
    ]
    parts: list[list[Tensor]] = [[] for _ in models]
    recon: list[list[Tensor]] = [[] for _ in models]
    active = torch.zeros(crosscoder.d_dict)
    for batch in batches:
        inner = inner_tokens(batch)
        values = [value[inner].float() for value in read_places(models, crosscoder, batch)]
        codes = crosscoder.encode(crosscoder.join(values))
        active += (codes != 0).sum(0).cpu()
        for place, (value, found) in enumerate(
            zip(values, crosscoder.split(crosscoder.decode(codes)), strict=True)
        ):
            parts[place].append(value)
            recon[place].append(found)
    target, found = ([torch.cat(each) for each in group] for group in (parts, recon))
    means = [value.mean(0) for value in target]
    spread = [float((value - mean).square().sum()) for value, mean in zip(target, means, strict=True)]
    num, places, losses = len(target[0]), {}, []
    for place, name in enumerate(place_names(crosscoder)):
        fvu = float((found[place] - target[place]).square().sum()) / max(spread[place], 1e-12)
        own = _losses(models, crosscoder, batches, place, means[place])
        losses.append(own)
        places[name] = {"fvu": fvu, "ce_recovered": own["ce_recovered"]}
    even = torch.cat(
        [value / max(total, 1e-12) ** 0.5 for value, total in zip(target, spread, strict=True)], dim=1
    )
    density = active / max(num, 1)
    k = max(1, round(float(density.sum())))
    metrics = {
        "fvu": _mean([one["fvu"] for one in places.values()]),
        "l0": float(density.sum()),
        "dead": float((density == 0).float().mean()),
        **{key: _mean([own[key] for own in losses]) for key in losses[0]},
        "fvu_random": random_reconstruction_fvu(even, d_dict=crosscoder.d_dict, k=k),
        "fvu_pca": pca_fvu(even, k=k),
    }
    return CrosscoderMeasured(metrics, places, density, num)


def models_of(crosscoder: Crosscoder, model: Model, second: Model | None) -> list[Model]:
    """The model of each site: the second one where the fingerprint says so.

    Raises:
        DictionaryError: A site of neither.
    """
    both = [model] if second is None else [model, second]
    found = []
    for fingerprint, name in zip(crosscoder.fingerprints, crosscoder.models, strict=True):
        fits = [one for one in both if fingerprint in ("", one.fingerprint)]
        if not fits:
            raise DictionaryError(
                f"{crosscoder.source or 'crosscoder'}: one of its sites is of model {name} (fingerprint {fingerprint[:12]}), which is not "
                f"given. Next: name it ({'--second' if second is None else 'as the first or the second model'})."
            )
        found.append(fits[0])
    return found


def place_names(crosscoder: Crosscoder) -> list[str]:
    """The sites, with the name of the model where there are several."""
    several = len(set(crosscoder.fingerprints)) > 1
    return [
        f"{model}, {site}" if several else str(site)
        for model, site in zip(crosscoder.models, crosscoder.sites, strict=True)
    ]


def read_places(models: Sequence[Model], crosscoder: Crosscoder, batch: Batch) -> list[Tensor]:
    """What each place holds, `[batch, seq, width]`; a model is run once."""
    seen: dict[int, dict[str, Tensor]] = {}
    for one in models:
        if id(one) not in seen:
            sites = [site for site, other in zip(crosscoder.sites, models, strict=True) if other is one]
            seen[id(one)] = one.capture(batch.to(one.device), list(dict.fromkeys(map(str, sites))))
    return [seen[id(one)][str(site)] for one, site in zip(models, crosscoder.sites, strict=True)]


def _losses(
    models: Sequence[Model], crosscoder: Crosscoder, batches: Sequence[Batch], place: int, mean: Tensor
) -> dict[str, float]:
    """Nats a token of a place's model: as it is, with the reconstruction, and with the mean in the place's value."""

    def reconstructed(batch: Batch) -> Tensor:
        values = [value.float() for value in read_places(models, crosscoder, batch)]
        return crosscoder.split(crosscoder.decode(crosscoder.encode(crosscoder.join(values))))[place]

    model, site = models[place], crosscoder.sites[place]
    found = {
        "ce_model": _loss(model, site, batches, None),
        "ce_dictionary": _loss(model, site, batches, reconstructed),
        "ce_mean": _loss(model, site, batches, lambda batch: mean.expand(*batch.input_ids.shape, -1)),
    }
    span = found["ce_mean"] - found["ce_model"]
    recovered = (found["ce_mean"] - found["ce_dictionary"]) / span if abs(span) > 1e-9 else math.nan
    return {**found, "ce_recovered": recovered}


def _loss(
    model: Model, site: object, batches: Sequence[Batch], make: Callable[[Batch], Tensor] | None
) -> float:
    total, num = 0.0, 0
    for batch in batches:
        here = batch.to(model.device)
        if make is None:
            logits = model.forward(here)
        else:
            new, inner = make(batch), inner_tokens(here)[..., None]
            with site_hook(
                model,
                str(site),
                lambda hidden, new=new, inner=inner: torch.where(inner, new.to(hidden), hidden),
            ):
                logits = model.forward(here)
        loss, count = token_loss(logits, here)
        total, num = total + float(loss), num + count
    return total / max(num, 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
