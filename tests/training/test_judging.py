"""The judge in the loop: what the data push and nobody has decided on is judged once, and counts from then on."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fairlead.core.errors import TrainingError
from fairlead.core.records import Concept
from fairlead.core.site import Site
from fairlead.data import encode, iter_batches
from fairlead.dictionaries import Dictionary
from fairlead.studies.train import train
from fairlead.training.controls import judging
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
    keep = encode(clause_rows(micro.plan.spec.clause("keep.1"), chat=True)[0], tokenizer, max_length=64)

    def highest(rows) -> float:
        batch = next(iter_batches(rows, batch_size=len(rows), pad_id=micro.model.pad_id))
        read = micro.model.capture(batch, [SITE])[str(SITE)] @ encoder[:, 1]
        return float(read[batch.attention_mask.bool()].max())

    if highest(shown) <= highest(keep):
        pytest.skip("the micro model that this machine trains has no direction that reads the trait alone")
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


def test_decisions_are_cached_by_concept_and_spec(world, tmp_path, monkeypatch):
    asked = []
    judge = judging.judge_examples
    monkeypatch.setattr(
        judging,
        "judge_examples",
        lambda *args, **how: asked.append([c.id for c in args[2]]) or judge(*args, **how),
    )
    first, second = (world(tmp_path / name, ["anchor", JUDGE], cache=tmp_path / "cache") for name in "ab")
    assert decided(first) == decided(second) == {"c1": "avoid"} and asked == [["c1"]]
    (kept,) = (tmp_path / "cache" / "judged").glob("*.json")
    kept.write_text(kept.read_text()[:20])
    assert decided(world(tmp_path / "c", ["anchor", JUDGE], cache=tmp_path / "cache")) == {"c1": "avoid"}
    assert asked == [["c1"], ["c1"]], "a broken file is judged anew"
    spec = world.plan.spec.model_copy(update={"title": "another"})
    other = world.plan.model_copy(update={"spec": spec})
    world(tmp_path / "d", ["anchor", JUDGE], cache=tmp_path / "cache", plan=other)
    assert len(asked) == 3, "another spec is another question"


@pytest.mark.parametrize("every", [1, 3])
def test_a_language_model_may_be_the_judge_and_look_at_every_step(world, tmp_path, every):
    answer = {"verdict": "avoid", "clause": "avoid.1", "confidence": 0.9, "reason": "says matey"}
    (tmp_path / "script.json").write_text(json.dumps({"*": answer}))
    options = {**JUDGE["options"], "every": every, "gather": 1, "llm": f"scripted:{tmp_path / 'script.json'}"}
    run = world(tmp_path / "a", ["anchor", {"name": "judge", "options": options}])
    (first,) = run.controls[-1]["decisions"]
    assert first["judge"].startswith("llm:") and first["step"] == every and first["concept"] == "c1"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_clause_that_a_new_concept_names_reaches_the_other_controls(world, tmp_path, method):
    """A second clause, which no decision named, is explained away and weighed from the look on; a resumed run does so, too."""
    spec = world.plan.spec
    clause = spec.clause("avoid.1")
    fresh = clause.model_copy(update={"id": "avoid.2", "text": "be a pirate", "requests": ("be a pirate",)})
    quiet = clause.model_copy(update={"examples": ()})  # the examples judge finds the second
    keep = spec.clause("keep.1")
    plan = world.plan.model_copy(update={"spec": spec.model_copy(update={"clauses": (keep, quiet, fresh)})})
    run = world(tmp_path / "a", ["explain_away", JUDGE], plan=plan, method=method)
    first = run.controls[-1]["decisions"][0]
    assert (first["step"], first["concept"], first["clause"]) == (3, "c1", "avoid.2")
    found = run.controls[0]["clauses"]
    assert set(found) == {"avoid.1", "avoid.2"} and found["avoid.2"]["rows"] > 0
    alone = world(tmp_path / "b", ["explain_away"], plan=plan, method=method)
    before, after = ([step.loss for step in each.steps] for each in (alone, run))
    assert before[:3] == after[:3] and before[3] != after[3]


def test_weights_by_the_dictionary_are_measured_again_when_a_concept_is_found(world, tmp_path):
    weighting = {"name": "weighting", "options": {"source": "dictionary"}}
    run = world(tmp_path / "a", [weighting, JUDGE])
    alone = world(tmp_path / "b", [weighting])
    assert decided(run) == {"c1": "avoid"}
    rows = [each.controls[0]["clauses"]["avoid.1"]["rows"] for each in (alone, run)]
    assert rows[0] == 0 < rows[1], "c0 is the same in all rows, c1 reads the trait"
