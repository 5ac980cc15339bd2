"""Matching the rows of two dictionaries one to one: seed stability, and recovery of known features.

Optimal (Hungarian) assignment on the cosines; the mean of the matched cosines is the mean correlation coefficient (MCC) of the
identifiability literature (Hyvarinen and Morioka, arXiv 1605.06336) with cosine for correlation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

MOST_ROWS = 4096  # the assignment costs time in the cube of the number of rows


class Matching(NamedTuple):
    """Partners of the rows of one matrix among those of another.

    Attributes:
        left: `[n]` rows that have a partner.
        right: `[n]` their partners.
        cosine: `[n]` of each pair.
        best: `[rows]` largest cosine of every row with any row of the other, partner or not.
    """

    left: Tensor
    right: Tensor
    cosine: Tensor
    best: Tensor


def match_rows(left_FD: Tensor, right_GD: Tensor, *, signed: bool = True) -> Matching:
    """Pair rows so that the sum of cosines is largest.

    Args:
        signed: Whether opposite rows are different (activations are not negative) or the same.
    """
    cosine = functional.normalize(left_FD.float(), dim=-1) @ functional.normalize(right_GD.float(), dim=-1).T
    cosine = cosine if signed else cosine.abs()
    rows, partners = linear_sum_assignment(cosine.cpu().numpy(), maximize=True)
    left, right = torch.from_numpy(rows), torch.from_numpy(partners)
    return Matching(left, right, cosine.cpu()[left, right], cosine.max(1).values.cpu())


def seed_stability(
    first_FD: Tensor, second_GD: Tensor, *, at_least: float = 0.7, seed: int = 0
) -> dict[str, float]:
    """How much of a dictionary comes back in another one (Paulo and Belrose, arXiv 2501.16615).

    Returns:
        `stable`: share of the first's rows whose partner has a cosine of at least `at_least`; `mean_max_cosine`: mean over its rows of the
        largest cosine with any row; `mcc`: mean cosine of the partners; `stable_random`: `stable` of random rows in the place of the
        second's, the floor. Of wide dictionaries `MOST_ROWS` rows of the first, drawn at random, are matched with all of the second.
    """
    # a stream of its own: trainers with the same seed start from rows of torch.randn
    generator = torch.Generator().manual_seed(seed * 1_000_003 + 55_103_077)
    if first_FD.shape[0] > MOST_ROWS:
        first_FD = first_FD[torch.randperm(first_FD.shape[0], generator=generator)[:MOST_ROWS]]
    found = match_rows(first_FD, second_GD)
    chance = match_rows(first_FD, torch.randn(second_GD.shape, generator=generator))
    num = first_FD.shape[0]
    return {
        "stable": float((found.cosine >= at_least).sum()) / num,
        "mean_max_cosine": float(found.best.mean()),
        "mcc": float(found.cosine.sum()) / num,
        "stable_random": float((chance.cosine >= at_least).sum()) / num,
    }
