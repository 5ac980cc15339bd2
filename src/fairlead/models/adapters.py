"""Low-rank adapters on a model's linear maps, by forward hooks: `y + B (A x)` while a context is open, nothing changed after it.

For readouts that adapt the model a little to make something readable (LoRA probes). Training a model with adapters is PEFT's
business, in `fairlead.training`; here no module is replaced and no parameter of the model is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fairlead.core.errors import ConfigError

if TYPE_CHECKING:
    from fairlead.models.model import Model


class LowRank(NamedTuple):
    """One adapter: `down [rank, in]`, `up [out, rank]`; zero at first, since `up` is."""

    down: Tensor
    up: Tensor


def make_adapters(model: Model, *, rank: int, seed: int) -> dict[str, LowRank]:
    """Adapters for every `nn.Linear` inside the blocks, by the module's name in the transformers model.

    Raises:
        ConfigError: There is no such module (GPT-2's `Conv1D`).
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, LowRank] = {}
    head = model.hf.get_output_embeddings()
    for name, module in model.hf.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
        up = torch.zeros(module.out_features, rank)
        found[name] = LowRank(down.to(model.device).requires_grad_(), up.to(model.device).requires_grad_())
    if not found:
        raise ConfigError(f"{model.name}: has no nn.Linear to adapt. Next: use another kind of probe.")
    return found


@contextmanager
def adapted(model: Model, adapters: Mapping[str, LowRank]) -> Iterator[None]:
    """The model with adapters, inside the block.

    Raises:
        ConfigError: The model has no module of an adapter's name.
    """
    modules = dict(model.hf.named_modules())
    missing = [name for name in adapters if name not in modules]
    if missing:
        raise ConfigError(
            f"{model.name}: has no module {missing[0]}. Next: use the model that the adapters belong to."
        )

    def hook(adapter: LowRank):
        def add(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            x = args[0]
            return output + (x @ adapter.down.to(x).T) @ adapter.up.to(x).T

        return add

    with ExitStack() as stack:
        for name, adapter in adapters.items():
            stack.callback(modules[name].register_forward_hook(hook(adapter)).remove)
        yield
