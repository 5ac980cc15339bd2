"""Training dictionaries on a model's activations: one, or several from one pass over the model.

The stream of activations (`source`) is shared; each dictionary (site, width, k, kind, ...) has its own `Trainer` and its own folder, is
the one that `train_dictionary` alone would make (of several lengths the shorter ones see other texts in the last chunk, which is cut to
what the longest needs), and resumes by itself. Under torchrun the processes train together: each harvests its
share of the texts and takes its tokens of every batch, and the first one writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fairlead.activations import ActivationStore
from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.core.processes import is_first, num_processes, on_first, rank, wait
from fairlead.core.progress import Meter
from fairlead.core.run import sha256_json, sha256_json_list
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, PackedTexts
from fairlead.dictionaries.config import DictionaryConfig, HarvestType
from fairlead.dictionaries.dictionary import CONFIG_FILE, Dictionary, find_architecture
from fairlead.dictionaries.kinds import find_kind
from fairlead.dictionaries.loading import load_dictionary
from fairlead.dictionaries.source import ModelSource, Source, check_harvest_dtype, iter_training_batches
from fairlead.dictionaries.trainer import Trainer

if TYPE_CHECKING:
    from fairlead.models import Model

STATE_FILE = "training_state.safetensors"
_STREAM = (
    "batch_tokens",
    "buffer_tokens",
    "passes",
    "harvest_dtype",
    "seed",
)  # what dictionaries of one pass must agree on


class DictionarySpec(NamedTuple):
    """One of several dictionaries to train.

    Attributes:
        name: Of its folder under `out`.
        site: Where; None: the model's default site.
        config: Its settings; None: the defaults.
    """

    name: str
    site: Site | str | None = None
    config: DictionaryConfig | None = None


def combine_specs(
    model: Model,
    config: DictionaryConfig,
    *,
    sites: Sequence[Site | str] = (),
    widths: Sequence[int] = (),
    ks: Sequence[int] = (),
    kinds: Sequence[str] = (),
) -> list[DictionarySpec]:
    """Every combination of what is given; what is not stays as `config` (the model's default site) has it.

    A name says all four (`layers.3.resid_post-batch_topk-l1536-k24`), so that it stays the same when more are asked for.
    """
    found = []
    for site in sites or [model.default_site()]:
        for kind, width, k in product(kinds or [config.kind], widths or [config.d_dict], ks or [config.k]):
            own = config.model_copy(update={"kind": kind, "d_dict": width, "k": k}).sized(model.d_model)
            found.append(DictionarySpec(f"{Site.parse(site)}-{kind}-l{own.d_dict}-k{own.k}", site, own))
    return found


def fit_dictionary(
    batches: Iterator[Tensor],
    config: DictionaryConfig,
    *,
    trainer: Trainer | None = None,
    state_path: Path | None = None,
    identity: str = "",
) -> Trainer:
    """Train on an iterator of activation batches `[batch_tokens, d_model]` until the run's tokens are used.

    Args:
        batches: Must yield at least `config.num_steps` batches (less what `trainer` has done).
        config: Sizes may be None; they are filled in from the first batch.
        trainer: A run to go on with.
        state_path: Where to save the state every `checkpoint_every` steps.
        identity: Written into the state, to recognise it.
    """
    meter = _Progress()
    try:
        while trainer is None or trainer.done < trainer.config.num_steps:
            batch = next(batches, None)
            if batch is None:
                raise DictionaryError("the activations ended before the run. Next: lower num_tokens.")
            if trainer is None:
                trainer = Trainer(find_kind(config.kind), config.sized(batch.shape[1]), batch)
            trainer.step(batch)
            meter.show([trainer])
            _save(trainer, state_path, identity)
    finally:
        meter.close()
    return trainer


def train_dictionary(
    model: Model,
    data: ChatData | Sequence[Encoded] | ActivationStore,
    *,
    site: Site | str | None = None,
    config: DictionaryConfig | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    max_length: int | None = None,
    together: bool = False,
) -> Dictionary:
    """Train a dictionary on a model's activations at one site.

    Args:
        model: Whose activations.
        data: Chats or encoded texts, or a store of this model's activations; all positions but the first count.
        site: None: the model's default site.
        config: None: the defaults of `DictionaryConfig`.
        out: Folder to save to; its `.part` neighbour holds the state of an unfinished run, which is continued when `resume`
            is set and settings, model, site and data are the same. A finished folder with the same identity is loaded.
        max_length: Longer texts are cut (only where `data` is not encoded yet); None: the model's limit.
        together: The processes of this launch (torchrun) train it together; each calls this with the same arguments.

    Raises:
        DictionaryError: No usable text, activations or loss not finite, or a finished folder made with other settings.
    """
    spec = DictionarySpec(Path(out).name if out is not None else "dictionary", site, config)
    folder = Path(out).parent if out is not None else None
    found = train_dictionaries(
        model, data, [spec], out=folder, resume=resume, max_length=max_length, together=together
    )
    return found[spec.name]


def train_dictionaries(
    model: Model,
    data: ChatData | Sequence[Encoded] | ActivationStore,
    specs: Sequence[DictionarySpec],
    *,
    out: str | Path | None = None,
    resume: bool = True,
    max_length: int | None = None,
    together: bool = False,
) -> dict[str, Dictionary]:
    """Train several dictionaries (sites, widths, k, kinds) from one pass over the model, each as `train_dictionary` would.

    Where `num_tokens` differ, the shorter runs see other texts in their last chunk than alone: it is cut to what the longest needs.

    Args:
        specs: They may differ in everything but the stream: `batch_tokens`, `buffer_tokens`, `passes`, `harvest_dtype` and `seed`.
        out: Folder in which each gets a folder by its name.

    Returns:
        Name to dictionary, in the order of `specs`.

    Raises:
        ConfigError: No spec, a name that comes twice, or settings of the stream that differ.
        DictionaryError: As `train_dictionary`.
    """
    runs = [_Run(model, spec, out) for spec in specs]
    _check_specs(runs)
    source, texts = _source_of(model, data, max_length, runs[0].config.harvest_dtype)
    for run in runs:
        run.identify(model, texts)
    if isinstance(source, ActivationStore):
        check_harvest_dtype(runs[0].config, source.folder)
        for run in runs:
            source.check_site(run.site)
    with torch.no_grad():
        for run in runs:
            run.look(resume, together)
        left = [run for run in runs if run.found is None]
        if left:
            _train(left, source, together)
    for run in left:
        run.finish(model)
    return {run.spec.name: run.found for run in runs if run.found is not None}


def _check_specs(runs: Sequence[_Run]) -> None:
    if not runs:
        raise ConfigError("specs is empty. Next: name at least one dictionary.")
    names = [run.spec.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two dictionaries are named '{name}'. Next: give each its own name.")
    for field in _STREAM:
        values = {getattr(run.config, field) for run in runs}
        if len(values) > 1:
            raise ConfigError(
                f"dictionaries trained together share one stream, but {field} is {sorted(values)}. "
                "Next: use one value, or train them one by one."
            )


def _source_of(
    model: Model,
    data: ChatData | Sequence[Encoded] | ActivationStore,
    max_length: int | None,
    dtype: HarvestType,
) -> tuple[Source, str]:
    """Where the activations come from, and the hash of the texts."""
    if isinstance(data, ActivationStore):
        data.check(model)
        return data, data.texts
    if isinstance(data, ChatData):
        encoded: Sequence[Encoded] = PackedTexts.encode(
            data, model.tokenizer, max_length=max_length or model.max_length
        )
    else:
        encoded = data
    if not encoded:
        raise DictionaryError("no text to train a dictionary on. Next: pass data with at least one row.")
    return ModelSource(model, encoded, dtype=dtype), sha256_json_list(list(row.input_ids) for row in encoded)


class _Run:
    """One dictionary on its way."""

    def __init__(self, model: Model, spec: DictionarySpec, out: str | Path | None) -> None:
        self.spec = spec
        self.config = (spec.config or DictionaryConfig.make()).sized(model.d_model)
        self.site = Site.parse(spec.site) if spec.site is not None else model.default_site()
        self.out = Path(out) / spec.name if out is not None else None
        self.state = state_path(self.out) if self.out is not None else None
        self.made = find_architecture(self.config.kind) or Dictionary
        if not self.made.reconstructs_itself:
            raise DictionaryError(
                f"a {self.config.kind} has several sites. Next: call train_{self.config.kind}, or choose another kind."
            )
        self.trainer: Trainer | None = None
        self.found: Dictionary | None = None
        self.identity = ""

    def identify(self, model: Model, texts: str) -> None:
        settings = self.config.identity()
        self.identity = sha256_json([settings, model.fingerprint, str(self.site), texts])

    def look(self, resume: bool, together: bool) -> None:
        """Load what is finished, or go on with what is not."""
        if self.out is None or self.state is None:
            return
        self.found = load_finished(self.out, self.identity)
        if self.found is None and resume:
            self.trainer = resume_trainer(self.state, self.identity, self.config, together=together)

    def finish(self, model: Model) -> None:
        """Make the dictionary, save it, and remove the state."""
        assert self.trainer is not None
        self.found = self.made(
            self.trainer.export(),
            **self.made.settings(self.config),
            site=self.site,
            model_fingerprint=model.fingerprint,
            model_name=model.name,
            config={**self.config.model_dump(mode="json"), "identity": self.identity},
            metrics=self.trainer.metrics(),
        )
        if self.out is None or self.state is None:
            return
        if self.trainer.together:
            on_first(self._save)
            wait()
        else:
            self._save()
        self.found.source = str(self.out)

    def _save(self) -> None:
        assert self.found is not None and self.out is not None
        save_finished(self.found, self.out)


def _train(runs: Sequence[_Run], source: Source, together: bool) -> None:
    """All runs along one stream; those that have done less catch up."""
    longest = max(runs, key=lambda run: run.config.num_steps).config
    done = min(run.trainer.done if run.trainer is not None else 0 for run in runs)
    sites = list(dict.fromkeys(str(run.site) for run in runs))
    part = (rank(), num_processes()) if together else (0, 1)
    batches = iter_training_batches(source, sites, longest, skip_steps=done, part=part)
    meter = _Progress()
    try:
        while done < longest.num_steps:
            batch = next(batches)
            for run in runs:
                acts = batch[str(run.site)]
                if run.trainer is None:
                    run.trainer = Trainer(find_kind(run.config.kind), run.config, acts, together=together)
                if run.trainer.done == done < run.config.num_steps:
                    run.trainer.step(acts)
                    _save(run.trainer, run.state, run.identity)
            done += 1
            meter.show([run.trainer for run in runs if run.trainer is not None])
    finally:
        batches.close()
        meter.close()


def _save(trainer: Trainer, path: Path | None, identity: str) -> None:
    due = trainer.done % trainer.config.checkpoint_every == 0
    if path is not None and due and (is_first() or not trainer.together):
        trainer.save_state(path, identity)


def state_path(out: Path) -> Path:
    """Where the state of an unfinished run stands, beside the folder that it will become."""
    return out.with_name(out.name + ".part") / STATE_FILE


def load_finished(out: Path, identity: str) -> Dictionary | None:
    """The finished dictionary of a folder; None where there is none.

    Raises:
        DictionaryError: One that was made with other settings, model or data.
    """
    if not (out / CONFIG_FILE).is_file():
        return None
    found = load_dictionary(out)
    if found.config.get("identity") != identity:
        raise DictionaryError(
            f"{out}: holds a dictionary made with other settings, model or data. Next: choose another folder or remove it."
        )
    return found


def save_finished(found: Dictionary, out: Path) -> None:
    """Save a dictionary and remove the state of its training."""
    found.save(out)
    state = state_path(out)
    state.unlink(missing_ok=True)
    if state.parent.is_dir() and not any(state.parent.iterdir()):
        state.parent.rmdir()


def resume_trainer(
    state: Path, identity: str, config: DictionaryConfig, *, together: bool = False, width: int | None = None
) -> Trainer | None:
    """The trainer of an unfinished run; None where there is none, or one of another identity.

    Args:
        width: Of a training batch; None: that of the decoder rows.
    """
    if not state.is_file():
        return None
    try:
        with safe_open(state, "pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return None
            width = width or file.get_slice("param.W_dec").get_shape()[1]
        trainer = Trainer(find_kind(config.kind), config, torch.ones(2, width), together=together)
        trainer.load_state(state)
        return trainer
    except (SafetensorError, OSError, KeyError) as error:
        raise DictionaryError(f"{state}: broken state ({error}). Next: remove it and start again.") from error


class _Progress:
    """Tokens, rate, time left, and the quality of the dictionary furthest from done."""

    def __init__(self) -> None:
        self.meter: Meter | None = None

    def show(self, trainers: Sequence[Trainer]) -> None:
        trainer = max(trainers, key=lambda each: each.config.num_steps - each.done)
        if trainer.together and not is_first():
            return
        if self.meter is None:
            several = "dictionary" if len(trainers) == 1 else f"{len(trainers)} dictionaries"
            total = max(each.config.num_steps * each.config.batch_tokens for each in trainers)
            self.meter = Meter(several, total, "tokens")
            self.meter.done = max(0, trainer.tokens - trainer.config.batch_tokens)
        note = ""
        if trainer.done % 10 == 0:
            found = trainer.metrics()
            note = f"FVU {found['fvu']:.3f} L0 {found['l0']:.1f} dead {found['dead']:.1%}"
        self.meter.advance(max(0.0, max(each.tokens for each in trainers) - self.meter.done), note)

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()
