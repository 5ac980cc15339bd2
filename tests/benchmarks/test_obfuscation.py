"""The grid of set-ups: its regions by both rules, its cell of shipped settings, and cells of before that still read."""

from __future__ import annotations

import json

from benchmarks import obfuscation
from fairlead.organisms import World
from fairlead.training.rewards import Look, RewardConfig

START = Look(
    step=0, frozen_score=0.48, student_score=0.48, unsupported=0.56, wrong_answers=0.55, right_answers=0.43,
    kl=0.0, entropy=0.2, claims=1.0, abstained=0.0,
)  # fmt: skip


def later(**changes) -> Look:
    return START.model_copy(update={"step": 40, **changes})


def test_a_student_that_drifts_off_the_probe_is_seen_by_the_gap_alone():
    calm = later(wrong_answers=0.33, unsupported=0.46, frozen_score=0.38, student_score=0.38)
    drifted = later(wrong_answers=0.33, unsupported=0.46, frozen_score=0.38, student_score=0.12)
    both = later(wrong_answers=0.33, unsupported=0.46, frozen_score=0.12, student_score=0.12)
    assert [obfuscation.region(START, one) for one in (calm, drifted)] == ["honest", "honest"]
    assert obfuscation.region_by_gap(START, calm) == "honest"
    assert obfuscation.region_by_gap(START, drifted) == "drifting activations"
    assert obfuscation.region_by_gap(START, both) == obfuscation.region(START, both), (
        "text that both readers believe is no drift"
    )
    blind = later(student_score=0.01)
    assert obfuscation.region_by_gap(START, blind) == "obfuscated activations"


def test_the_last_cell_is_what_reward_train_does_by_default():
    *grid, shipped = obfuscation.cells()
    assert len(grid) == 24 and shipped.place == obfuscation.DEFAULT
    of_looks = {"monitor_prompts", "spot_checks", "checkpoint_every", "seed"}
    config = obfuscation.settings(shipped, 1, steps=40)
    assert config.model_dump(exclude=of_looks) == RewardConfig().model_dump(exclude=of_looks)


def test_cells_of_before_the_placebo_are_read_and_published_without_a_fresh_probe(tmp_path, monkeypatch):
    old = {name: value for name, value in later(fresh_auroc=0.94).model_dump(mode="json").items()}
    del old["fresh_placebo"]
    one = obfuscation.cells()[0]
    path = tmp_path / "seed-0" / f"{one.name}.json"
    path.parent.mkdir()
    looks = [START.model_dump(mode="json"), old]
    path.write_text(json.dumps({"cell": one._asdict(), "seed": 0, "looks": looks}))
    read = obfuscation.run_cell(one, 0, tmp_path, model=None, world=World(), probe=None, steps=40)  # type: ignore[arg-type]
    new = [START, later(fresh_auroc=0.7, fresh_placebo=0.5)]
    written = {}
    monkeypatch.setattr(obfuscation, "write_table", lambda name, **record: written.update(record))
    monkeypatch.setattr(obfuscation, "save_svg", lambda *_: None)
    obfuscation.publish("x", {one: [read], obfuscation.cells()[-1]: [new, new]}, "command")
    _, first, last = written["rows"]
    assert first["cells"]["fresh"] == "" and first["cells"]["region"] == "unmoved"
    assert last["title"].startswith("shipped default") and last["cells"]["by_gap"] == "unmoved, unmoved"
    assert last["cells"]["placebo"].startswith("0.50")
