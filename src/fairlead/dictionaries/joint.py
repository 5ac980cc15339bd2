"""Dictionaries over several sites at once: harvest, scaling and training of transcoders and crosscoders.

The sites' activations lie side by side in one batch `[N, sum of widths]`, token by token; a model with several sites runs once. Every
site is divided by one number so that its mean norm is `sqrt(width)` (measured on the first texts, so that a resumed run finds the same
numbers), and the numbers are folded into the saved weights. The loop, its checkpoints and the order of texts are those of the other kinds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from fairlead.activations import ActivationStore
from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.core.run import sha256_json, sha256_json_list
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, PackedTexts
from fairlead.dictionaries.config import DictionaryConfig, HarvestType
from fairlead.dictionaries.crosscoder import Crosscoder, site_norms
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.kinds import Params
from fairlead.dictionaries.source import (
    Buffer,
    Chunk,
    ModelSource,
    Source,
    check_harvest_dtype,
    iter_training_batches,
)
from fairlead.dictionaries.training import (
    fit_dictionary,
    load_finished,
    resume_trainer,
    save_finished,
    state_path,
)
from fairlead.dictionaries.transcoder import Transcoder

if TYPE_CHECKING:
    from fairlead.models import Model

_SCALE_TOKENS = 4000
_Made = TypeVar("_Made", bound=Dictionary)


class Place(NamedTuple):
    """A site of a model."""

    model: Model
    site: Site


class JointSource:
    """The activations of texts at several places (a `Source`); the places' names are their numbers. One model runs once.

    Args:
        places: Whose activations, and where.
        encoded: The texts, or a store of them with all the places of one model.
        batch_size: Texts per forward pass.
        dtype: As in `ModelSource`.
    """

    def __init__(
        self,
        places: Sequence[Place],
        encoded: Sequence[Encoded] | ActivationStore,
        *,
        batch_size: int = 64,
        dtype: HarvestType = "model",
    ) -> None:
        self.places = places
        self.names = [str(number) for number in range(len(places))]
        models = {id(place.model): place.model for place in places}
        self.sources: dict[int, Source] = {}
        for key, model in models.items():
            stored = isinstance(encoded, ActivationStore)
            self.sources[key] = (
                encoded if stored else ModelSource(model, encoded, batch_size=batch_size, dtype=dtype)
            )
        self.lengths = next(iter(self.sources.values())).lengths

    def iter_rows(self, rows: Sequence[int], sites: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """See `Source`; longest first, float32 on the CPU."""
        streams = []
        for key, source in self.sources.items():
            own = [str(place.site) for place in self.places if id(place.model) == key]
            streams.append(source.iter_rows(rows, list(dict.fromkeys(own))))
        for found in zip(*streams, strict=True):
            acts = {key: each for key, (_, each) in zip(self.sources, found, strict=True)}
            values = {
                name: acts[id(place.model)][str(place.site)].float().cpu()
                for name, place in zip(self.names, self.places, strict=True)
            }
            yield found[0][0], {name: values[name] for name in sites}


def harvest_joint(
    places: Sequence[Place],
    encoded: Sequence[Encoded] | ActivationStore,
    *,
    rows: Sequence[int] | None = None,
    batch_size: int = 64,
) -> list[Tensor]:
    """Activations `[N, width]` (float32, CPU) of every place at the same tokens, longest text first, position 0 left out.

    Args:
        rows: Which texts; None: all.
    """
    source = JointSource(places, encoded, batch_size=batch_size)
    chosen = tuple(range(len(source.lengths)) if rows is None else rows)
    num = sum(max(0, source.lengths[row] - 1) for row in chosen)
    buffer = Buffer(source.names, num)
    buffer.fill(source, Chunk(0, chosen, num))
    return [buffer.acts[name] for name in source.names]


def train_transcoder(
    model: Model,
    data: ChatData | Sequence[Encoded] | ActivationStore,
    *,
    site: Site | str,
    to_site: Site | str,
    config: DictionaryConfig | None = None,
    out: str | Path | None = None,
    max_length: int | None = None,
) -> Transcoder:
    """Train a transcoder from one site of a model to another.

    Args:
        site: Where it reads, such as `layers.3.mlp_in`.
        to_site: Where it writes, such as `layers.3.mlp_out`.
        config: `kind` is set to "transcoder"; `skip` adds the linear path.
        out: Folder; an unfinished run beside it is continued, a finished one with the same settings is loaded.

    Raises:
        DictionaryError: No usable text, activations or loss not finite, or a finished folder made with other settings.
    """
    places = [Place(model, Site.parse(site)), Place(model, Site.parse(to_site))]
    config = (config or DictionaryConfig.make()).model_copy(update={"kind": "transcoder"})

    def finish(run: _Run) -> Transcoder:
        into, onto = run.scales
        w = dict(run.weights)
        ratio = (
            into / onto
        )  # pre-activations are measured in units of the output, so that decoder rows keep unit norm
        w["W_enc"] = w["W_enc"] * ratio
        w |= {name: w[name] / onto for name in ("b_enc", "b_dec", "threshold")}
        if "W_skip" in w:
            w["W_skip"] = w["W_skip"] * ratio
        return Transcoder(w, site=places[0].site, to_site=places[1].site, **_options(run, model))

    return _train(places, data, config, out, max_length, finish, Transcoder)


def train_crosscoder(
    models: Model | Sequence[Model],
    data: ChatData | Sequence[Encoded] | ActivationStore,
    *,
    sites: Sequence[Site | str],
    config: DictionaryConfig | None = None,
    out: str | Path | None = None,
    max_length: int | None = None,
) -> Crosscoder:
    """Train a crosscoder over several sites of one model, or over one site of several models (model diffing).

    Args:
        models: One model, or one for each site; with several models and one site, the site is the same in all. Several models must
            share a tokenizer.
        sites: In the order in which the crosscoder holds them.
        config: `kind` is set to "crosscoder".
        out: As in `train_transcoder`.

    Raises:
        DictionaryError: As in `train_transcoder`, or the models' tokenizers differ, or fewer than two places.
    """
    several = list(models) if isinstance(models, Sequence) else [models]
    names = [Site.parse(site) for site in sites]
    if len(names) == 1:
        names = names * len(several)
    if len(several) == 1:
        several = several * len(names)
    if len(several) != len(names) or len(names) < 2:
        raise DictionaryError(
            "a crosscoder needs several sites of one model or one site of several models, not "
            f"{len(names)} sites and {len(several)} models. Next: give two sites or two models."
        )
    vocabularies = [model.tokenizer.get_vocab() for model in several]
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies[1:]):
        raise DictionaryError(
            "the models' tokenizers differ, so that their tokens cannot be paired. Next: pass models that share a tokenizer."
        )
    places = [Place(model, site) for model, site in zip(several, names, strict=True)]
    config = (config or DictionaryConfig.make()).model_copy(update={"kind": "crosscoder"})

    def finish(run: _Run) -> Crosscoder:
        w, factor = dict(run.weights), _spread(run.scales, run.config.widths)
        w["W_enc"], w["W_dec"] = w["W_enc"] * factor[:, None], w["W_dec"] / factor
        w["threshold"] = run.crosscoder_threshold()
        w["b_dec"] = w["b_dec"] / factor
        w["site_scale"] = torch.tensor(run.scales)
        return Crosscoder(
            w,
            sites=names,
            widths=run.config.widths,
            models=[model.name for model in several],
            fingerprints=[model.fingerprint for model in several],
            **_options(run, several[0]),
        )

    return _train(places, data, config, out, max_length, finish, Crosscoder)


class _Run(NamedTuple):
    """What a finished training leaves: weights in the units of the scaled sites, and the scales."""

    weights: Params
    config: DictionaryConfig
    scales: list[float]
    identity: str
    metrics: dict[str, float]

    def crosscoder_threshold(self) -> Tensor:
        """The threshold on the ranking as one on each latent's activation: divided by its summed decoder norms."""
        norms = site_norms(self.weights["W_dec"], self.config.widths).sum(1)
        return self.weights["threshold"] / norms.clamp_min(1e-12)


def _options(run: _Run, model: Model) -> dict:
    settings = {**run.config.model_dump(mode="json"), "identity": run.identity}
    return {
        "model_fingerprint": model.fingerprint,
        "model_name": model.name,
        "config": settings,
        "metrics": run.metrics,
    }


def _train(
    places: Sequence[Place],
    data: ChatData | Sequence[Encoded] | ActivationStore,
    config: DictionaryConfig,
    out: str | Path | None,
    max_length: int | None,
    finish: Callable[[_Run], _Made],
    wanted: type[_Made],
) -> _Made:
    first = places[0].model
    if isinstance(data, ChatData):
        limit = max_length or min(place.model.max_length for place in places)
        encoded: Sequence[Encoded] | ActivationStore = PackedTexts.encode(
            data, first.tokenizer, max_length=limit
        )
    else:
        encoded = data
    if isinstance(encoded, ActivationStore):
        check_harvest_dtype(config, encoded.folder)
        _check_store(encoded, places)
    source = JointSource(places, encoded, dtype=config.harvest_dtype)
    if not any(length > 1 for length in source.lengths):
        raise DictionaryError(
            "no text with two tokens to train a dictionary on. Next: pass data with longer texts."
        )
    measured = harvest_joint(places, encoded, rows=_first_texts(source.lengths))
    widths = tuple(part.shape[1] for part in measured)
    scales = [(part.shape[1] ** 0.5) / max(float(part.norm(dim=-1).mean()), 1e-12) for part in measured]
    config = config.model_copy(update={"widths": widths}).sized(min(widths))
    identity = _identity(places, encoded, config)
    trainer, state = None, None
    if out is not None:
        out = Path(out)
        found = load_finished(out, identity)
        if isinstance(found, wanted):
            return found
        state = state_path(out)
        trainer = resume_trainer(state, identity, config, width=sum(widths))
    factor = _spread(scales, widths)
    done = trainer.done if trainer is not None else 0
    stream = iter_training_batches(source, source.names, config, skip_steps=done)
    with torch.no_grad(), contextlib.closing(stream):
        batches = (torch.cat([batch[name] for name in source.names], dim=1) * factor for batch in stream)
        trainer = fit_dictionary(batches, config, trainer=trainer, state_path=state, identity=identity)
    made = finish(_Run(trainer.export(), config, scales, identity, trainer.metrics()))
    if out is not None:
        save_finished(made, out)
    return made


def _spread(scales: Sequence[float], widths: Sequence[int]) -> Tensor:
    """Each site's scale, once for every entry of it."""
    return torch.cat([torch.full((width,), scale) for scale, width in zip(scales, widths, strict=True)])


def _check_store(store: ActivationStore, places: Sequence[Place]) -> None:
    """Confirm that a store holds every place.

    Raises:
        ConfigError: Several models, or a site that it lacks.
        DataError: It is another model's.
    """
    if len({id(place.model) for place in places}) > 1:
        raise ConfigError(
            f"{store.folder}: a store holds one model's activations, and this crosscoder lies over two models. Next: pass the texts."
        )
    for place in places:
        store.check(place.model)
        store.check_site(place.site)


def _first_texts(lengths: Sequence[int]) -> list[int]:
    chosen, held = [], 0
    for row, length in enumerate(lengths):
        if held >= _SCALE_TOKENS:
            break
        chosen.append(row)
        held += length
    return chosen


def _identity(
    places: Sequence[Place], encoded: Sequence[Encoded] | ActivationStore, config: DictionaryConfig
) -> str:
    names = [[place.model.fingerprint, str(place.site)] for place in places]
    if isinstance(encoded, ActivationStore):
        texts = encoded.texts
    else:
        texts = sha256_json_list(list(row.input_ids) for row in encoded)
    return sha256_json([config.identity(), names, texts])
