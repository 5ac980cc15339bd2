"""Where a dictionary's training tokens come from: harvested in chunks, shuffled, replayed exactly on resume.

A chunk holds at most `buffer_tokens` activations in memory and is trained on `passes` times. Which texts a chunk holds depends
only on the seed and the texts' lengths, never on the run so far, so that a resumed run skips finished chunks without touching the
model and sees the same batches in the same order. Position 0 is left out: in many models its activation is an outlier many
times the usual norm that would take over scale and centre.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fairlead.activations import iter_activations
from fairlead.core.errors import DictionaryError
from fairlead.data import Encoded
from fairlead.dictionaries.config import DictionaryConfig

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


def iter_chunk_batches(
    acts_ND: Tensor, *, batch_tokens: int, passes: int, seed: int, skip: int = 0
) -> Iterator[Tensor]:
    """Shuffled batches `[batch_tokens, D]` of a chunk, `passes` times over; the ragged end of a pass is dropped.

    Args:
        skip: Batches to leave out at the start (already trained on).
    """
    num = acts_ND.shape[0]
    size = min(batch_tokens, num)
    done = 0
    for number in range(passes):
        order = torch.randperm(num, generator=torch.Generator().manual_seed(seed * 7_919 + number))
        for start in range(0, num - size + 1, size):
            done += 1
            if done > skip:
                yield acts_ND[order[start : start + size]]


def batches_in_chunk(num_tokens: int, *, batch_tokens: int, passes: int) -> int:
    """How many batches `iter_chunk_batches` yields."""
    return passes * (num_tokens // min(batch_tokens, num_tokens))


def harvest(
    model: Model,
    encoded: Sequence[Encoded],
    site: Site,
    *,
    rows: Sequence[int],
    batch_size: int = 64,
    on_tokens: Callable[[int], None] | None = None,
) -> Tensor:
    """Activations `[N, D]` (float32, CPU) at every position but the first of the chosen texts, in the order of the batches."""
    parts = []
    chosen = [encoded[row] for row in rows]
    for acts, _, position in iter_activations(model, chosen, site, tokens="all", batch_size=batch_size):
        part = acts[(position > 0).to(acts.device)].detach().float().cpu()
        parts.append(part)
        if on_tokens is not None:
            on_tokens(part.shape[0])
    return torch.cat(parts)


def iter_training_batches(
    model: Model,
    encoded: Sequence[Encoded],
    site: Site,
    config: DictionaryConfig,
    *,
    skip_steps: int = 0,
    on_harvest: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Endless batches of activations; the first `skip_steps` are skipped, whole chunks of them without running the model."""
    lengths = [max(0, len(row.input_ids) - 1) for row in encoded]
    for chunk in plan_chunks(lengths, buffer_tokens=config.buffer_tokens, seed=config.seed):
        num = batches_in_chunk(chunk.num_tokens, batch_tokens=config.batch_tokens, passes=config.passes)
        if skip_steps >= num:
            skip_steps -= num
            continue
        acts = harvest(model, encoded, site, rows=chunk.rows, on_tokens=on_harvest)
        yield from iter_chunk_batches(
            acts,
            batch_tokens=config.batch_tokens,
            passes=config.passes,
            seed=config.seed * 100_003 + chunk.index,
            skip=skip_steps,
        )
        skip_steps = 0
