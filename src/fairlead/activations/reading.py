"""Read a store in place of the model: a model whose captures come from a folder where the folder has them.

A text is found by its tokens, so that harvest, labelling and probes need not know in which order, or with which padding, the store was
made. Of a causal model the beginning of a stored text is found as well (a prompt and an answer without the end of the turn).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from fairlead.core.site import Site

if TYPE_CHECKING:
    from fairlead.activations.store import ActivationStore
    from fairlead.data.batches import Batch
    from fairlead.models import Model

_KEY_TOKENS = 64  # what texts are sorted by; those that agree so far are compared in the file


class StoredModel:
    """`model`, except that `capture` reads the store for sites and texts that it holds.

    Attributes:
        num_read: Texts that the store gave.
        num_run: Texts that the model was run on.
    """

    def __init__(self, model: Model, store: ActivationStore) -> None:
        store.check(model)
        self._model, self._store = model, store
        self._keys = sorted((_key(ids), row) for row, ids in enumerate(store.iter_ids()))
        self.num_read = self.num_run = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def capture(self, batch: Batch, sites: Iterable[str | Site], **options: Any) -> dict[str, Tensor]:
        """As `Model.capture`."""
        sites = list(sites)
        names = [str(Site.parse(site)) for site in sites]
        num = batch.input_ids.shape[0]
        rows = None
        if all(name in self._store.sites for name in names) and not options.get("grad"):
            rows = self._find_all(batch)
        if rows is None:
            self.num_run += num
            return self._model.capture(batch, sites, **options)
        self.num_read += num
        found: dict[str, Tensor] = {}
        places = {row: [place for place, other in enumerate(rows) if other == row] for row in rows}
        for row, acts in self._store.iter_rows(list(places), names):
            for name, value in acts.items():
                if name not in found:
                    shape = (*batch.input_ids.shape, value.shape[-1])
                    found[name] = torch.zeros(shape, dtype=value.dtype)
                for place in places[row]:
                    length = int(batch.attention_mask[place].sum())
                    found[name][place, :length] = value[:length]
        return {name: value.to(self._model.device) for name, value in found.items()}

    def _find_all(self, batch: Batch) -> list[int] | None:
        """The stored text of each row; None where one is not there, or is padded on the left."""
        if not bool(batch.attention_mask[:, 0].all()):
            return None
        rows = []
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            row = self._find(ids[: int(mask.sum())].numpy())
            if row is None:
                return None
            rows.append(row)
        return rows

    def _find(self, ids: np.ndarray) -> int | None:
        key = _key(ids)
        for place in range(bisect_left(self._keys, (key, -1)), len(self._keys)):
            stored, row = self._keys[place]
            if not stored.startswith(key):
                return None
            whole = self._store.lengths[row] == len(ids)
            longer = self._store.lengths[row] > len(ids) and self._model.is_causal
            if (whole or longer) and np.array_equal(self._store.ids(row)[: len(ids)], ids):
                return row
        return None


def read_in_place(model: Model, store: ActivationStore) -> Model:
    """The model with the store in place of its forward passes, where it can stand there; see `StoredModel`.

    Raises:
        DataError: The store was harvested from another model.
    """
    return cast("Model", StoredModel(model, store))


def _key(ids: np.ndarray) -> bytes:
    """The first tokens, in an order in which a text stands before its continuations."""
    return ids[:_KEY_TOKENS].astype(">i4").tobytes()
