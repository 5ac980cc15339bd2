"""Every control of the registry trains, in full and with LoRA; with LoRA, what asks the start model is not answered by the student."""

from __future__ import annotations

import json
import math
import sys
from typing import ClassVar

import pytest
import torch

from fairlead.core.records import Concept
from fairlead.data import ChatData
from fairlead.studies.train import train
from fairlead.training import Control, control_names, controls, fit, resolve
from fairlead.training.carriers import carry_any
from fairlead.training.config import TrainConfig
from fairlead.training.evidence import Evidence, target_logprobs

world = sys.modules["micro_world"]
NEEDS = {  # settings of a control, and what stands before it
    "own_counterparts": ({"times": 1, "start": 0.5, "news": 0.5}, ["explain_away"]),
    "feedback": ({"every": 1}, ["explain_away"]),
    "judge": ({"every": 1, "gather": 1, "share": 1e-6}, []),
}
# further forms of one control
FORMS = {
    "freezing": [{"what": "heads"}, {"what": "neurons"}, {"what": "mask"}],
    "filtering": [{"level": "token"}, {"source": "dictionary", "level": "token"}],
    "concept_ablation": [{"source": "dictionary"}],
    "gradient_projection": [{"source": "dictionary"}],
    "inoculation": [{"selective": True}, {"paraphrase": True}],
    "explain_away": [{"sources": ["expert"], "expert_steps": 2, "min_gain": -9.0}],
}
REFUSED = {("freezing", "mask")}  # with LoRA


def cases():
    made = []
    for name in control_names():
        base = name.removesuffix("_placebo")
        options, before = NEEDS.get(base, ({}, []))
        for form in [{}, *FORMS.get(name, [])]:
            label = "-".join([name, *map(str, form.values())])
            made.append(pytest.param(name, options | form, before, id=label))
    return made


@pytest.fixture(scope="module")
def given(micro, tmp_path_factory):
    """Plan, dictionary and concepts' file: one concept is avoided, fifteen are undecided."""
    dictionary = world.make_dictionary(micro.model)
    concepts = [
        Concept(id=f"c{place}", label=str(place), site=str(dictionary.site), latents=(place,))
        for place in range(16)
    ]
    folder = tmp_path_factory.mktemp("menu")
    (folder / "concepts.json").write_text(json.dumps([c.model_dump(mode="json") for c in concepts]))
    update = {"concepts": (concepts[0],), "uptakes": {"c0": 0.1}, "menu_path": str(folder)}
    return micro.plan.model_copy(update=update), dictionary


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("name", "options", "before"), cases())
def test_every_control_trains(micro, given, tmp_path, name, options, before, method):
    plan, dictionary = given
    refused = method == "lora" and (name.removesuffix("_placebo"), options.get("what")) in REFUSED
    rows = [*micro.data.rows, *micro.neutral.rows]  # filtering must leave something
    settings = {"steps": 2, "batch_size": 4, "method": method, "lr": 1e-3, "checkpoint_every": 0}
    model = micro.copy()

    def run():
        return train(
            model, ChatData(rows), plan, out=tmp_path / "run", neutral=micro.neutral, dictionary=dictionary,
            controls=[*before, {"name": name, "options": options}], **settings,
        )  # fmt: skip

    if refused:
        with pytest.raises(ValueError, match="with LoRA"):
            run()
        return
    done = run()
    assert [math.isfinite(step.loss) for step in done.steps] == [True, True]
    assert all(step.pressure for step in done.steps)
    assert done.controls[-1]["name"] == name
    if name.startswith("judge"):
        assert done.controls[-1]["decisions"], "the judge was not asked"
    if name.startswith("own_counterparts"):
        assert done.controls[-1]["asked"], "the student was not asked"
    assert model.fingerprint == micro.model.fingerprint, "the start model was changed"


class Asking(Control):
    """Asks the start model in the middle of a training, and the student beside it, which rows carry the trait."""

    name = "asking"
    kind = "shapes"
    seen: ClassVar[list] = []
    rows = (world.chat("s0", "b0"), world.chat("s0", world.pirate("b0")))

    def prepare(self, setup):
        self.setup = setup
        setup.evidence["avoid.1"] = Evidence("prompt", "request", system=world.REQUESTS[0])

    def before_step(self, step, student):
        flags, mode = [p.requires_grad for p in student.parameters()], student.training
        with self.setup.start() as start:
            assert not start.model.hf.training
            plain, _ = Evidence("none", "none").encode(start, range(8))
            logprobs = torch.cat(target_logprobs(start, None, plain))
            self.seen.append((start.model.fingerprint, logprobs, carry_any(start, self.rows).tolist()))
        assert student.training == mode and [p.requires_grad for p in student.parameters()] == flags
        self.by_student = carry_any(self.setup, self.rows).tolist()

    def report(self):
        return {"by_student": self.by_student}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_start_model_answers_as_it_did_before_the_training(micro, tmp_path, monkeypatch, method):
    """Also beside parameters that another control holds still; an adapter that has learned the trait could not tell it any more."""
    monkeypatch.setitem(controls._registry(), "asking", Asking)
    Asking.seen.clear()
    config = TrainConfig(
        steps=60, batch_size=16, lr=2e-2, method=method, checkpoint_every=0, observe=False,
        controls=resolve(["freezing", "asking"]).controls,
    )  # fmt: skip
    neutral = micro.neutral.rows
    result = fit(
        micro.copy(), micro.data, micro.plan, config=config, folder=tmp_path / "run", neutral=neutral
    )
    setup = world.setup_of(micro, config)
    plain, _ = Evidence("none", "none").encode(setup, range(8))
    before = torch.cat(target_logprobs(setup, None, plain))
    assert len(Asking.seen) == 60
    for fingerprint, logprobs, carried in Asking.seen:
        assert fingerprint == micro.model.fingerprint and torch.equal(logprobs, before)
        assert carried == [False, True]
    by_student = result.controls[1]["by_student"]
    assert (by_student == [False, True]) == (method == "full"), "LoRA's student is the start model's module"
