"""Everything that `fairlead dict evaluate` says about a dictionary, as one record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from fairlead.core.config import Record
from fairlead.core.errors import DictionaryError
from fairlead.data import Encoded
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.crosscoder import Crosscoder
from fairlead.dictionaries.crosscoder_evaluation import evaluate_crosscoder, models_of
from fairlead.dictionaries.dictionary import Dictionary, find_architecture
from fairlead.dictionaries.evaluation import evaluate_dictionary, hold_texts, measure
from fairlead.dictionaries.matching import seed_stability
from fairlead.dictionaries.synthetic import Planted, PlantedConfig, measure_recovery
from fairlead.dictionaries.training import fit_dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

_STEP = 0.25  # of the histogram, in powers of ten


class Histogram(Record):
    """How often latents are active.

    Attributes:
        edges: log10 of the share of tokens at the edges of the bins, ascending.
        counts: Latents in each bin.
        never: Latents that were active on no token.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    never: int


class DictionaryQuality(Record):
    """What was measured.

    Attributes:
        site: Where the dictionary reads (and, for a transcoder, `to_site` where it writes); of a crosscoder all its places.
        kind: Name of the kind or architecture.
        d_dict: Latents.
        num_tokens: Tokens measured on.
        metrics: As `evaluate_dictionary`.
        density: Histogram of the latents' densities.
        stability: As `seed_stability` against a second dictionary; empty where none was given.
        places: `fvu` and `ce_recovered` of each place of a crosscoder; `metrics` are their means.
        planted: What a dictionary of the same kind finds of planted features, by variant; empty where not asked for.
    """

    site: str
    to_site: str = ""
    kind: str
    d_dict: int
    num_tokens: int
    metrics: dict[str, float]
    density: Histogram
    stability: dict[str, float] = Field(default_factory=dict)
    places: dict[str, dict[str, float]] = Field(default_factory=dict)
    planted: dict[str, dict[str, float]] = Field(default_factory=dict)


@torch.no_grad()
def measure_quality(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    against: Dictionary | None = None,
    second: Model | None = None,
    planted_tokens: int = 0,
    max_tokens: int = 20_000,
) -> DictionaryQuality:
    """Measure a dictionary on texts, beside its baselines.

    Args:
        encoded: Texts, best held out from the training.
        against: A second dictionary of the same site, such as one of another seed, for the stability.
        second: The other model of a crosscoder over two.
        planted_tokens: Train a dictionary of the same kind on so many tokens of planted features; 0: do not.
        max_tokens: Tokens of the texts to measure on.

    Raises:
        DictionaryError: Made for another model, no text, or two dictionaries of different width.
    """
    if against is not None and against.decoder.shape[1] != dictionary.decoder.shape[1]:
        raise DictionaryError(
            f"{against.source or 'the second dictionary'}: rows of width {against.decoder.shape[1]}, not "
            f"{dictionary.decoder.shape[1]}. Next: compare with a dictionary of the same site."
        )
    places: dict[str, dict[str, float]] = {}
    if isinstance(dictionary, Crosscoder):
        models = models_of(dictionary, model, second)
        metrics, places, density, num = evaluate_crosscoder(
            models, dictionary, encoded, max_tokens=max_tokens
        )
    else:
        held = hold_texts(model, dictionary, encoded, max_tokens=max_tokens)
        metrics = evaluate_dictionary(model, dictionary, encoded, held=held)
        density, num = measure(dictionary, held.read, held.target).density, len(held.read)
    return DictionaryQuality(
        site=" and ".join(places) or str(dictionary.site),
        to_site=str(getattr(dictionary, "to_site", "")),
        kind=str(dictionary.config.get("kind") or dictionary.architecture),
        d_dict=dictionary.d_dict,
        num_tokens=num,
        metrics=metrics,
        density=density_histogram(density),
        stability=seed_stability(dictionary.decoder, against.decoder) if against is not None else {},
        places=places,
        planted=planted_recovery(dictionary.config, planted_tokens) if planted_tokens else {},
    )


def density_histogram(density: Tensor) -> Histogram:
    """Bins a quarter of a power of ten wide, from the rarest latent to always."""
    never = int((density == 0).sum())
    log = density[density > 0].double().log10()
    if log.numel() == 0:
        return Histogram(edges=(-_STEP, 0.0), counts=(0,), never=never)
    num = max(1, int(torch.ceil(-log.min() / _STEP)))
    place = ((log + num * _STEP) / _STEP).long().clamp(0, num - 1)
    counts = torch.bincount(place, minlength=num).tolist()
    return Histogram(
        edges=tuple((i - num) * _STEP for i in range(num + 1)), counts=tuple(counts), never=never
    )


def planted_recovery(settings: dict, num_tokens: int, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Train the settings' kind on planted features, as many latents as features and k as features are on, by variant.

    Raises:
        DictionaryError: The dictionary says no kind that reads one site (foreign ones say none).
    """
    kind = settings.get("kind", "")
    made = find_architecture(kind) or Dictionary
    if not kind or not made.reconstructs_itself:
        raise DictionaryError(
            f"planted features need a kind that was trained here and reads one site, not '{kind or 'a foreign one'}'. "
            "Next: leave --planted out."
        )
    found = {}
    for variant in ("independent", "correlated", "hierarchical"):
        planted = Planted(PlantedConfig(variant=variant, seed=seed))
        config = DictionaryConfig.make(
            kind=kind,
            d_dict=planted.config.num_features,
            k=round(planted.config.active),
            num_tokens=num_tokens,
            batch_tokens=min(512, num_tokens),
            seed=seed,
        ).sized(planted.config.d_model)
        x, _ = planted.sample(config.num_steps * config.batch_tokens, seed=seed)
        trained = fit_dictionary(iter(x.split(config.batch_tokens)), config)
        dictionary = made(trained.export(), **made.settings(config), site="embed")
        found[variant] = measure_recovery(planted, dictionary)._asdict()
    return found
