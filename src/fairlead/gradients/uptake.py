"""What a data set would teach: uptake per latent, streamed over any number of tokens.

    uptake_f = mean over loss tokens of -<dL/dh, d_f> a_f(h)        (DESIGN 5.1)

L is the sum of token losses, positions are all those that some loss depends on (prompt and response), and the mean is
over loss tokens: the sum of contributions divided by the number of loss tokens, so that batch size and padding do not matter.
Beside the sums, each example is added with random weights (resampling.py) for intervals and sign stability, and the strongest units
of each example are kept in a table. A unit is a concept (a group of latents) or, without concepts, a latent.

Memory: a few dozen vectors of length d_dict and `table_width` numbers per example. State is saved every `save_every`
batches and a resumed run gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.errors import ConfigError, DataError, DictionaryError
from fairlead.core.progress import Meter, quiet, track
from fairlead.core.records import Concept
from fairlead.core.run import atomic_path, sha256_json
from fairlead.core.workers import worker_pool
from fairlead.data import Batch, Encoded, iter_batches
from fairlead.dictionaries import Dictionary
from fairlead.gradients.attribution import SiteGradient, remainder_parts, site_gradient, token_uptake
from fairlead.gradients.resampling import half_signs, poisson_weights

if TYPE_CHECKING:
    from fairlead.models import Model

NUM_RESAMPLES = 200
NUM_HALVES = 20
CARRIES = 0.01  # an example carries a unit that takes at least this share of its absolute uptake
_SUMS = (
    "sum_F",
    "mass_F",
    "act_F",
    "act_response_F",
    "boot_RF",
    "boot_tokens_R",
    "half_HF",
    "carried_U",
    "fires_U",
    "numbers",
)
_TABLE = ("table_index", "table_unit", "table_value", "example_loss", "example_tokens")


@dataclass
class Uptake:
    """Sums over a data set; the properties divide.

    Attributes:
        units: Latents of each unit of the per-example table.
        sum_F: `[d_dict]` sum of contributions.
        mass_F: `[d_dict]` sum of absolute contributions, token by token: the gradient's traffic through each latent.
        act_F: `[d_dict]` sum of activations over all positions that some loss depends on.
        act_response_F: `[d_dict]` the same over response tokens.
        boot_RF: `[NUM_RESAMPLES, d_dict]` the same with bootstrap weights.
        boot_tokens_R: `[NUM_RESAMPLES]` loss tokens with bootstrap weights.
        half_HF: `[NUM_HALVES, d_dict]` contributions with the sign of the half: first half minus second.
        carried_U: `[unit]` examples that carry the unit (at least `CARRIES` of the example's absolute uptake, positive).
        fires_U: `[unit]` examples with the unit active at a response token.
        numbers: `[loss, tokens, examples, outside, total, chance]`.
        table_index: `[example]` index in the data.
        table_unit: `[example, width]` strongest units by absolute uptake.
        table_value: `[example, width]` their contributions (sums over the example's tokens).
        example_loss: `[example]` summed loss.
        example_tokens: `[example]` loss tokens.
    """

    units: tuple[tuple[int, ...], ...]
    sum_F: Tensor
    mass_F: Tensor
    act_F: Tensor
    act_response_F: Tensor
    boot_RF: Tensor
    boot_tokens_R: Tensor
    half_HF: Tensor
    carried_U: Tensor
    fires_U: Tensor
    numbers: Tensor
    table_index: Tensor
    table_unit: Tensor
    table_value: Tensor
    example_loss: Tensor
    example_tokens: Tensor

    @property
    def num_tokens(self) -> int:
        """Loss tokens seen."""
        return int(self.numbers[1])

    @property
    def num_examples(self) -> int:
        """Examples seen."""
        return int(self.numbers[2])

    @property
    def loss(self) -> float:
        """Mean loss per token, nats."""
        return float(self.numbers[0] / self.numbers[1].clamp_min(1))

    @property
    def remainder(self) -> float:
        """Share of the squared gradient outside the span of the latents active at each token (`remainder_parts`)."""
        return float(self.numbers[3] / self.numbers[4].clamp_min(1e-30))

    @property
    def chance_remainder(self) -> float:
        """What a random subspace of the same dimensions would leave outside."""
        return float(self.numbers[5] / self.numbers[4].clamp_min(1e-30))

    @property
    def per_latent(self) -> Tensor:
        """Uptake `[d_dict]`."""
        return self.sum_F / self.numbers[1].clamp_min(1)

    def of(self, latents: Sequence[int]) -> float:
        """Uptake of a group of latents."""
        return float(self.per_latent[list(latents)].sum())

    def resampled(self, latents: Sequence[int]) -> Tensor:
        """Bootstrap values `[NUM_RESAMPLES]` of a group's uptake."""
        return self.boot_RF[:, list(latents)].sum(-1) / self.boot_tokens_R.clamp_min(1)

    def spread(self, latents: Sequence[int]) -> float:
        """Standard deviation of a group's uptake over single examples: the bootstrap's standard error times sqrt(examples)."""
        return float(self.resampled(latents).std()) * self.num_examples**0.5

    def stability(self, latents: Sequence[int]) -> float:
        """Share of random split halves whose sign agrees with the whole, counted over both halves (1: always)."""
        whole = self.sum_F[list(latents)].sum()
        difference = self.half_HF[:, list(latents)].sum(-1)
        halves = torch.cat([(whole + difference) / 2, (whole - difference) / 2])
        return float((torch.sign(halves) == torch.sign(whole)).float().mean())

    def unit_index(self, latents: Sequence[int]) -> list[int]:
        """Units that make up a group of latents (one where the group was measured as a unit)."""
        if not hasattr(self, "_where"):
            self._where = {latent: place for place, unit in enumerate(self.units) for latent in unit}
        return sorted({self._where[latent] for latent in latents if latent in self._where})

    def examples_of(self, latents: Sequence[int], num: int) -> list[tuple[int, float]]:
        """The `num` examples (index in the data, uptake per loss token) on which a group is pushed up most."""
        units = torch.tensor(self.unit_index(latents))
        value = torch.where(torch.isin(self.table_unit, units), self.table_value, 0.0).sum(
            -1
        ) / self.example_tokens.clamp_min(1)
        best = value.topk(min(num, value.numel()))
        return [
            (int(self.table_index[i]), float(v))
            for v, i in zip(best.values, best.indices, strict=True)
            if v > 0
        ]


def measure_uptake(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 32,
    concepts: Sequence[Concept] = (),
    on_batch: Callable[[int], None] | None = None,
    seed: int = 0,
    table_width: int = 64,
    remainder_tokens: int = 256,
    state: str | Path | None = None,
    save_every: int = 50,
    label: str = "uptake",
    workers: int = 1,
) -> Uptake:
    """Measure the uptake of every latent on a data set at the model's present weights.

    Args:
        model: The model; its weights and their `.grad` are left as they are.
        dictionary: Made for this model (checked); its site is where the gradient is read.
        encoded: The data.
        batch_size: Examples a forward pass; does not change the result.
        concepts: Groups whose per-example uptake is kept; without them latents are.
        on_batch: Called with the number of examples after each batch.
        seed: Of the bootstrap and the halves.
        table_width: Units kept per example.
        remainder_tokens: Tokens a batch on which the remainder is measured.
        state: File in which unfinished work is kept, continued from when it belongs to the same model, dictionary and data, and
            removed at the end.
        save_every: Batches between saved states.
        label: Of the progress line.
        workers: Processes of one thread each that share the data; the result is the same but for the sampled remainder.

    Raises:
        DictionaryError: The dictionary was made for another model.
        DataError: No data; or the loss of a batch is not finite.
    """
    dictionary.check(model)
    if not encoded:
        raise DataError("no example to measure. Next: pass at least one row.")
    if workers > 1 and len(encoded) >= 2 * workers:
        how = {
            "batch_size": batch_size,
            "concepts": concepts,
            "seed": seed,
            "table_width": table_width,
            "remainder_tokens": remainder_tokens,
            "save_every": save_every,
        }
        return _in_parts(model, dictionary, encoded, how, state=state, label=label, workers=workers)
    stream = _Stream(
        dictionary, concepts, table_width=table_width, remainder_tokens=remainder_tokens, seed=seed
    )
    state = Path(state) if state is not None else None
    identity = ""
    if state is not None:
        identity = _identity(model, dictionary, encoded, stream.units, batch_size, seed, table_width)
        stream.load(state, identity)
    meter = Meter(label, len(encoded), "examples")
    try:
        for number, batch in enumerate(iter_batches(encoded, batch_size=batch_size, pad_id=model.pad_id)):
            num = len(batch.index)
            if number >= stream.batches:
                batch = batch.to(model.device)
                stream.add(batch, _finite(site_gradient(model, batch, dictionary.site), batch))
                if state is not None and stream.batches % save_every == 0:
                    stream.save(state, identity)
            meter.advance(num)
            if on_batch is not None:
                on_batch(num)
    finally:
        meter.close()
    if state is not None:
        state.unlink(missing_ok=True)
    return stream.result()


def add_up(parts: Sequence[Uptake]) -> Uptake:
    """The uptake of a data set from those of its parts, measured with the same concepts."""
    sums = {name: sum(getattr(part, name) for part in parts[1:]) + getattr(parts[0], name) for name in _SUMS}
    table = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TABLE}
    order = torch.argsort(table["table_index"])
    return Uptake(units=parts[0].units, **sums, **{name: value[order] for name, value in table.items()})


def _in_parts(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    how: dict[str, Any],
    *,
    state: str | Path | None,
    label: str,
    workers: int,
) -> Uptake:
    """Every process measures its share; one that was interrupted goes on from its own state."""
    from fairlead.models.loading import reloadable

    with TemporaryDirectory() as scratch, worker_pool(workers) as pool:
        source = reloadable(model, Path(scratch) / "model")
        jobs = [
            pool.submit(
                _part, source, dictionary, encoded[n::workers], how, f"{state}.{n}" if state else None
            )
            for n in range(workers)
        ]
        return add_up([job.result() for job in track(jobs, label, unit="parts")])


def _part(
    source: str, dictionary: Dictionary, encoded: Sequence[Encoded], how: dict[str, Any], state: str | None
) -> Uptake:
    from fairlead.models import load_model

    with quiet():
        return measure_uptake(load_model(source), dictionary, encoded, state=state, **how)


class _Stream:
    """The accumulators of `measure_uptake`."""

    def __init__(
        self,
        dictionary: Dictionary,
        concepts: Sequence[Concept],
        *,
        table_width: int,
        remainder_tokens: int,
        seed: int,
    ) -> None:
        self.dictionary, self.seed, self.remainder_tokens = dictionary, seed, remainder_tokens
        self.units, self.unit_of = _units(dictionary.d_dict, concepts)
        self.width = min(table_width, len(self.units))
        d_dict, double = dictionary.d_dict, torch.float64
        self.sums = {
            "sum_F": torch.zeros(d_dict, dtype=double),
            "mass_F": torch.zeros(d_dict, dtype=double),
            "act_F": torch.zeros(d_dict, dtype=double),
            "act_response_F": torch.zeros(d_dict, dtype=double),
            "boot_RF": torch.zeros(NUM_RESAMPLES, d_dict, dtype=double),
            "boot_tokens_R": torch.zeros(NUM_RESAMPLES, dtype=double),
            "half_HF": torch.zeros(NUM_HALVES, d_dict, dtype=double),
            "carried_U": torch.zeros(len(self.units), dtype=double),
            "fires_U": torch.zeros(len(self.units), dtype=double),
            "numbers": torch.zeros(6, dtype=double),
        }
        self.table: dict[str, list[Tensor]] = {name: [] for name in _TABLE}
        self.batches = 0

    def add(self, batch: Batch, found: SiteGradient) -> None:
        """Add one batch."""
        pairs_uptake, pairs, grad_ND = token_uptake(self.dictionary, batch, found)
        num, d_dict = len(batch.index), self.dictionary.d_dict
        per_example = torch.zeros(num * d_dict, dtype=torch.float64)
        flat = (pairs_uptake.row * d_dict + pairs_uptake.latent).cpu()
        per_example = per_example.index_add_(0, flat, pairs_uptake.value.double().cpu()).view(num, d_dict)
        tokens = batch.loss_mask[:, 1:].sum(-1).double().cpu()
        boot = poisson_weights(batch.index, NUM_RESAMPLES, seed=self.seed)
        sums = self.sums
        sums["sum_F"] += per_example.sum(0)
        sums["boot_RF"] += boot @ per_example
        sums["boot_tokens_R"] += boot @ tokens
        sums["half_HF"] += half_signs(batch.index, NUM_HALVES, seed=self.seed) @ per_example

        in_units = torch.zeros(num, len(self.units), dtype=torch.float64).index_add_(
            1, self.unit_of, per_example
        )
        sums["carried_U"] += (
            in_units >= CARRIES * in_units.abs().sum(-1, keepdim=True).clamp_min(1e-30)
        ).sum(0)
        fires = torch.zeros(num, len(self.units), dtype=torch.bool)
        latent, act = pairs_uptake.latent.cpu(), pairs_uptake.act.double().cpu()
        response = batch.loss_mask[pairs_uptake.row, pairs_uptake.position].cpu()
        fires[pairs_uptake.row.cpu()[response], self.unit_of[latent[response]]] = True
        sums["mass_F"].index_add_(0, latent, pairs_uptake.value.abs().double().cpu())
        sums["act_F"].index_add_(0, latent, act)
        sums["act_response_F"].index_add_(0, latent[response], act[response])
        sums["fires_U"] += fires.sum(0)

        outside, total, chance = remainder_parts(
            self.dictionary, pairs, grad_ND, max_tokens=self.remainder_tokens
        )
        sums["numbers"] += torch.tensor(
            [float(found.losses.sum()), found.num_tokens, num, outside, total, chance], dtype=torch.float64
        )
        top = in_units.abs().topk(self.width, dim=-1).indices
        self.table["table_index"].append(batch.index.cpu())
        self.table["table_unit"].append(top)
        self.table["table_value"].append(in_units.gather(1, top).float())
        self.table["example_loss"].append(found.losses.cpu())
        self.table["example_tokens"].append(tokens)
        self.batches += 1

    def result(self) -> Uptake:
        """The finished sums, examples in the order of the data."""
        table = {name: torch.cat(parts) for name, parts in self.table.items()}
        order = torch.argsort(table["table_index"])
        return Uptake(units=self.units, **self.sums, **{name: value[order] for name, value in table.items()})

    def save(self, path: Path, identity: str) -> None:
        """Keep the unfinished sums."""
        tensors = {**self.sums, **{name: torch.cat(parts) for name, parts in self.table.items()}}
        with atomic_path(path) as temporary:
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"identity": identity, "batches": str(self.batches)},
            )

    def load(self, path: Path, identity: str) -> None:
        """Continue from kept sums where they belong to the same work."""
        if not path.is_file():
            return
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != identity:
                    return
                self.sums = {name: file.get_tensor(name) for name in _SUMS}
                self.table = {name: [file.get_tensor(name)] for name in _TABLE}
                self.batches = int(metadata["batches"])
        except (SafetensorError, OSError, KeyError) as error:
            raise DictionaryError(
                f"{path}: broken state ({error}). Next: remove it and start again."
            ) from error


def save_uptake(uptake: Uptake, path: str | Path) -> None:
    """Write an uptake (sums and per-example table) as one safetensors file."""
    tensors = {name: getattr(uptake, name).contiguous() for name in (*_SUMS, *_TABLE)}
    tensors["units_latent"] = torch.tensor(
        [latent for unit in uptake.units for latent in unit], dtype=torch.long
    )
    tensors["units_size"] = torch.tensor([len(unit) for unit in uptake.units], dtype=torch.long)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "fairlead.uptake", "version": "1"})


def load_uptake(path: str | Path) -> Uptake:
    """Read what `save_uptake` wrote.

    Raises:
        ConfigError: Missing or broken file.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in (*_SUMS, *_TABLE)}
            latent, size = file.get_tensor("units_latent"), file.get_tensor("units_size").tolist()
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot read the uptake ({error}). Next: repeat the preview.") from error
    return Uptake(units=tuple(tuple(part.tolist()) for part in latent.split(size)), **tensors)


def _units(d_dict: int, concepts: Sequence[Concept]) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    if not concepts:
        return tuple((latent,) for latent in range(d_dict)), torch.arange(d_dict)
    unit_of = torch.full((d_dict,), -1, dtype=torch.long)
    for place, concept in enumerate(concepts):
        members = torch.tensor(concept.latents, dtype=torch.long)
        if members.numel() and int(members.max()) >= d_dict:
            raise DictionaryError(
                f"concept {concept.id} names latent {int(members.max())}, but the dictionary has {d_dict}."
            )
        unit_of[members] = place
    rest = (unit_of < 0).nonzero().squeeze(-1)
    unit_of[rest] = len(concepts)
    units = [tuple((unit_of == place).nonzero().squeeze(-1).tolist()) for place in range(len(concepts))]
    return (*units, tuple(rest.tolist())), unit_of


def _finite(found: SiteGradient, batch: Batch) -> SiteGradient:
    if not (torch.isfinite(found.grad).all() and torch.isfinite(found.losses).all()):
        raise DataError(
            f"loss or gradient is not finite on a batch that holds examples {batch.index[:4].tolist()}... "
            "Next: check the model's weights, or load it with dtype float32."
        )
    return found


def _identity(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    units: object,
    batch_size: int,
    seed: int,
    width: int,
) -> str:
    texts = sha256_json([[row.input_ids, [int(flag) for flag in row.loss_mask]] for row in encoded])
    groups = sha256_json([list(unit) for unit in units])  # type: ignore[attr-defined]
    return sha256_json([model.fingerprint, dictionary.sha256, texts, groups, batch_size, seed, width])
