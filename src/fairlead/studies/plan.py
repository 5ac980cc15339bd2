"""Plan: which controls a training should use, at which strength, by what was measured on the data and the start model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fairlead.core.progress import say
from fairlead.core.records import Plan
from fairlead.core.run import Run, sha256_json
from fairlead.data import ChatData, Row, load_data
from fairlead.studies.train import as_neutral, find_dictionary
from fairlead.training import PLAN_FILE, TrainConfig, prepare
from fairlead.training.planning import plan_controls as choose

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model

SAMPLE = 256


def plan_controls(
    model: Model | str | Path,
    data: ChatData | str | Path,
    plan: Plan,
    *,
    neutral: ChatData | Sequence[Row] | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    out: str | Path | None = None,
    sample: int = SAMPLE,
    max_length: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Plan:
    """Choose controls, evidence and starting strengths for a plan, each with its reason; nothing is trained.

    Args:
        model: The start model, or its name or folder.
        data: What will be trained on, or its file.
        plan: Decisions and spec.
        neutral: Neutral rows for the anchor, or their file.
        dictionary: For the calibration; the plan's where None.
        out: Run folder; None: nothing is kept.
        sample: Rows of the data that are looked at.
        max_length: Longer rows are cut; None: the model's limit.
        seed: Of the sample.
        overwrite: Replace a finished run in `out`.

    Returns:
        The plan with its `controls`, which `train(controls="auto")` uses.

    Raises:
        TrainingError: The plan avoids nothing.
        DataError: The data cannot be encoded.
    """
    from fairlead.models import load_model

    model = load_model(model) if isinstance(model, str | Path) else model
    data = load_data(data) if isinstance(data, str | Path) else data
    rows = as_neutral(neutral)
    found = find_dictionary(plan, dictionary)
    config = TrainConfig.make({"seed": seed, "max_length": max_length, "on_long": "truncate"})
    say(f"plan: choosing controls on {min(sample, len(data))} of {len(data)} rows")
    picked = data
    if len(data) > sample:
        picked = data.subset(sorted(random.Random(f"{seed}:plan").sample(range(len(data)), sample)))
    with TemporaryDirectory() as cache:
        setup = prepare(model, picked, plan, config=config, neutral=rows, dictionary=found, cache=Path(cache))
        controls = choose(setup)
    notes = tuple(dict.fromkeys([*plan.notes, *setup.notes]))
    planned = plan.model_copy(update={"controls": controls, "notes": notes})
    if out is not None:
        about = {"model": model.name, "data": data.source, "sample": sample, "max_length": max_length}
        inputs = {
            "model": model.fingerprint,
            "data": data.sha256,
            "plan": sha256_json(plan.model_dump(mode="json")),
            "neutral": sha256_json([row.as_record() for row in rows]),
            "dictionary": found.sha256 if found is not None else "",
        }
        with Run.start(out, study="plan", config=about, inputs=inputs, seed=seed, overwrite=overwrite) as run:
            run.write_json(PLAN_FILE, planned)
            run.record["summary"] = {
                "controls": [{"name": c.name, "clause": c.clause, "strength": c.strength} for c in controls]
            }
    return planned
