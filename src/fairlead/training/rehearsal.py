"""A rehearsal: take a few steps of plain fine-tuning on a copy and see which concepts move.

Uptake says how hard the data pulls on a concept where the data shows it. What becomes of that in the weights, and whether it shows on other
questions, it does not say: the same words pull little where the prompt asks for them, and spread or stay depending on what
else the weights learn. Some eight steps say it, and cost about as much as measuring the uptake of as many batches
(`benchmarks/comes_true.py` compares the predictors). Read is the change of each concept's activation on texts that the
start model wrote, so that no answer has to be sampled: the texts are the same before and after, the reader is not.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fairlead.concepts import text_activations
from fairlead.core.progress import quiet
from fairlead.core.records import Concept
from fairlead.data import Encoded
from fairlead.dictionaries import Dictionary
from fairlead.training.adapter import plain_sft
from fairlead.training.config import TrainConfig

if TYPE_CHECKING:
    from fairlead.models import Model


def take_steps(
    model: Model,
    rows: Sequence[Encoded],
    *,
    steps: int,
    batch_size: int = 32,
    lr: float = 5e-4,
    seed: int = 0,
) -> Model:
    """A copy of the model after some steps of plain fine-tuning at a constant learning rate; the model stays as it is."""
    from fairlead.models import Model

    hf = copy.deepcopy(model.hf)
    config = TrainConfig(
        steps=steps, batch_size=batch_size, lr=lr, seed=seed, warmup_steps=0, schedule="constant", checkpoint_every=0,
        observe=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain_sft(hf, model.tokenizer, rows, pad_id=model.pad_id, config=config, folder=Path(folder))
    return Model.wrap(hf.eval(), model.tokenizer, model.name)


def rehearse(
    model: Model,
    rows: Sequence[Encoded],
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    texts: Mapping[str, Sequence[Encoded]],
    *,
    steps: int = 8,
    batch_size: int = 32,
    lr: float = 5e-4,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """How far each concept moves on given texts in a few steps of plain fine-tuning.

    Args:
        model: The start model; unchanged.
        rows: The data.
        dictionary: Of the start model; it reads both models.
        concepts: What to read.
        texts: Texts by name (such as the model's own answers to the data's prompts, and answers to others).
        steps: Optimizer steps of AdamW.
        batch_size: Rows a step.
        lr: Learning rate.
        seed: Order of the rows.

    Returns:
        Per name of texts the change of the concepts' mean activation over response tokens, `[concept]`.
    """
    moved = take_steps(model, rows, steps=steps, batch_size=batch_size, lr=lr, seed=seed)

    def mean(reader: Model, encoded: Sequence[Encoded]) -> np.ndarray:
        return text_activations(reader, dictionary, concepts, encoded).response.mean(0)

    return {name: mean(moved, encoded) - mean(model, encoded) for name, encoded in texts.items() if encoded}
