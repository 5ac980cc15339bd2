"""Planted data for the tests of dictionary kinds."""

from __future__ import annotations

import torch
from torch import Tensor

from fairlead.dictionaries import Dictionary, DictionaryConfig, fit_dictionary
from fairlead.dictionaries.dictionary import find_architecture


def unit_rows(num: int, width: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(num, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def codes(num: int, num_features: int, *, rate: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(num, num_features, generator=generator) < rate
    return on * (1 + torch.rand(num, num_features, generator=generator))


def noise(num: int, width: int, seed: int, size: float = 0.01) -> Tensor:
    return size * torch.randn(num, width, generator=torch.Generator().manual_seed(seed + 1000))


def circles(num: int, *, width: int, num_planes: int, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """Points on circles in random planes, each on now and then; and the planes `[P, 2, width]`."""
    draws = torch.randn(num_planes, width, 2, generator=torch.Generator().manual_seed(0))
    planes = torch.linalg.qr(draws).Q.transpose(1, 2)
    generator = torch.Generator().manual_seed(seed)
    radius = codes(num, num_planes, rate=rate, seed=seed)
    angle = 2 * torch.pi * torch.rand(num, num_planes, generator=generator)
    x = torch.einsum("np,pd->nd", radius * angle.cos(), planes[:, 0])
    x = x + torch.einsum("np,pd->nd", radius * angle.sin(), planes[:, 1])
    return x + noise(num, width, seed, 0.02), planes


def train(x: Tensor, config: DictionaryConfig, site: str = "layers.0.resid_post") -> Dictionary:
    """An autoencoder of one of the kinds, trained on rows in order."""
    with torch.no_grad():
        trainer = fit_dictionary(iter(x.split(config.batch_tokens)), config)
    kind = find_architecture(config.kind) or Dictionary
    return kind(trainer.export(), **kind.settings(trainer.config), site=site)
