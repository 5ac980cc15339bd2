"""The arms of the probe benchmark that are not in its table still run: LoRA and the tasks, at a small size."""

from __future__ import annotations

import pytest
from benchmarks.probes import ARM_COLUMNS, arm_rows, measure_arm

from fairlead.models import load_model


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["lora", "localise", "correct", "retract"])
def test_an_arm_runs_and_makes_a_row(arm):
    share = 0.12 if arm in ("lora", "localise") else 0.25
    record = measure_arm(load_model("organism:pocket"), arm, 0, draws=1, share=share)
    (row,) = arm_rows({arm: [record]})
    assert 0.3 < record["auroc"] <= 1 and set(row["values"]) <= {key for key, _ in ARM_COLUMNS}
    assert row["values"]["shuffled"] and ("without" in row["values"]) == (arm == "lora")
