"""A small expert: a copy of the start model fine-tuned on avoided text, as evidence for models that follow no instruction.

The ratio of expert and start model is then the offset (in the manner of DExperts, arXiv 2105.03023). The expert sees only the clause's
examples or a file of avoided text, never the training data. Of its examples every third is kept from it: what it makes of those
tells how much a row of the data must rise to count as explained.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fairlead.core.errors import TrainingError
from fairlead.core.records import Clause
from fairlead.core.run import sha256_json
from fairlead.data import Row, load_data
from fairlead.training.adapter import plain_sft
from fairlead.training.config import TrainConfig
from fairlead.training.evidence import Evidence, EvidenceChoice
from fairlead.training.processes import is_sharded, num_processes
from fairlead.training.setup import Setup, clause_rows

LEAST_TO_SPLIT = 6  # examples from which on every third is kept from the expert


def train_expert(
    setup: Setup,
    clause: Clause,
    *,
    steps: int,
    lr: float,
    data: str | None,
    instead: Sequence[Row] | None = None,
) -> Evidence:
    """Fine-tune a copy of the start model on avoided text.

    Args:
        setup: Start model and settings.
        clause: The avoided clause; its examples are the text where `data` is None.
        steps: Training steps.
        lr: Learning rate.
        data: File with avoided text.
        instead: Texts to take in place of the avoided ones (for the placebo).

    Raises:
        TrainingError: There is no avoided text.
    """
    examples = clause_rows(clause, chat=setup.is_chat)[0]
    if data is not None:
        rows, unseen = list(load_data(data).rows), list(range(len(examples)))
    else:
        unseen = list(range(2, len(examples), 3)) if len(examples) >= LEAST_TO_SPLIT else []
        rows = [row for place, row in enumerate(examples) if place not in unseen]
    if instead is not None:
        rows = list(instead)[: len(rows)]
    if not rows:
        raise TrainingError(
            f"clause {clause.id} has no example to train an expert on. Next: add quoted examples, or set expert_data."
        )
    encoded = setup.encode(rows)
    config = TrainConfig(
        steps=steps,
        lr=lr,
        batch_size=max(
            1, min(16, len(encoded)) // num_processes()
        ),  # the same rows a step, however many share them
        seed=setup.config.seed,
        checkpoint_every=0,
        precision=setup.config.precision,
        observe=False,
    )
    expert = copy.deepcopy(setup.model.hf)
    with tempfile.TemporaryDirectory() as folder:
        plain_sft(
            expert,
            setup.model.tokenizer,
            encoded,
            pad_id=setup.pad_id,
            config=config,
            folder=Path(folder),
            on_step=lambda step, seconds: "(expert)",
        )
    if is_sharded(expert):
        raise TrainingError(
            "an expert as evidence cannot be trained in sharded processes. Next: set explain_away's sources to prompt or "
            "steering, or train without FSDP."
        )
    expert.eval()
    identity = sha256_json([setup.fingerprint, [item.input_ids for item in encoded], steps, lr, config.seed])
    what = "neutral rows" if instead is not None else "examples of the clause"
    label = f"expert, {steps} steps on {data if data and instead is None else f'{len(rows)} {what}'}"
    choice = None if instead is not None else EvidenceChoice(kind="expert", steps=steps, lr=lr, data=data)
    return Evidence("expert", label, expert=expert, expert_id=identity, unseen=tuple(unseen), choice=choice)
