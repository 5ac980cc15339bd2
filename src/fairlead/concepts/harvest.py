"""One pass over a corpus: statistics of every concept and the stretches worth looking at, in bounded memory.

Kept per concept, whatever the number of tokens: sums over tokens; the stretches with the strongest peak; a uniform draw of the
stretches in which it acts, with peak and mean (from which quantile examples and labels are made); near misses, the stretches in which
it does not act although some token lies furthest along its direction. Kept once: a uniform draw of all stretches, with every
concept's mean in them. Every draw is by a hash of the stretch's number (bottom-k sampling), so that an interrupted pass goes on
exactly, and a fifth of the stretches, again by hash, is held out: labels never see them, scores use nothing else.

The state is a dict of tensors (`save`, `load` as safetensors).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairlead.concepts.corpus import Block, GroupSums, iter_blocks
from fairlead.core.progress import Meter
from fairlead.core.run import atomic_path, sha256_json
from fairlead.data import Encoded
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

NUM_DRAWN = 192
NUM_TOP = 24
NUM_NEAR = 24
_SAMPLE_CELLS = 24_000_000
_LARGE = 1 << 62
_EMPTY = -1
_CHUNK_ROWS = 512
_SAVE_EVERY = 30.0  # seconds


def mix(numbers: Tensor, salt: int) -> Tensor:
    """A hash of int64 numbers, as non-negative int64 (splitmix64's finaliser; overflow wraps)."""
    z = numbers + (salt * 0x9E3779B97F4A7C15 + 0x1234567) % (1 << 62)
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return (z ^ ((z >> 31) & ((1 << 33) - 1))) & ((1 << 62) - 1)


def is_held_out(numbers: Tensor | np.ndarray) -> np.ndarray:
    """Whether stretches are held out from labels: a fifth of them, by hash."""
    found = torch.as_tensor(numbers, dtype=torch.long)
    return (mix(found, 77) % 5 == 0).numpy()


class Harvest:
    """The running state of a pass; see the module.

    Args:
        directions: `[concept, d]` unit directions, for near misses.
        seed: Of the draws.
        max_sample: Stretches in the uniform draw of all (fewer where there are very many concepts).
    """

    def __init__(self, directions: Tensor, *, seed: int = 0, max_sample: int = 3000) -> None:
        num = directions.shape[0]
        self.directions, self.seed = directions.float(), seed
        self.num_sample = max(200, min(max_sample, _SAMPLE_CELLS // max(num, 1)))
        zero = {name: torch.zeros(num, dtype=torch.float64) for name in _SUMS}
        self.state: dict[str, Tensor] = {
            **zero,
            "counts": torch.zeros(3, dtype=torch.long),  # tokens, answer tokens, stretches
            "next_row": torch.zeros(1, dtype=torch.long),
            "max": torch.zeros(num),
            "top_value": torch.full((NUM_TOP, num), -1.0),
            "top_number": torch.full((NUM_TOP, num), _EMPTY, dtype=torch.long),
            "drawn_key": torch.full((NUM_DRAWN, num), _LARGE, dtype=torch.long),
            "drawn_number": torch.full((NUM_DRAWN, num), _EMPTY, dtype=torch.long),
            "drawn_peak": torch.zeros(NUM_DRAWN, num),
            "drawn_mean": torch.zeros(NUM_DRAWN, num),
            "sample_key": torch.full((self.num_sample,), _LARGE, dtype=torch.long),
            "sample_number": torch.full((self.num_sample,), _EMPTY, dtype=torch.long),
            "sample_mean": torch.zeros(self.num_sample, num),
        }
        for side in ("shown", "held"):
            self.state[f"near_{side}_value"] = torch.full((NUM_NEAR, num), -torch.inf)
            self.state[f"near_{side}_number"] = torch.full((NUM_NEAR, num), _EMPTY, dtype=torch.long)

    def add(self, block: Block) -> None:
        """Take in a block of stretches."""
        state, acts, used = self.state, block.acts, block.used
        lengths = used.sum(1)
        flat = acts[used]
        state["active"] += (flat > 0).double().sum(0)
        state["total"] += flat.double().sum(0)
        state["answers"] += acts[block.response].double().sum(0)
        state["counts"] += torch.tensor([flat.shape[0], int(block.response.sum()), used.shape[0]])
        peak, mean = acts.amax(1), acts.sum(1) / lengths[:, None].clamp_min(1)
        state["max"] = torch.maximum(state["max"], peak.amax(0))
        state["stretches"] += (peak > 0).double().sum(0)
        state["mean"] += mean.double().sum(0)
        state["square"] += mean.double().square().sum(0)
        held = torch.from_numpy(is_held_out(block.numbers))
        self._keep_top("top", torch.where(held[:, None], -1.0, peak), block.numbers)
        self._draw(peak, mean, block.numbers)
        near = self._nearness(block, peak)
        self._keep_top("near_shown", near.masked_fill(held[:, None], -torch.inf), block.numbers)
        self._keep_top("near_held", near.masked_fill(~held[:, None], -torch.inf), block.numbers)
        self._sample(mean, block.numbers)

    def _keep_top(self, name: str, value: Tensor, numbers: Tensor) -> None:
        values = torch.cat([self.state[f"{name}_value"], value])
        where = torch.cat([self.state[f"{name}_number"], numbers[:, None].expand_as(value)])
        best, order = values.topk(self.state[f"{name}_value"].shape[0], dim=0)
        self.state[f"{name}_value"], self.state[f"{name}_number"] = best, where.gather(0, order)

    def _draw(self, peak: Tensor, mean: Tensor, numbers: Tensor) -> None:
        column = torch.arange(peak.shape[1]) * 1_000_003
        key = mix(numbers[:, None] * 8191 + column, self.seed).masked_fill(peak <= 0, _LARGE)
        keys = torch.cat([self.state["drawn_key"], key])
        best, order = keys.topk(NUM_DRAWN, dim=0, largest=False)
        for name, new in (
            ("drawn_number", numbers[:, None].expand_as(peak)),
            ("drawn_peak", peak),
            ("drawn_mean", mean),
        ):
            self.state[name] = torch.cat([self.state[name], new]).gather(0, order)
        self.state["drawn_key"] = best

    def _sample(self, mean: Tensor, numbers: Tensor) -> None:
        keys = torch.cat([self.state["sample_key"], mix(numbers, self.seed + 1)])
        best, order = keys.topk(self.num_sample, largest=False)
        self.state["sample_number"] = torch.cat([self.state["sample_number"], numbers])[order]
        new = order >= self.num_sample
        kept = self.state["sample_mean"][order.clamp_max(self.num_sample - 1)]
        kept[new] = mean[order[new] - self.num_sample]
        self.state["sample_mean"], self.state["sample_key"] = kept, best

    def _nearness(self, block: Block, peak: Tensor) -> Tensor:
        along = (block.hidden.float() @ self.directions.T.to(block.hidden.device)).cpu()
        along = along.masked_fill(~block.used[..., None], -torch.inf).amax(1)
        return along.masked_fill(peak > 0, -torch.inf)

    def save(self, path: Path, *, identity: str) -> None:
        """Write the state, all or nothing."""
        with atomic_path(path) as temporary:
            save_file(
                {k: v.contiguous() for k, v in self.state.items()}, temporary, metadata={"identity": identity}
            )

    def load(self, path: Path, *, identity: str) -> bool:
        """Take up a saved state; False where it belongs to another harvest."""
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return False
            self.state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return True

    @property
    def num_tokens(self) -> int:
        """Tokens taken in."""
        return int(self.state["counts"][0])

    def drawn(self, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers, peaks and means of the stretches drawn for a concept."""
        there = (
            self.state["drawn_key"][:, place] < _LARGE
        )  # other slots may hold stretches in which it does not act
        names = ("drawn_number", "drawn_peak", "drawn_mean")
        number, peak, mean = (self.state[name][there, place].numpy() for name in names)
        return number, peak, mean

    def kept(self, name: str, place: int) -> list[int]:
        """Numbers of the stretches in `top`, `near_shown` or `near_held` of a concept, best first."""
        value, number = self.state[f"{name}_value"][:, place], self.state[f"{name}_number"][:, place]
        good = (number != _EMPTY) & torch.isfinite(value) & ((value > 0) | (not name.startswith("top")))
        return number[good].tolist()

    @property
    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers `[stretch]` and concept means `[stretch, concept]` of the uniform draw of all stretches."""
        there = self.state["sample_number"] != _EMPTY
        return self.state["sample_number"][there].numpy(), self.state["sample_mean"][there].numpy()


_SUMS = ("active", "total", "answers", "stretches", "mean", "square")


def concept_directions(decoder: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """`[concept, d]`: unit sums of the concepts' decoder rows."""
    rows = torch.stack([decoder[list(group)].float().sum(0) for group in groups])
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def run_harvest(
    path: Path,
    model: Model,
    dictionary: Dictionary,
    corpus: Sequence[Encoded],
    groups: Sequence[Sequence[int]],
    *,
    window: int,
    seed: int,
    max_tokens: int | None = None,
    label: str = "harvest",
) -> Harvest:
    """One pass over a corpus; its state is saved at `path` now and then, and taken up from there.

    Args:
        path: File of the state.
        corpus: Rows whose `index` is their place.
        groups: Latents of each concept.
        window: Tokens of a stretch.
        seed: Of the draws.
        max_tokens: Stop after so many.
        label: Of the progress display.
    """
    harvest = Harvest(concept_directions(dictionary.decoder.cpu(), groups), seed=seed)
    identity = sha256_json(
        [dictionary.sha256, model.fingerprint, [list(group) for group in groups], len(corpus), window, seed]
    )
    if path.is_file():
        harvest.load(path, identity=identity)
    sums = GroupSums(groups, dictionary.d_dict)
    start = int(harvest.state["next_row"])
    meter, saved = Meter(label, len(corpus), "rows"), time.monotonic()
    meter.done = start
    try:
        for first in range(start, len(corpus), _CHUNK_ROWS):
            rows = [corpus[place] for place in range(first, min(first + _CHUNK_ROWS, len(corpus)))]
            for block in iter_blocks(model, dictionary, rows, sums, window=window):
                harvest.add(block)
            harvest.state["next_row"][0] = first + len(rows)
            meter.advance(len(rows), f"{harvest.num_tokens:,} tokens")
            if max_tokens is not None and harvest.num_tokens >= max_tokens:
                break
            if time.monotonic() - saved > _SAVE_EVERY:
                harvest.save(path, identity=identity)
                saved = time.monotonic()
    finally:
        meter.close()
    harvest.save(path, identity=identity)
    return harvest
