"""Entries of parameters held at their values while the rest of the parameter is trained.

`requires_grad` freezes whole parameters; a head or a neuron is a slice of one. Two things hold an entry exactly, whatever the optimizer:

- its gradient is set to zero as it arrives, so that it adds nothing to the clipped norm and its moments stay zero;
- after every optimizer step its value is put back, which undoes weight decay (AdamW decays entries without a gradient, too).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


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
