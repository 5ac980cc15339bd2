"""Advantages token by token: a claim's tokens carry the advantage of the claim's own reward, the rest that of the whole answer.

Both are taken within the group and divided by the group's spread (where rewards are scaled at all), as GRPO does: for an answer with one
claim that earns all of its reward, the two are the same number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fairlead.training.rewards.config import RewardConfig
from fairlead.training.rewards.scoring import Scored

EPSILON = 1e-4  # TRL's


def dense_advantages(
    rows: Sequence[Scored], advantages: Float[Tensor, "rollout"], *, width: int, config: RewardConfig
) -> Float[Tensor, "rollout token"]:
    """Advantages `[rollout, token]`; those of hints are never below 0.

    Args:
        rows: A process's rollouts, group by group.
        advantages: TRL's, one per rollout.
        width: Tokens of the longest completion.
        config: Settings.
    """
    dense = advantages[:, None].repeat(1, width)
    for start in range(0, len(rows), config.group_size):
        group = rows[start : start + config.group_size]
        own = torch.tensor([r for one in group for r in one.verdict.claim_rewards]) * config.reward_weight
        whole = torch.tensor([one.verdict.reward for one in group]) * config.reward_weight
        if not len(own):
            continue
        # without a claim a rollout earns as a whole: it stands beside the claims of the others
        beside = torch.tensor([one.verdict.reward for one in group if not one.claims]) * config.reward_weight
        pool = torch.cat([own, beside])
        spread = float(pool.std()) if len(pool) > 1 else float(whole.std())
        scale = 1 / (spread + EPSILON) if config.scale_advantages else 1.0
        for place, one in enumerate(group, start):
            for (first, last), reward in zip(one.spans, one.verdict.claim_rewards, strict=True):
                dense[place, first:last] = (reward * config.reward_weight - float(pool.mean())) * scale
    hinted = torch.tensor([one.setting.hinted for one in rows], device=dense.device)
    return torch.where(hinted[:, None], dense.clamp_min(0), dense)
