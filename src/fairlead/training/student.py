"""The student while it trains, as a model that can be asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from fairlead.models.families import Sites, unwrap

if TYPE_CHECKING:
    from fairlead.models import Model


@contextmanager
def as_model(start: Model, student: nn.Module) -> Iterator[Model]:
    """A student in training as a `Model` (with the start model's tokenizer) in evaluation mode; its mode is put back afterwards."""
    model, training = copy.copy(start), student.training
    model.hf = unwrap(student)
    model.resolved = Sites(model.hf)  # sites are modules: the start model's would read the start model
    model.hf.eval()
    try:
        yield model
    finally:
        student.train(training)
