"""The student while it trains, and the start model beside it, as models that can be asked.

In full fine-tuning the student is a copy. With LoRA the two are one module: the start model is the student with its adapter off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from fairlead.models import Model
from fairlead.models.families import Sites, unwrap
from fairlead.training.processes import is_sharded


@contextmanager
def as_model(start: Model, student: nn.Module) -> Iterator[Model]:
    """A student in training as a `Model` (with the start model's tokenizer) in evaluation mode; its mode is put back afterwards."""
    model, training = copy.copy(start), student.training
    model.hf = unwrap(student)
    model.resolved = Sites(model.hf)  # sites are modules: the start model's would read the start model
    model.hf.eval()
    if model.hf is not student and is_sharded(
        student
    ):  # FSDP makes ready what it holds in the wrapper's own forward only
        with torch.no_grad():
            student(input_ids=torch.full((1, 1), model.pad_id, device=model.device))
    try:
        yield model
    finally:
        student.train(training)


class StartModel(Model):
    """A start model that is being trained with an adapter; its identity is the one it had before."""

    def __init__(self, model: Model, fingerprint: str) -> None:
        self.hf, self.tokenizer, self.name = model.hf, model.tokenizer, model.name
        self.resolved = Sites(model.hf)  # the adapter's layers stand where those of the start model stood
        self._fingerprint = fingerprint

    @property
    @override
    def fingerprint(self) -> str:
        return self._fingerprint


@contextmanager
def as_start_model(model: Model, fingerprint: str) -> Iterator[Model]:
    """The start model as it was before the training, in evaluation mode, adapters off; all is put back afterwards.

    Args:
        model: The start model as the training has it.
        fingerprint: What it was before the training.
    """
    layers = adapter_layers(model.hf)
    if not layers:
        yield model
        return
    training = model.hf.training
    trainable = [(parameter, parameter.requires_grad) for parameter in model.hf.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    model.hf.eval()
    try:
        yield StartModel(model, fingerprint)
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # makes all of them trainable: what was held still stays so
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)
        model.hf.train(training)


def adapter_layers(module: nn.Module) -> list[Any]:
    """The layers of a LoRA adapter inside a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
