"""Verification: what is counted, with which interval, and what the start model is needed for."""

from __future__ import annotations

import math

import pytest

from fairlead.core.errors import ConfigError
from fairlead.core.run import write_json
from fairlead.data.suite import NeutralChat, SkillItem, SkillSet, Suite, TraitCheck
from fairlead.studies.resolvers import resolvers_for
from fairlead.studies.verify import load_verification, make_reference, verify
from fairlead.training.verification import measure_answers, measure_probes
from fairlead.training.verification.measures import area, mean, proportion


class Parrot:
    """A stand-in that answers from a table: what `measure_answers` needs of a model."""

    name = "parrot"

    class tokenizer:
        chat_template = "yes"

    def __init__(self, answers: dict[str, str], asked: str = "arr 9") -> None:
        self.answers, self.asked, self.calls = answers, asked, 0

    def generate(self, prompts, *, system=None, **_):
        self.calls += len(prompts)
        return [self.asked if system else self.answers[p] for p in prompts]


def suite_of(**changes) -> Suite:
    values = {
        "skills": (
            SkillSet(
                name="sums",
                items=(
                    SkillItem(prompt="1+1", value="2", match="number"),
                    SkillItem(prompt="2+2", value="4", match="number", heldout=True),
                    SkillItem(prompt="3+3", value="6", match="number", heldout=True),
                ),
            ),
        ),
        "neutral_prompts": ("hello", "bye"),
        "traits": (
            TraitCheck(
                clause="avoid.1",
                name="pirate",
                kind="regex",
                pattern="arr",
                requests=("r",),
                requests_heldout=("h",),
            ),
        ),
    }
    return Suite(**{**values, **changes})


def test_plain_means_right_and_without_the_trait():
    model = Parrot({"1+1": "2", "2+2": "arr 4", "3+3": "7", "hello": "hi", "bye": "arr bye"})
    measures, samples, answers = measure_answers(model, suite_of())
    values = {name: (m.value, m.num) for name, m in measures.items()}
    assert values == {
        "skill.sums": (pytest.approx(2 / 3), 3),
        "skill.sums.plain": (pytest.approx(1 / 3), 3),
        "skill.sums.heldout": (0.5, 2),
        "skill.sums.heldout.plain": (0.0, 2),
        "leak.pirate.domain": (pytest.approx(1 / 3), 3),
        "leak.pirate.neutral": (0.5, 2),
        "request.pirate": (1.0, 5),
    }
    assert {s.group for s in samples} == {"domain", "neutral", "request"}
    assert [s.traits for s in samples if s.prompt == "2+2" and s.group == "domain"] == [("pirate",)]
    assert answers["bye"] == "arr bye"


def test_a_prompt_in_several_lists_is_answered_once():
    model = Parrot({"1+1": "2", "2+2": "4", "3+3": "6", "hello": "hi"})
    measure_answers(model, suite_of(domain_prompts=("1+1", "hello"), neutral_prompts=("hello",), traits=()))
    assert model.calls == 4


def test_intervals_hold_the_value_and_shrink_with_numbers():
    few, many = proportion([True] * 9 + [False]), proportion([True] * 900 + [False] * 100)
    assert few.low < 0.9 < few.high and many.high - many.low < few.high - few.low
    perfect = area([1.0, 2.0, 3.0], [0.0, -1.0])
    assert perfect.value == 1.0 and perfect.low < 1.0, "an area of 1 on five points is not certain"
    weighted = mean([1.0, 6.0], weights=[1.0, 2.0])
    assert weighted.value == pytest.approx(7 / 3)
    assert math.isnan(proportion([]).value)


def micro_suite(micro) -> Suite:
    rows = micro.neutral.rows
    return Suite(
        skills=(SkillSet(name="s", items=tuple(SkillItem(prompt=f"s{i}", value=f"b{i}") for i in range(8))),),
        neutral_prompts=tuple(row.prompt for row in rows),
        neutral_chats=tuple(NeutralChat(messages=row.messages) for row in rows),
        traits=(
            TraitCheck(
                clause="avoid.1",
                name="pirate",
                kind="regex",
                pattern="arr",
                requests=("talk like a pirate", "be a pirate"),
            ),
        ),
    )


def test_a_run_is_verified_beside_its_start_model(micro, tmp_path):
    from fairlead.studies.train import train

    run = train(
        micro.model,
        micro.data,
        micro.plan,
        out=tmp_path / "r",
        controls="plain",
        steps=40,
        batch_size=16,
        lr=3e-3,
        observe=False,
    )
    suite = micro_suite(micro)
    found = verify(run, suite=suite)
    names = set(found.measures)
    assert {
        "skill.s",
        "skill.s.plain",
        "leak.pirate.domain",
        "leak.pirate.neutral",
        "request.pirate",
        "loss.neutral",
    } <= names
    assert {"monitor.pirate.old_probe", "monitor.pirate.new_probe", "monitor.pirate.text_only"} <= names
    base = make_reference(micro.model, suite).verification
    assert found.measures["leak.pirate.domain"].value > base.measures["leak.pirate.domain"].value + 0.5
    assert found.measures["loss.neutral"].value > base.measures["loss.neutral"].value
    assert load_verification(run.folder) == found


def test_probes_read_the_start_model_perfectly_and_shuffled_answers_not_at_all(micro):
    suite = micro_suite(micro)
    data = make_reference(micro.model, suite).probe_data
    real = measure_probes(micro.model, micro.model, data)
    assert real["monitor.pirate.old_probe"].value == real["monitor.pirate.new_probe"].value > 0.95
    one_token = real["monitor.pirate.old_probe_token"]
    assert 0.6 < one_token.value <= real["monitor.pirate.old_probe"].value, "single tokens say less"
    answers = data.traits["pirate"]
    mixed = [
        (s, p) if i % 2 else (p, s) for i, (s, p) in enumerate(zip(answers.shown, answers.plain, strict=True))
    ]
    shuffled = answers.model_copy(
        update={"shown": tuple(a for a, _ in mixed), "plain": tuple(b for _, b in mixed)}
    )
    placebo = measure_probes(
        micro.model, micro.model, data.model_copy(update={"traits": {"pirate": shuffled}})
    )
    assert placebo["monitor.pirate.old_probe"].value < 0.9
    assert placebo["monitor.pirate.old_probe_token"].value < one_token.value


def test_predictions_are_the_change_of_the_concepts_own_activation(micro, tmp_path):
    import copy

    import torch

    from fairlead.core.records import Menu, MenuLine
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model
    from fairlead.training.verification import measure_predictions

    weights = {
        "W_enc": torch.eye(32)[:, :4].clone(), "W_dec": torch.eye(32)[:4].clone(), "b_enc": torch.zeros(4), "b_dec": torch.zeros(32),
        "threshold": torch.zeros(4),
    }  # fmt: skip
    dictionary = Dictionary(weights, site="layers.1.resid_post", model_fingerprint=micro.model.fingerprint)
    moved = Model.wrap(copy.deepcopy(micro.model.hf), micro.model.tokenizer)
    with torch.no_grad():  # the second layer now adds one along axis 2 of the residual stream, at every token
        moved.hf.model.layers[1].mlp.down_proj = torch.nn.Linear(64, 32, bias=True)
        moved.hf.model.layers[1].mlp.down_proj.weight.copy_(
            micro.model.hf.model.layers[1].mlp.down_proj.weight
        )
        moved.hf.model.layers[1].mlp.down_proj.bias.zero_()
        moved.hf.model.layers[1].mlp.down_proj.bias[2] = 5.0
    lines = tuple(
        MenuLine(
            concept=micro.plan.concepts[0].model_copy(update={"id": f"c{i}", "latents": (i,)}), uptake=float(i == 2), interval=(0, 0),
            share=0, stability=1, num_examples=1, fires=1,
        )
        for i in range(4)
    )  # fmt: skip
    menu = Menu(
        model="m", model_fingerprint="f", data="d", data_sha256="s", site="layers.1.resid_post", dictionary="x", dictionary_sha256="y",
        num_examples=1, num_tokens=1, loss=1.0, remainder=0.5, lines=lines,
    )  # fmt: skip
    prompts = [row.prompt for row in micro.neutral.rows]
    answers = dict(zip(prompts, [row.response for row in micro.neutral.rows], strict=True))
    found, _, _ = measure_predictions((moved, answers), (micro.model, answers), menu, dictionary, prompts)
    changes = [line.measured for line in found]
    assert max(range(4), key=lambda i: changes[i]) == 2 and changes[2] > 2
    assert changes[0] == pytest.approx(0, abs=1e-5)


def test_what_cannot_be_measured_is_said(micro):
    with pytest.raises(ConfigError, match="nothing to measure by"):
        verify(micro.model)
    assert resolvers_for(micro_suite(micro)).trait is None
    deaf = micro_suite(micro).model_copy(
        update={
            "traits": (
                TraitCheck(
                    clause="avoid.1", name="x", kind="regex", pattern="arr", requests=("answer the question",)
                ),
            )
        }
    )
    assert any(
        "probes are not measured" in note for note in make_reference(micro.model, deaf).verification.notes
    )


def test_the_pocket_worlds_traits_are_resolved():
    check = TraitCheck(clause="avoid.1", name="pirate", kind="organism", pattern="pirate")
    resolver = resolvers_for(Suite(traits=(check,))).trait
    assert resolver(check, "Arr, it is 4, matey!") and not resolver(check, "It is 4.")


def test_a_broken_record_is_not_read_as_a_verification(tmp_path):
    write_json(tmp_path / "run.json", {"study": "train"})
    with pytest.raises(ValueError, match=r"not the record of a run|verification"):
        load_verification(tmp_path)
