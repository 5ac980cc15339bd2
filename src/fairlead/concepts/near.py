"""Which concepts are near each other: by direction, and by acting on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

_BLOCK = 512
_DENSE = 100_000_000


def phi(both: np.ndarray, first: np.ndarray, second: np.ndarray, num: int) -> np.ndarray:
    """Phi coefficient of two events over `num` tokens, from how often each and both occur; 0 where one never or always does."""
    spread = np.sqrt(first * (num - first)) * np.sqrt(second * (num - second))
    return np.divide(
        num * both - first * second, spread, out=np.zeros_like(both, dtype=float), where=spread > 0
    )


def nearest_pairs(
    directions: Tensor, active: csr_array, *, num: int
) -> Iterator[tuple[int, int, float, float]]:
    """For each concept the `num` nearest by cosine and the `num` that act most together with it.

    Args:
        directions: `[concept, d]`, unit rows.
        active: `[token, concept]` whether a concept acts on a token.
        num: Of each kind.

    Yields:
        (concept, other, cosine, phi coefficient).
    """
    unit = directions.numpy()
    acts: Any = csr_array(active, dtype=np.float32)  # scipy does not type a sparse product
    often, tokens = np.asarray(acts.sum(0), dtype=np.float64).ravel(), acts.shape[0]
    dense = (
        acts.toarray() if tokens * unit.shape[0] <= _DENSE else None
    )  # concepts act often: dense is faster where it fits
    for start in range(0, len(unit), _BLOCK):
        part = slice(start, start + _BLOCK)
        cosine = unit[part] @ unit.T
        both = dense[:, part].T @ dense if dense is not None else (acts[:, part].T @ acts).toarray()
        together = phi(both, often[part][:, None], often[None, :], tokens)
        for row in range(cosine.shape[0]):
            place = start + row
            near = set(_top(cosine[row], num, place)) | set(_top(together[row], num, place))
            for other in sorted(near):
                yield place, other, round(float(cosine[row, other]), 4), round(float(together[row, other]), 4)


def _top(values: np.ndarray, num: int, itself: int) -> list[int]:
    found = np.argsort(-values)[: num + 1]
    return [int(place) for place in found if place != itself][:num]
