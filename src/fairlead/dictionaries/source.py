"""Where a dictionary's training tokens come from: harvested in chunks, shuffled, replayed exactly on resume.

A chunk is at most `buffer_tokens` activations, trained on `passes` times. They lie in one of two buffers that are allocated once, in the
model's dtype and on its device, one tensor a site; while the dictionaries train on one, a thread fills the other (prefetch). Which texts a
chunk holds, where in the buffer each token lies and the order of the batches depend only on the seed, the run's length and the texts'
lengths, never on the run so far, so that a resumed run skips finished chunks without touching the model and sees the same batches in the
same order; so does each of several processes, which harvests its share of a chunk's texts and takes its own tokens of every batch. The
chunk in which the (longest) run ends holds no more texts than it still needs.
Position 0 is left out: in many models its activation is an outlier many times the usual norm that would take over scale and centre.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from fairlead.activations import iter_site_activations
from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.data import Encoded, PackedTexts
from fairlead.dictionaries.config import DictionaryConfig, HarvestType

if TYPE_CHECKING:
    from fairlead.core.site import Site
    from fairlead.models import Model


class Chunk(NamedTuple):
    """Texts whose tokens are shuffled together.

    Attributes:
        index: Place in the sequence of chunks.
        rows: Indices of the texts.
        num_tokens: Tokens they hold, position 0 left out.
    """

    index: int
    rows: tuple[int, ...]
    num_tokens: int


class Source(Protocol):
    """Gives the activations of texts at some sites: a model, or a store (`fairlead.activations.ActivationStore`)."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each text, the first included."""
        ...

    def iter_rows(self, rows: Sequence[int], sites: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Of each of these texts, in any order: its index, and site to activations `[length, d]`, in the dtype they have."""
        ...


class ModelSource:
    """The activations of texts, by forward passes that end at the deepest site.

    Args:
        model: The model.
        encoded: The texts.
        batch_size: Texts per forward pass.
        dtype: "model", or "bfloat16": a copy of the model in bfloat16 gives them, in bfloat16. Faster where the hardware has such
            matmuls, half the memory of the buffers, and slightly other activations (norms and attention's softmax stay in float32).
    """

    def __init__(
        self,
        model: Model,
        encoded: Sequence[Encoded],
        *,
        batch_size: int = 64,
        dtype: HarvestType = "model",
    ) -> None:
        self.model = low_copy(model) if dtype == "bfloat16" else model
        self.encoded, self.batch_size = encoded, batch_size
        self.lengths = encoded.lengths if isinstance(encoded, PackedTexts) else [len(row) for row in encoded]

    def iter_rows(self, rows: Sequence[int], sites: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """See `Source`; longest first."""
        order = sorted(rows, key=lambda row: -self.lengths[row])
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            texts = [self.encoded[row] for row in chosen]
            (found,) = iter_site_activations(self.model, texts, sites, batch_size=self.batch_size)
            for place, row in enumerate(chosen):
                yield row, {site: value[place, : self.lengths[row]] for site, value in found.acts.items()}


def low_copy(model: Model) -> Model:
    """The model itself where it is in bfloat16, else a copy that is."""
    if model.dtype == torch.bfloat16:
        return model
    hf = copy.deepcopy(model.hf)
    torch.nn.Module.to(hf, torch.bfloat16)
    return type(model)(hf, model.tokenizer, model.name)


def check_harvest_dtype(config: DictionaryConfig, where: object) -> None:
    """Confirm that nothing is asked of a harvest that was made before.

    Raises:
        ConfigError: `harvest_dtype` is not "model", but a store is read.
    """
    if config.harvest_dtype != "model":
        raise ConfigError(
            f"{where}: a store holds activations in the type in which they were harvested, but harvest_dtype is {config.harvest_dtype}. "
            "Next: leave it out, or pass the texts."
        )


def plan_chunks(lengths: Sequence[int], *, buffer_tokens: int, seed: int) -> Iterator[Chunk]:
    """Endless chunks over shuffled texts; each epoch is shuffled anew and the last chunk of an epoch may be short.

    Args:
        lengths: Usable tokens of each text.
        buffer_tokens: A chunk is closed when the next text would not fit.
        seed: Order of the texts.
    """
    if not any(lengths):
        raise DictionaryError("no text has two tokens or more. Next: pass data with longer texts.")
    epoch, index = 0, 0
    while True:
        order = torch.randperm(
            len(lengths), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        ).tolist()
        rows: list[int] = []
        held = 0
        for row in order:
            if rows and held + lengths[row] > buffer_tokens:
                yield Chunk(index, tuple(rows), held)
                index, rows, held = index + 1, [], 0
            if lengths[row]:
                rows.append(row)
                held += lengths[row]
        if rows:
            yield Chunk(index, tuple(rows), held)
            index += 1
        epoch += 1


def iter_chunk_orders(
    num: int, *, batch_tokens: int, passes: int, seed: int, skip: int = 0
) -> Iterator[Tensor]:
    """Which of a chunk's `num` tokens each batch holds, `passes` times over; the ragged end of a pass is dropped.

    Args:
        skip: Batches to leave out at the start (already trained on).
    """
    size = min(batch_tokens, num)
    done = 0
    for number in range(passes):
        order = torch.randperm(num, generator=torch.Generator().manual_seed(seed * 7_919 + number))
        for start in range(0, num - size + 1, size):
            done += 1
            if done > skip:
                yield order[start : start + size]


def batches_in_chunk(num_tokens: int, *, batch_tokens: int, passes: int) -> int:
    """How many batches `iter_chunk_orders` yields."""
    return passes * (num_tokens // min(batch_tokens, num_tokens))


class Buffer:
    """Activations of a chunk at some sites, allocated once.

    Attributes:
        acts: Site to `[capacity, d]`, in the dtype and on the device of the activations; empty before the first use.
        slot: `[tokens of the chunk]` long: where in `acts` each token lies, -1 where another process holds it.
    """

    def __init__(self, sites: Sequence[str], capacity: int) -> None:
        self.sites, self.capacity = tuple(sites), capacity
        self.acts: dict[str, Tensor] = {}
        self.slot = torch.empty(0, dtype=torch.long)

    @torch.no_grad()
    def fill(
        self,
        source: Source,
        chunk: Chunk,
        *,
        part: tuple[int, int] = (0, 1),
        go_on: Callable[[], bool] = lambda: True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        """Harvest a chunk into the buffer.

        Args:
            part: This process's number and how many there are: every n-th text is its own.
            go_on: Asked between texts; False ends the work.
            on_tokens: Told of every text's tokens.
        """
        order = sorted(chunk.rows, key=lambda row: -source.lengths[row])
        own = order[part[0] :: part[1]]
        self.slot = torch.full((chunk.num_tokens,), -1)
        starts, place = {}, 0
        for row in order:
            starts[row] = place
            place += source.lengths[row] - 1
        slots, used = {}, 0
        for row in own:
            num = source.lengths[row] - 1
            slots[row] = used
            self.slot[starts[row] : starts[row] + num] = torch.arange(used, used + num)
            used += num
        for row, acts in source.iter_rows(own, self.sites):
            if not go_on():
                return
            num = source.lengths[row] - 1
            for site in self.sites:
                found = acts[site]
                if site not in self.acts:
                    self.acts[site] = torch.empty(
                        self.capacity, found.shape[-1], dtype=found.dtype, device=found.device
                    )
                self.acts[site][slots[row] : slots[row] + num] = found[1:]
            if on_tokens is not None:
                on_tokens(num)

    def take(self, order: Tensor) -> dict[str, Tensor]:
        """Activations `[n, d]` by site of the tokens that this process holds of a batch."""
        slots = self.slot[order]
        slots = slots[slots >= 0]
        return {site: acts[slots.to(acts.device)] for site, acts in self.acts.items()}


def harvest(
    model: Model,
    encoded: Sequence[Encoded],
    site: Site,
    *,
    rows: Sequence[int],
    batch_size: int = 64,
    on_tokens: Callable[[int], None] | None = None,
) -> Tensor:
    """Activations `[N, D]` in the model's dtype at every position but the first of the chosen texts, longest text first."""
    source = ModelSource(model, encoded, batch_size=batch_size)
    num = sum(max(0, source.lengths[row] - 1) for row in rows)
    buffer = Buffer([str(site)], num)
    buffer.fill(source, Chunk(0, tuple(rows), num), on_tokens=on_tokens)
    return buffer.acts[str(site)]


def iter_training_batches(
    source: Source,
    sites: Sequence[str],
    config: DictionaryConfig,
    *,
    skip_steps: int = 0,
    part: tuple[int, int] = (0, 1),
    on_harvest: Callable[[int], None] | None = None,
) -> Generator[dict[str, Tensor], None, None]:
    """Endless batches of activations by site; the first `skip_steps` are skipped, whole chunks of them without a harvest.

    Args:
        config: `num_tokens` says when no further chunk needs to be harvested; the batches themselves do not end.
        part: This process's number and how many there are; each gets its own tokens of every batch.
    """
    lengths = [max(0, length - 1) for length in source.lengths]
    capacity = min(max(config.buffer_tokens, *lengths, 1), max(sum(lengths), 1))
    buffers = [Buffer(sites, capacity), Buffer(sites, capacity)]
    stopped = False

    def work(chunk: Chunk) -> Buffer:
        buffer = buffers[chunk.index % 2]
        buffer.fill(source, chunk, part=part, go_on=lambda: not stopped, on_tokens=on_harvest)
        return buffer

    needed = _needed_chunks(lengths, config, skip_steps)
    with ThreadPoolExecutor(1, thread_name_prefix="harvest") as pool:
        try:
            chunk, skip, last = next(needed)
            ready: Future[Buffer] | None = None
            while True:
                buffer = ready.result() if ready is not None else work(chunk)
                following = next(needed)
                ready = pool.submit(work, following[0]) if prefetches(config) and not last else None
                for order in iter_chunk_orders(
                    chunk.num_tokens,
                    batch_tokens=config.batch_tokens,
                    passes=config.passes,
                    seed=config.seed * 100_003 + chunk.index,
                    skip=skip,
                ):
                    yield buffer.take(order)
                chunk, skip, last = following
        finally:
            stopped = True


def prefetches(config: DictionaryConfig) -> bool:
    """Whether a thread harvests ahead: as told, else where there is an accelerator.

    On a CPU both sides can use all cores by themselves; side by side they only get in each other's way.
    """
    return torch.cuda.is_available() if config.prefetch is None else config.prefetch


def _cut(chunk: Chunk, lengths: Sequence[int], steps: int, batch_tokens: int) -> Chunk:
    """The first texts of a chunk, where the run ends within the first pass over them; else the chunk."""
    if not 0 < steps < chunk.num_tokens // min(batch_tokens, chunk.num_tokens):
        return chunk
    rows, held = [], 0
    for row in chunk.rows:
        if held >= steps * batch_tokens:
            break
        rows.append(row)
        held += lengths[row]
    return Chunk(chunk.index, tuple(rows), held)


def _needed_chunks(
    lengths: Sequence[int], config: DictionaryConfig, skip_steps: int
) -> Iterator[tuple[Chunk, int, bool]]:
    """Chunks not yet done, batches of each to skip, and whether the run ends in it."""
    done = 0
    for chunk in plan_chunks(lengths, buffer_tokens=config.buffer_tokens, seed=config.seed):
        chunk = _cut(chunk, lengths, config.num_steps - done, config.batch_tokens)
        num = batches_in_chunk(chunk.num_tokens, batch_tokens=config.batch_tokens, passes=config.passes)
        done += num
        if skip_steps < num:
            yield chunk, skip_steps, done >= config.num_steps
        skip_steps = max(0, skip_steps - num)
