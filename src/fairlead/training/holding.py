"""Entries of parameters held at their values while the rest of the parameter is trained.

`requires_grad` freezes whole parameters; a head or a neuron is a slice of one. Two things hold an entry exactly, whatever the optimizer:

- its gradient is set to zero as it arrives, so that it adds nothing to the clipped norm and its moments stay zero;
- after every optimizer step its value is put back, which undoes weight decay (AdamW decays entries without a gradient, too).

Under LoRA (W + s B A) an entry of W has no parameter of its own, but a whole row or column has: a row stays where its row of B is
held at zero, a column where that of A is (`adapter_masks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fairlead.training.student import adapter_layers


def hold_entries(stack: ExitStack, trained: Mapping[nn.Parameter, Tensor]) -> None:
    """Hold all entries that are not `trained` (a mask per parameter, of its shape) until the stack closes."""
    held = []
    for parameter, mask in trained.items():
        if bool(mask.all()):
            continue
        if not bool(mask.any()):
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
            continue
        frozen = ~mask.to(parameter.device)
        handle = parameter.register_hook(lambda grad, frozen=frozen: grad.masked_fill(frozen, 0))
        stack.callback(handle.remove)
        held.append((parameter, frozen, parameter.detach()[frozen].clone()))

    @torch.no_grad()
    def put_back(*_: object) -> None:
        for parameter, frozen, values in held:
            parameter[frozen] = values

    if held:
        stack.callback(register_optimizer_step_post_hook(put_back).remove)


@torch.no_grad()
def adapter_masks(module: nn.Module, masks: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """What is trained of an adapter's A and B, so that exactly the masked rows or columns of the adapted weights change.

    Columns of A that are held are set to zero: the adapter begins with noise in A and zeros in B.

    Args:
        module: A model with a LoRA adapter.
        masks: Per weight of the model, which whole rows or whole columns are trained.
    """
    found = {}
    for layer in adapter_layers(module):
        weight = layer.get_base_layer().weight
        if weight not in masks:
            continue
        mask = masks[weight].T if layer.fan_in_fan_out else masks[weight]  # [out, in]
        whole_rows = bool((mask == mask[:, :1]).all())
        for name in layer.active_adapters:
            into, out_of = layer.lora_A[name].weight, layer.lora_B[name].weight
            columns = mask[:1] if not whole_rows else mask[:1] | mask.any()
            found[into] = columns.expand(into.shape).to(into.device)
            found[out_of] = (mask[:, :1] if whole_rows else mask.any(1, keepdim=True)).expand(out_of.shape)
            into[~found[into]] = 0
    return found
