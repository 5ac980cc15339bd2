"""Planted features: activations made from a known dictionary, and how much of it a dictionary finds.

    x = codes @ features + noise

The features are random unit rows; each is on with its own rate (Zipf-like, from often to seldom) and then has size 1 to 2. Variants make
it hard in the ways real concepts are: **correlated** (features come in groups that are on together more often than their rates say) and
**hierarchical** (a child is on only where its parent is, which tempts a dictionary to absorb the parent into the child).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fairlead.core.config import Config
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.matching import match_rows

_GROUP = 4


class PlantedConfig(Config):
    """What is planted.

    Attributes:
        d_model: Width.
        num_features: Rows of the known dictionary.
        active: Features on in a token, on average.
        variant: Independent, correlated in groups, or children of parents.
        tail: Exponent of the rates' fall from the most to the least frequent feature; 0: all equal.
        noise: Standard deviation of what is added to every entry.
        seed: Of the features.
    """

    d_model: int = Field(default=64, ge=2)
    num_features: int = Field(default=256, ge=_GROUP)
    active: float = Field(default=8.0, gt=0)
    variant: Literal["independent", "correlated", "hierarchical"] = "independent"
    tail: float = Field(default=0.5, ge=0)
    noise: float = Field(default=0.02, ge=0)
    seed: int = 0


class Planted:
    """A known dictionary and its activations.

    Attributes:
        config: What is planted.
        features: `[num_features, d_model]`, unit rows.
        rates: `[num_features]`: how often each is on.
    """

    def __init__(self, config: PlantedConfig | None = None) -> None:
        self.config = config = config or PlantedConfig()
        # a stream of its own: a trainer with the same seed must not start from the planted rows
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 77_377_001)
        rows = torch.randn(config.num_features, config.d_model, generator=generator)
        self.features = rows / rows.norm(dim=-1, keepdim=True)
        rank = torch.arange(1, config.num_features + 1, dtype=torch.float32)
        rates = rank**-config.tail
        self.rates = (rates * config.active / rates.sum()).clamp_max(0.5)

    def codes(self, num: int, *, seed: int) -> Tensor:
        """Sparse codes `[num, num_features]`."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + seed + 1)
        size = (num, self.config.num_features)
        if self.config.variant == "independent":
            on = torch.rand(size, generator=generator) < self.rates
        elif self.config.variant == "correlated":
            on = self._together(num, generator)
        else:
            on = self._nested(num, generator)
        return on * (1 + torch.rand(size, generator=generator))

    def sample(self, num: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Activations `[num, d_model]` and the codes behind them."""
        codes = self.codes(num, seed=seed)
        generator = torch.Generator().manual_seed(self.config.seed * 7_919 + seed + 2)
        noise = torch.randn(num, self.config.d_model, generator=generator)
        return codes @ self.features + self.config.noise * noise, codes

    def _together(self, num: int, generator: torch.Generator) -> Tensor:
        """A feature's group is on with three times its largest rate (at most .5); within it features keep their own rates."""
        groups = torch.arange(len(self.rates)) // _GROUP
        top = torch.zeros(int(groups.max()) + 1).scatter_reduce(0, groups, self.rates, "amax")
        group_rate = (3 * top).clamp_max(0.5)
        open_ = torch.rand(num, len(group_rate), generator=generator) < group_rate
        inside = (self.rates / group_rate[groups]).clamp_max(1.0)
        return open_[:, groups] & (torch.rand(num, len(groups), generator=generator) < inside)

    def _nested(self, num: int, generator: torch.Generator) -> Tensor:
        """The first of every four is the parent of the other three; a child is on in a quarter of its parent's tokens."""
        parent = torch.arange(len(self.rates)) // _GROUP * _GROUP
        on = torch.rand(num, len(parent), generator=generator) < self.rates
        child = torch.arange(len(parent)) != parent
        split = torch.rand(num, len(parent), generator=generator) < 0.25
        return torch.where(child, on[:, parent] & split, on)


class Recovery(NamedTuple):
    """How much of a planted dictionary was found, over its features and their one-to-one partners.

    Attributes:
        mcc: Mean cosine of the partners; features without one count 0.
        found: Share with a partner at cosine .9 or more.
        precision: Mean over features: of the tokens on which the partner is active, those on which the feature is on.
        recall: Mean over features: of the tokens on which the feature is on, those on which the partner is active.
        fvu: Of the held-out activations.
        l0: Active latents a token.
    """

    mcc: float
    found: float
    precision: float
    recall: float
    fvu: float
    l0: float


@torch.no_grad()
def measure_recovery(
    planted: Planted, dictionary: Dictionary, *, num_tokens: int = 20_000, seed: int = 900_001
) -> Recovery:
    """Compare a dictionary with the planted one on fresh tokens."""
    pairs = match_rows(planted.features, dictionary.decoder)
    x, codes = planted.sample(num_tokens, seed=seed)
    acts = dictionary.encode(x)
    error = dictionary.decode(acts) - x
    on, active = codes[:, pairs.left] > 0, acts[:, pairs.right] != 0
    both = (on & active).sum(0).float()
    num = len(planted.features)
    return Recovery(
        mcc=float(pairs.cosine.sum()) / num,
        found=float((pairs.cosine >= 0.9).sum()) / num,
        precision=float((both / active.sum(0).clamp_min(1)).sum()) / num,
        recall=float((both / on.sum(0).clamp_min(1)).sum()) / num,
        fvu=float(error.square().sum() / (x - x.mean(0)).square().sum()),
        l0=float((acts != 0).float().sum(-1).mean()),
    )
