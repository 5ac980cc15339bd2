"""An endless, shuffled stream of activations through a buffer of fixed size, for training dictionaries.

Steps: fill the buffer by forward passes over the data; draw batches from it in random order without
replacement; when half is drawn, write new activations over the drawn rows and draw a new order. Where all the
data fits in, the model runs over it once and every later epoch only draws a new order. The buffer is
allocated once, in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fairlead.activations.harvest import Tokens, iter_activations, num_tokens
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.site import Site
from fairlead.data import Encoded

if TYPE_CHECKING:
    from fairlead.models import Model


class ActivationStream:
    """Iterate over shuffled batches `[batch_tokens, d]`, without end.

    The same seed gives the same batches. Within an epoch that fits in the buffer no token comes twice.

    Attributes:
        site: Where the activations come from.
        num_tokens: Wanted tokens in the data.
        capacity: Rows of the buffer: `buffer_tokens`, or all the data where that is less.
        num_read: Tokens that forward passes have put into the buffer so far.
    """

    def __init__(
        self,
        model: Model,
        encoded: Sequence[Encoded],
        site: str | Site,
        *,
        buffer_tokens: int = 1 << 17,
        batch_tokens: int = 1024,
        seed: int = 0,
        tokens: Tokens = "all",
        batch_size: int = 32,
    ) -> None:
        """Allocate the buffer on first use; the settings are checked here.

        Args:
            model: The model; not changed.
            encoded: Encoded rows.
            site: Where.
            buffer_tokens: Rows of the buffer (memory: this times d times the size of the dtype).
            batch_tokens: Rows of a batch.
            seed: Of the order of rows and draws.
            tokens: "all" or "response".
            batch_size: Rows of text per forward pass.

        Raises:
            ConfigError: The buffer is smaller than two batches, or a size below 1.
            DataError: The data has no wanted token.
            SiteError: No such site.
        """
        if batch_tokens < 1 or batch_size < 1:
            raise ConfigError(f"batch_tokens {batch_tokens} and batch_size {batch_size} must be at least 1.")
        if buffer_tokens < 2 * batch_tokens:
            raise ConfigError(
                f"buffer_tokens is {buffer_tokens}; it must be at least twice batch_tokens "
                f"({batch_tokens}). Next: raise it."
            )
        model.resolved.place(site)
        self.site = Site.parse(site)
        self.num_tokens = num_tokens(encoded, tokens)
        if self.num_tokens == 0:
            raise DataError("no token to take activations of. Next: check the data and the choice of tokens.")
        self.capacity = min(buffer_tokens, self.num_tokens)
        self.batch_tokens = batch_tokens
        self.num_read = 0
        self._model, self._encoded, self._batch_size = model, encoded, batch_size
        self._tokens: Tokens = tokens
        self._whole = self.capacity == self.num_tokens
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._source = self._endless()
        self._buffer: Tensor | None = None
        self._left: Tensor | None = None  # what a forward pass gave beyond the room there was
        self._order = torch.empty(0, dtype=torch.long)
        self._cursor = 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        """The next `[batch_tokens, d]`, a copy in the model's dtype and on its device."""
        if self._buffer is None:
            self._fill(torch.arange(self.capacity))
            self._shuffle()
        parts, wanted = [], self.batch_tokens
        while wanted:
            limit = self.capacity if self._whole else max(self.capacity // 2, 1)
            if self._cursor >= limit:
                self._renew()
            rows = self._order[self._cursor : min(self._cursor + wanted, limit)]
            assert self._buffer is not None
            parts.append(self._buffer[rows.to(self._buffer.device)])
            self._cursor += len(rows)
            wanted -= len(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _renew(self) -> None:
        if not self._whole:
            self._fill(self._order[: self._cursor])
        self._shuffle()

    def _shuffle(self) -> None:
        self._order = torch.randperm(self.capacity, generator=self._generator)
        self._cursor = 0

    def _fill(self, rows: Tensor) -> None:
        """Overwrite rows of the buffer with new activations."""
        done = 0
        while done < len(rows):
            acts = self._left if self._left is not None else next(self._source)
            room = len(rows) - done
            self._left = acts[room:] if len(acts) > room else None
            acts = acts[:room]
            if self._buffer is None:
                self._buffer = torch.empty(
                    self.capacity, acts.shape[-1], dtype=acts.dtype, device=acts.device
                )
            self._buffer[rows[done : done + len(acts)].to(acts.device)] = acts
            done += len(acts)
            self.num_read += len(acts)

    def _endless(self) -> Iterator[Tensor]:
        epoch = 0
        while True:
            for found in iter_activations(
                self._model,
                self._encoded,
                self.site,
                tokens=self._tokens,
                batch_size=self._batch_size,
                seed=self._seed * 1_000_003 + epoch,
            ):
                yield found.acts
            epoch += 1
