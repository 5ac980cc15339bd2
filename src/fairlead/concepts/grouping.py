"""Which latents act alike: grouping by their activation profiles over whole texts.

A trait or a skill is spread over many latents that fire on different tokens, so neither decoder rows nor token-level activations
tell that they belong together; that they fire in the same texts does. The profile of a latent is its mean activation in each text
of a corpus; latents are joined in two steps:

1. average linkage on the correlation of profiles (1 - r), cut at `1 - min_similarity`: tight groups;
2. the two groups whose summed profiles correlate most are joined, until no pair reaches `merge_similarity`. Sums are less noisy
   than single latents, so that the parts of one theme (the question, the answer) find each other, while averages of
   single correlations stay low.

Latents that fire in too few texts to have a profile stay single.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from fairlead.core.errors import ConfigError

MIN_SIMILARITY = 0.3
MERGE_SIMILARITY = 0.35


def correlation(profile_EF: np.ndarray) -> np.ndarray:
    """Pearson correlation `[F, F]` of columns; 0 where a column is constant."""
    unit = _unit(profile_EF)
    return unit.T @ unit


def _unit(profile_EF: np.ndarray) -> np.ndarray:
    """Columns centred and of length 1; zero where a column is constant."""
    centred = profile_EF - profile_EF.mean(0)
    norm = np.linalg.norm(centred, axis=0)
    return np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-12)


def pair_distances(profile_EF: np.ndarray, *, block: int = 256) -> np.ndarray:
    """`1 - r` of every pair of columns once, `[F (F - 1) / 2]` in scipy's order, made some rows at a time."""
    unit = _unit(profile_EF)
    num = unit.shape[1]
    found = np.empty(num * (num - 1) // 2)
    place = 0
    for start in range(0, num, block):
        part = 1.0 - unit[:, start : start + block].T @ unit[:, start:]
        for row in range(part.shape[0]):
            rest = part[row, row + 1 :]
            found[place : place + len(rest)] = rest
            place += len(rest)
    return np.clip(found, 0.0, 2.0, out=found)


def check_room(num_latents: int, num_texts: int) -> None:
    """Confirm that so many latents can be grouped in the memory that is free.

    Raises:
        ConfigError: They cannot; names the option that does without.
    """
    needed = (
        16.0 * num_latents**2 + 24.0 * num_latents * num_texts
    )  # two matrices of pairs; the profile, centred and scaled
    free = free_bytes()
    if free is not None and needed > free:
        raise ConfigError(
            f"grouping {num_latents:,} latents by {num_texts:,} texts needs about {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} GiB are free. Next: make every latent a concept (--single, in Python group=False), or train fewer latents."
        )


def free_bytes() -> int | None:
    """Memory that this machine has free; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def tight_groups(profile_EF: np.ndarray, *, min_similarity: float) -> list[list[int]]:
    """Average linkage on `1 - r`, cut at `1 - min_similarity`."""
    num = profile_EF.shape[1]
    if num == 1:
        return [[0]]
    label = fcluster(linkage(pair_distances(profile_EF), "average"), 1.0 - min_similarity, "distance")
    return [np.flatnonzero(label == value).tolist() for value in np.unique(label)]


def merge_groups(
    profile_EF: np.ndarray, groups: Sequence[Sequence[int]], *, merge_similarity: float
) -> list[list[int]]:
    """Join the two groups with the most correlated summed profiles until none reaches `merge_similarity`."""
    members: list[list[int]] = [list(group) for group in groups]
    summed = np.stack([profile_EF[:, group].sum(1) for group in members], axis=1)
    summed = summed - summed.mean(0)
    covariance = summed.T @ summed
    num = len(members)
    variance = np.diag(covariance).copy()
    alive = variance > 1e-12
    safe = np.where(alive, np.sqrt(np.maximum(variance, 1e-12)), np.inf)
    similar = covariance / safe[:, None]
    similar /= safe[None, :]
    np.fill_diagonal(similar, -1.0)
    similar[~alive] = similar[:, ~alive] = -1.0
    best = similar.max(1)
    while num > 1:
        first = int(best.argmax())
        if best[first] < merge_similarity:
            break
        second = int(similar[first].argmax())
        members[first] += members[second]
        members[second] = []
        covariance[first] += covariance[second]
        covariance[:, first] += covariance[:, second]
        alive[second] = False
        safe[second] = np.inf
        safe[first] = np.sqrt(max(covariance[first, first], 1e-12))
        row = covariance[first] / safe[first] / safe
        row[~alive], row[first] = -1.0, -1.0
        similar[second] = similar[:, second] = -1.0
        similar[first], similar[:, first] = row, row
        best = similar.max(1)
    return [sorted(group) for group in members if group]


def group_latents(
    profile_EF: np.ndarray,
    *,
    min_similarity: float = MIN_SIMILARITY,
    merge_similarity: float = MERGE_SIMILARITY,
    min_texts: int = 3,
) -> list[list[int]]:
    """Disjoint groups that cover all latents that ever fire, in order of their first latent.

    Args:
        profile_EF: `[text, latent]` mean activation.
        min_similarity: Mean correlation within a tight group.
        merge_similarity: Correlation of summed profiles at which groups are joined; above 1: never.
        min_texts: Latents that fire in fewer texts stay single.

    Raises:
        ConfigError: More latents than memory is free for (16 bytes a pair of latents).
    """
    texts = (profile_EF > 0).sum(0)
    common, rare = np.flatnonzero(texts >= min_texts), np.flatnonzero((texts > 0) & (texts < min_texts))
    groups: list[list[int]] = [[int(latent)] for latent in rare]
    if common.size:
        check_room(common.size, len(profile_EF))
        part = np.ascontiguousarray(profile_EF[:, common], dtype=np.float64)
        tight = tight_groups(part, min_similarity=min_similarity)
        joined = merge_groups(part, tight, merge_similarity=merge_similarity)
        groups += [[int(common[place]) for place in group] for group in joined]
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])
