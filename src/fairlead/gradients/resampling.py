"""Random weights that belong to an example, not to a batch: streaming bootstrap and split halves.

The weight of example i in resample r is a hash of (seed, i, r), so that the result does not depend on batch size, order, padding or
resumption. Poisson(1) weights are the streaming bootstrap (Oza and Russell 2001; Chamandy et al. 2012): with many examples they
are the usual multinomial resampling, and any statistic that is a ratio of sums can be resampled in one pass.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_POISSON_CDF = np.cumsum([0.36787944117144233 / f for f in (1, 1, 2, 6, 24, 120, 720, 5040, 40320)])


def hash_uniform(index: Tensor, num: int, *, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) `[num, len(index)]`, a fixed function of (seed, index, row): splitmix64."""
    with np.errstate(over="ignore"):
        key = index.cpu().numpy().astype(np.uint64)[None, :] * _GOLDEN
        key = key + (np.arange(num, dtype=np.uint64)[:, None] + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        key = key + np.uint64(seed + 1) * np.uint64(0x8CB92BA72F3D8DD7)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key = key ^ (key >> np.uint64(31))
    return (key >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def poisson_weights(index: Tensor, num: int, *, seed: int) -> Tensor:
    """Poisson(1) weights `[num, len(index)]` of examples `index` in `num` bootstrap resamples."""
    return torch.from_numpy(
        np.searchsorted(_POISSON_CDF, hash_uniform(index, num, seed=seed), side="right").astype(np.float64)
    )


def half_signs(index: Tensor, num: int, *, seed: int) -> Tensor:
    """+1 or -1 `[num, len(index)]`: the half of each of `num` random splits that an example belongs to."""
    return torch.from_numpy(np.where(hash_uniform(index, num, seed=seed + 7) < 0.5, 1.0, -1.0))
