"""Configs, records, sites, errors and directions: frozen, strict, and clear about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import Field, ValidationError

from fairlead.core import errors
from fairlead.core.config import Config, read_config
from fairlead.core.nouns import Direction, LinearReadout, Readout
from fairlead.core.records import (
    Clause,
    Concept,
    Decision,
    Menu,
    MenuLine,
    Plan,
    Spec,
    SpecExample,
    TokenContext,
)
from fairlead.core.results import ArmResult, Comparison, Measure, Prediction, Sample, StepRecord, Verification
from fairlead.core.site import LAYER_KINDS, Site


class Settings(Config):
    """Settings of a test."""

    steps: int = Field(10, ge=1)
    lr: float = 0.1


def test_configs_name_the_offending_field() -> None:
    assert Settings.make({"steps": 5}, lr=None) == Settings(steps=5)
    assert Settings.make({"steps": 5}, steps=7).steps == 7
    for values, words in (
        ({"steps": 0}, "Settings.steps"),
        ({"stesp": 1}, "Settings.stesp"),
        ({"lr": "x"}, "Settings.lr"),
    ):
        with pytest.raises(errors.ConfigError, match=words):
            Settings.make(values)
    with pytest.raises(ValidationError):
        Settings().steps = 3  # type: ignore[misc]


def test_config_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('steps = 3\n[deep]\nx = "y"\n')
    (tmp_path / "a.json").write_text('{"steps": 3, "deep": {"x": "y"}}')
    assert (
        read_config(tmp_path / "a.toml")
        == read_config(tmp_path / "a.json")
        == {"steps": 3, "deep": {"x": "y"}}
    )
    for name, content, words in (
        ("b.toml", b"steps = ", "b.toml"),
        ("b.json", b"{", "mend the syntax"),
        ("c.json", b"[1]", "must be an object"),
        ("d.json", b"\xff", "d.json"),
        ("e.yaml", b"a: 1", "from .toml or .json"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.ConfigError, match=words):
            read_config(tmp_path / name)
    with pytest.raises(errors.ConfigError, match="no such settings file"):
        read_config(tmp_path / "none.toml")


def spec() -> Spec:
    example = SpecExample(text="Arr", prompt="q", instead="Yes", line=3)
    clause = Clause(id="avoid.1", kind="avoid", text="Pirate.", line=2, examples=(example,), check="arr")
    return Spec(clauses=(Clause(id="keep.1", kind="keep", text="Add.", line=1), clause))


def test_records_round_trip_through_json() -> None:
    context = TokenContext(tokens=("a",), scores=(0.5,), example=3)
    concept = Concept(id="c1", label="x", site="layers.1.resid_post", latents=(1, 2), examples=(context,))
    line = MenuLine(
        concept=concept, uptake=1.0, interval=(0.5, 1.5), share=0.1, stability=1.0, num_examples=3, fires=0.5
    )
    menu = Menu(
        model="m",
        model_fingerprint="f",
        data="d",
        data_sha256="s",
        site="layers.1.resid_post",
        dictionary="x",
        dictionary_sha256="y",
        num_examples=1,
        num_tokens=2,
        loss=1.0,
        remainder=0.3,
        lines=(line,),
    )
    decisions = tuple(
        Decision(
            concept=c,
            label="x",
            verdict=v,
            clause=None,
            margin=0.1,
            confidence=0.9,
            reason="r",
            judge="examples",
        )
        for c, v in (("c1", "avoid"), ("c2", "keep"), ("c3", "ignore"))
    )
    plan = Plan(spec=spec(), decisions=decisions, concepts=(concept,))
    assert [d.concept for d in plan.avoided()] == ["c1"]
    assert [d.concept for d in plan.kept()] == ["c2"]
    measure = Measure(value=0.5, low=0.1, high=0.9, num=10)
    verification = Verification(
        model="m",
        measures={"skill.add": measure},
        predictions=(Prediction(concept="c1", label="x", predicted=1, measured=2),),
        samples=(Sample(prompt="p", answer="a", group="domain"),),
    )
    arms = tuple(
        ArmResult(
            arm=arm,
            seed=seed,
            controls=("anchor",),
            steps=(StepRecord(step=1, loss=1.0, seconds=0.1),),
            verification=verification,
        )
        for seed in (0, 1)
        for arm in ("plain", "recipe")
    )
    comparison = Comparison(model="m", data="d", base=verification, arms=arms)
    assert comparison.arm_names() == ("plain", "recipe")
    assert comparison.values("plain", "skill.add") == [0.5, 0.5]
    assert comparison.values("plain", "skill.none") == []
    for record in (menu, plan, comparison, verification):
        again = type(record).model_validate(json.loads(json.dumps(record.model_dump(mode="json"))))
        assert again == record
        with pytest.raises(ValidationError):
            type(record).model_validate(record.model_dump() | {"typo": 1})
        with pytest.raises(ValidationError):
            type(record).model_validate(record.model_dump() | {"version": 2})


def test_clauses_by_kind_and_id() -> None:
    found = spec()
    assert [c.id for c in found.of_kind("avoid")] == ["avoid.1"]
    assert found.clause("keep.1").text == "Add."
    with pytest.raises(KeyError):
        found.clause("keep.9")


@pytest.mark.parametrize(
    "name", ["embed", *(f"layers.3.{kind}" for kind in LAYER_KINDS), "layers.-1.mlp_out"]
)
def test_site_names_round_trip(name: str) -> None:
    site = Site.parse(name)
    assert str(site) == name
    assert Site.parse(site) is site


@pytest.mark.parametrize(
    "name", ["", "layer.3.mlp_out", "layers.3", "layers.x.mlp_out", "layers.3.mlp", "layers.3.mlp_out\n"]
)
def test_what_is_not_a_site(name: str) -> None:
    with pytest.raises(errors.SiteError, match="is not a site"):
        Site.parse(name)


def test_one_hierarchy_of_errors_with_places() -> None:
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(kind, errors.FairleadError) for kind in kinds)
    assert issubclass(errors.FairleadError, ValueError)
    assert str(errors.DataError("bad.", source="a.jsonl", line=3, field="x")) == "a.jsonl:3 (field 'x'): bad."
    assert str(errors.DataError("bad.", line=3)) == "line 3: bad."
    assert str(errors.DataError("bad.", field="x")) == "(field 'x'): bad."
    assert str(errors.DataError("bad.")) == "bad."
    assert str(errors.SpecError("bad.", source="s.md", line=2)) == "s.md:2: bad."
    assert "pip install 'fairlead[llm]'" in str(
        errors.MissingDependencyError("openai", extra="llm", purpose="x")
    )


def test_linear_readout_is_a_projection() -> None:
    torch.manual_seed(0)
    direction = Direction(Site.parse("layers.1.resid_post"), torch.randn(8), name="d")
    readout = LinearReadout(direction, bias=0.5)
    acts = torch.randn(2, 3, 8, dtype=torch.float64)
    assert isinstance(readout, Readout)
    assert readout.site == direction.site
    torch.testing.assert_close(readout(acts), (acts * direction.vector.double()).sum(-1) + 0.5)
    assert direction.unit().norm() == pytest.approx(1.0)
    assert Direction(direction.site, torch.zeros(8)).unit().norm() == 0


def test_progress_goes_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    from fairlead.core import progress

    progress.say("hello")
    with progress.quiet():
        progress.say("hidden")
        assert list(progress.track(range(3), "work")) == [0, 1, 2]
    assert list(progress.track(range(3), "work")) == [0, 1, 2]
    meter = progress.Meter("work", 10, "tok")
    meter._last -= 100
    meter.advance(5, "loss 1.0")
    meter.close()
    found = capsys.readouterr()
    assert found.out == ""
    assert "hidden" not in found.err
    assert "work: 5 of 10" in found.err and "loss 1.0" in found.err
