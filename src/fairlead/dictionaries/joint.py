"""Dictionaries over several sites at once: harvest, scaling and training of transcoders and crosscoders.

The sites' activations lie side by side in one batch `[N, sum of widths]`, token by token; a model with several sites runs once. Every
site is divided by one number so that its mean norm is `sqrt(width)` (measured on the first texts, so that a resumed run finds the same
numbers), and the numbers are folded into the saved weights. The loop, its checkpoints and the order of texts are those of the other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.run import sha256_json
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, encode, iter_batches
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.crosscoder import Crosscoder, site_norms
from fairlead.dictionaries.dictionary import CONFIG_FILE, Dictionary
from fairlead.dictionaries.kinds import Params, find_kind
from fairlead.dictionaries.loading import load_dictionary
from fairlead.dictionaries.source import batches_in_chunk, iter_chunk_batches, plan_chunks
from fairlead.dictionaries.trainer import Trainer
from fairlead.dictionaries.training import STATE_FILE, fit_dictionary
from fairlead.dictionaries.transcoder import Transcoder

if TYPE_CHECKING:
    from fairlead.models import Model

_SCALE_TOKENS = 4000
_Made = TypeVar("_Made", bound=Dictionary)


class Place(NamedTuple):
    """A site of a model."""

    model: Model
    site: Site


def harvest_joint(
    places: Sequence[Place], encoded: Sequence[Encoded], *, batch_size: int = 64, skip_first: bool = True
) -> list[Tensor]:
    """Activations `[N, width]` (float32, CPU) of every place at the same tokens, in the order of the batches.

    Args:
        places: Where; places of one model share a forward pass.
        skip_first: Leave out position 0 of every text.
    """
    models: dict[int, Model] = {id(place.model): place.model for place in places}
    parts: list[list[Tensor]] = [[] for _ in places]
    pad = places[0].model.pad_id
    for batch in iter_batches(list(encoded), batch_size=batch_size, pad_id=pad):
        real = batch.attention_mask.bool()
        if skip_first:
            real = real & (real.long().cumsum(1) > 1)
        for key, model in models.items():
            own = [number for number, place in enumerate(places) if id(place.model) == key]
            found = model.capture(batch.to(model.device), sites=[places[n].site for n in own])
            for number in own:
                value = found[str(places[number].site)]
                parts[number].append(value[real.to(value.device)].float().cpu())
    return [torch.cat(part) for part in parts]


def train_transcoder(
    model: Model,
    data: ChatData | Sequence[Encoded],
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
    data: ChatData | Sequence[Encoded],
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
    data: ChatData | Sequence[Encoded],
    config: DictionaryConfig,
    out: str | Path | None,
    max_length: int | None,
    finish: Callable[[_Run], _Made],
    wanted: type[_Made],
) -> _Made:
    first = places[0].model
    if isinstance(data, ChatData):
        limit = max_length or min(place.model.max_length for place in places)
        encoded = encode(data, first.tokenizer, max_length=limit, on_long="truncate")
    else:
        encoded = list(data)
    if not any(len(row.input_ids) > 1 for row in encoded):
        raise DictionaryError(
            "no text with two tokens to train a dictionary on. Next: pass data with longer texts."
        )
    sample = _first_texts(encoded)
    measured = harvest_joint(places, sample)
    widths = tuple(part.shape[1] for part in measured)
    scales = [(part.shape[1] ** 0.5) / max(float(part.norm(dim=-1).mean()), 1e-12) for part in measured]
    config = config.model_copy(update={"widths": widths}).sized(min(widths))
    identity = _identity(places, encoded, config)
    state = None
    if out is not None:
        out = Path(out)
        if (out / CONFIG_FILE).is_file():
            found = load_dictionary(out)
            if isinstance(found, wanted) and found.config.get("identity") == identity:
                return found
            raise DictionaryError(
                f"{out}: holds a dictionary made with other settings, model or data. Next: choose another folder or remove it."
            )
        state = out.with_name(out.name + ".part") / STATE_FILE
    trainer = _resumed(state, identity, config)
    done = trainer.done if trainer is not None else 0
    batches = _batches(places, encoded, config, _spread(scales, widths), done)
    with torch.no_grad():
        trainer = fit_dictionary(batches, config, trainer=trainer, state_path=state, identity=identity)
    made = finish(_Run(trainer.export(), config, scales, identity, trainer.metrics()))
    if out is not None and state is not None:
        made.save(out)
        state.unlink(missing_ok=True)
        if state.parent.is_dir() and not any(state.parent.iterdir()):
            state.parent.rmdir()
    return made


def _resumed(state: Path | None, identity: str, config: DictionaryConfig) -> Trainer | None:
    if state is None or not state.is_file():
        return None
    try:
        with safe_open(state, "pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return None
        trainer = Trainer(find_kind(config.kind), config, torch.randn(8, sum(config.widths)))
        trainer.load_state(state)
    except (SafetensorError, OSError, KeyError) as error:
        raise DictionaryError(f"{state}: broken state ({error}). Next: remove it and start again.") from error
    return trainer


def _batches(
    places: Sequence[Place], encoded: Sequence[Encoded], config: DictionaryConfig, factor: Tensor, skip: int
) -> Iterator[Tensor]:
    lengths = [max(0, len(row.input_ids) - 1) for row in encoded]
    for chunk in plan_chunks(lengths, buffer_tokens=config.buffer_tokens, seed=config.seed):
        num = batches_in_chunk(chunk.num_tokens, batch_tokens=config.batch_tokens, passes=config.passes)
        if skip >= num:
            skip -= num
            continue
        acts = torch.cat(harvest_joint(places, [encoded[row] for row in chunk.rows]), dim=1) * factor
        yield from iter_chunk_batches(
            acts,
            batch_tokens=config.batch_tokens,
            passes=config.passes,
            seed=config.seed * 100_003 + chunk.index,
            skip=skip,
        )
        skip = 0


def _spread(scales: Sequence[float], widths: Sequence[int]) -> Tensor:
    """Each site's scale, once for every entry of it."""
    return torch.cat([torch.full((width,), scale) for scale, width in zip(scales, widths, strict=True)])


def _first_texts(encoded: Sequence[Encoded]) -> list[Encoded]:
    chosen, held = [], 0
    for row in encoded:
        if held >= _SCALE_TOKENS:
            break
        chosen.append(row)
        held += len(row.input_ids)
    return chosen


def _identity(places: Sequence[Place], encoded: Sequence[Encoded], config: DictionaryConfig) -> str:
    names = [[place.model.fingerprint, str(place.site)] for place in places]
    return sha256_json([config.identity(), names, sha256_json([list(row.input_ids) for row in encoded])])
