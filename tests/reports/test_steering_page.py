"""The pages of AutoSteer and of a model diff: every trial and every significant change is on them, hostile text stays text."""

from __future__ import annotations

from fairlead.concepts import Edit, EditSet, SteeringReport, Trial
from fairlead.reports import steering_svg, write_diff, write_steering
from fairlead.studies.concept_diff import AnswerSet, ChangeLine, ConceptDiff

HOSTILE = "<script>alert(1)</script>"


def report() -> SteeringReport:
    trials = tuple(
        Trial(name="contrast" if i else "c4", strengths={"start": float(i)}, effect=i / 5, loss_rise=0.1 * i)
        for i in range(5)
    )
    return SteeringReport(
        description=HOSTILE,
        direction="on",
        requests=(),
        goal=0.9,
        max_loss_rise=0.5,
        num_contrast=8,
        num_calibration=8,
        effect_before=0.0,
        effect_request=1.0,
        neutral_loss=(0.1, 0.2),
        trials=trials,
        chosen=4,
        placebo=Trial(name="placebo", strengths={}, effect=0.0, loss_rise=0.9),
        samples=(("q", "plain", HOSTILE),),
    )


def test_every_trial_is_a_point_and_nothing_is_run(tmp_path):
    found = report()
    picture = steering_svg(found)
    assert picture.count("<circle") == len(found.trials) + 1 and picture.count('r="7"') == 1
    edits = EditSet(
        model="m",
        model_fingerprint="f",
        dictionary="d",
        dictionary_sha256="s",
        site="layers.1.resid_post",
        edits=(Edit(mode="ablate", latents=(1,), label=HOSTILE),),
    )
    page = write_steering(tmp_path / "a.html", found, edits).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "Goal not reached" in page
    assert page.count("<tr><td>") == len(found.trials) + 1


def line(name: str, q: float) -> ChangeLine:
    return ChangeLine(
        concept=name,
        label=HOSTILE,
        before=1.0,
        after=2.0,
        change=1.0,
        low=0.5,
        high=float("nan"),
        effect=0.9,
        p=q,
        q=q,
    )


def test_only_changes_beyond_chance_are_shown(tmp_path):
    diff = ConceptDiff(
        before="one",
        before_fingerprint="a",
        after="two",
        after_fingerprint="b",
        catalogue="runs/concepts",
        site="layers.1.resid_post",
        num_texts=9,
        texts=(line("c1", 0.01), line("c2", 0.4)),
        prompts=("q",),
        own=("x",),
        answers=(AnswerSet(alpha=0.0, answers=("y",), changes=(line("c3", 0.9),)),),
    )
    page = write_diff(tmp_path / "b.html", diff).read_text()
    assert "<code>c1</code>" in page and "<code>c2</code>" not in page and "<code>c3</code>" not in page
    assert page.count("No concept changed beyond chance") == 1 and "<script" not in page
