"""The judge in the loop: what the data push and nobody has decided on is judged once, and counts from then on."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fairlead.core.errors import TrainingError
from fairlead.core.records import Concept
from fairlead.core.site import Site
from fairlead.data import encode
from fairlead.dictionaries import Dictionary
from fairlead.studies.train import train
from fairlead.training.directions import mean_activations
from fairlead.training.setup import clause_rows

SITE = Site("resid_post", 1)
SETTINGS = {"steps": 9, "batch_size": 8, "lr": 1e-4, "checkpoint_every": 5, "observe": True}
JUDGE = {"name": "judge", "options": {"every": 3, "gather": 2, "share": 0.01}}


@pytest.fixture(scope="module")
def world(micro, tmp_path_factory):
    """Latents: 0 writes "arr" (decided), 1 reads the trait and writes "matey" (new), 2 writes what the data never say (new)."""
    tokenizer, head = micro.model.tokenizer, micro.model.hf.get_output_embeddings().weight.detach()

    def writes(word: str) -> torch.Tensor:
        row = head[tokenizer.convert_tokens_to_ids(word)] - head.mean(0)
        return row / row.norm()

    clause = micro.plan.spec.clause("avoid.1")
    shown, instead = (encode(rows, tokenizer, max_length=64) for rows in clause_rows(clause, chat=True))
    with_trait, without = (mean_activations(micro.model, rows, [SITE])[SITE] for rows in (shown, instead))
    reads = with_trait - without
    encoder = torch.zeros(32, 3)
    encoder[:, 1] = reads / reads.norm()
    middle = float((with_trait + without) @ encoder[:, 1]) / 2
    weights = {
        "W_enc": encoder,
        "W_dec": torch.stack([writes("arr"), writes("matey"), writes("q0")]),
        "b_enc": torch.tensor([1.0, -middle, 1.0]),
        "b_dec": torch.zeros(32),
        "threshold": torch.zeros(3),
    }
    dictionary = Dictionary(
        weights, site=str(SITE), model_fingerprint=micro.model.fingerprint, model_name="micro"
    )
    concepts = [
        Concept(id=f"c{place}", label=label, site=str(SITE), latents=(place,))
        for place, label in enumerate(("arr", "matey", "q0"))
    ]
    folder = tmp_path_factory.mktemp("menu")
    records = [concept.model_dump(mode="json") for concept in concepts]
    (folder / "concepts.json").write_text(json.dumps(records))
    update = {"concepts": (concepts[0],), "uptakes": {"c0": 0.1}, "menu_path": str(folder)}
    plan = micro.plan.model_copy(update=update)

    def run(out, controls, **changes):
        return train(
            micro.model, micro.data, changes.pop("plan", plan), out=out, controls=controls, neutral=micro.neutral,
            dictionary=dictionary, **{**SETTINGS, **changes},
        )  # fmt: skip

    run.plan = plan
    return run


def decided(run) -> dict[str, str]:
    return {d["concept"]: d["verdict"] for d in run.controls[-1]["decisions"]}


def test_a_concept_that_the_data_push_is_judged_and_observed_from_then_on(world, tmp_path):
    run = world(tmp_path / "a", ["anchor", JUDGE])
    assert decided(run) == {"c1": "avoid"}, "what the data push down, or what is decided, is not judged"
    (first,) = run.controls[-1]["decisions"]
    assert first["step"] == 3 and first["clause"] == "avoid.1" and first["reason"].startswith("after step 3")
    assert [sorted(step.pressure) for step in run.steps] == [["c0"]] * 3 + [["c0", "c1"]] * 6


def test_a_resumed_run_keeps_the_decisions(world, tmp_path, monkeypatch):
    whole = world(tmp_path / "a", ["anchor", JUDGE])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        sys.modules["micro_world"].interrupt_at(patch, 7)
        world(tmp_path / "b", ["anchor", JUDGE])
    again = world(tmp_path / "b", ["anchor", JUDGE])
    assert again.controls[-1] == whole.controls[-1]
    assert [step.pressure for step in again.steps] == [step.pressure for step in whole.steps]


def test_the_placebo_asks_as_often_about_anything(world, tmp_path):
    asked = {
        concept
        for seed in (0, 4)
        for concept in decided(world(tmp_path / str(seed), [{**JUDGE, "name": "judge_placebo"}], seed=seed))
    }
    assert "c2" in asked, "drawn at random, what nothing pushes is judged as well"


def test_without_the_concepts_the_judge_says_what_to_do(world, tmp_path):
    lost = world.plan.model_copy(update={"menu_path": str(tmp_path / "gone")})
    with pytest.raises(TrainingError, match="keep the folder of the preview"):
        world(tmp_path / "a", [JUDGE], plan=lost)
    with pytest.raises(TrainingError, match="observes nothing"):
        world(tmp_path / "b", [JUDGE], observe=False)
