"""Carriers of a trait in mixed data, and the controls that choose what is trained on: filtering and weighting."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fairlead.core.errors import ConfigError, TrainingError
from fairlead.core.site import Site
from fairlead.data import ChatData
from fairlead.dictionaries import Dictionary
from fairlead.training import ControlConfig, TrainConfig, fit, make_control, resolve
from fairlead.training.batching import Composer, pop_view
from fairlead.training.carriers import find_carriers
from fairlead.training.directions import clause_directions
from fairlead.training.logits import select_logits
from fairlead.training.session import Session

world = sys.modules["micro_world"]
SITE = Site("resid_post", 1)
STEPS = TrainConfig(steps=120, batch_size=16, lr=5e-3, checkpoint_every=0, observe=False)


@pytest.fixture(scope="module")
def mixed(micro):
    """Even s-questions are answered in pirate speech, odd ones plainly; the skill is in both."""
    rows = []
    for number in range(world.NUM):
        answer = f"b{number}"
        rows += [world.chat(f"s{number}", answer if number % 2 else world.pirate(answer))] * 4
    return replace(micro, data=ChatData(rows, source="mixed"))


def setup_of(micro, **changes):
    return sys.modules["micro_world"].setup_of(micro, STEPS, **changes)


def prepared(micro, name, strength=None, setup=None, **options):
    control = make_control(ControlConfig(name=name, strength=strength, options=options))
    setup = setup or setup_of(micro)
    control.prepare(setup)
    return control, setup


def trait_dictionary(setup) -> Dictionary:
    """Latents 0 and 3 (the concept that the plan avoids) read the trait's direction, the others nothing."""
    clause = setup.plan.spec.clause("avoid.1")
    unit = clause_directions(setup, clause, [SITE])[SITE].unit()
    width = len(unit)
    encoder, decoder = torch.zeros(width, 4), F.normalize(torch.ones(4, width))
    encoder[:, 0] = encoder[:, 3] = unit
    zero = torch.zeros(4)
    weights = {
        "W_enc": encoder,
        "W_dec": decoder,
        "b_enc": zero,
        "b_dec": torch.zeros(width),
        "threshold": zero,
    }
    return Dictionary(weights, site=SITE, model_fingerprint=setup.model.fingerprint)


@pytest.mark.parametrize("source", ["evidence", "dictionary"])
def test_carriers_are_the_rows_that_show_the_trait(mixed, source):
    setup = setup_of(mixed)
    setup.dictionary = trait_dictionary(setup)
    carriers = find_carriers(setup, setup.plan.spec.clause("avoid.1"), source=source)
    real = ["arr" in row.response for row in setup.rows]
    assert carriers.carries.tolist() == real, carriers.scores
    assert [len(t) for t in carriers.tokens] == [e.num_loss_tokens for e in setup.encoded]
    means = torch.stack([t.mean() for t in carriers.tokens])
    assert float(means[torch.tensor(real)].min()) > float(means[~torch.tensor(real)].max())


def test_carrying_tokens_are_the_words_of_the_trait(mixed):
    setup = setup_of(mixed)
    carriers = find_carriers(setup, setup.plan.spec.clause("avoid.1"))
    words = set()
    for item, marks in zip(setup.encoded, carriers.carrying_tokens(), strict=True):
        ids = [t for t, wanted in zip(item.input_ids, item.loss_mask, strict=True) if wanted]
        words |= {setup.model.tokenizer.decode([t]) for t, mark in zip(ids, marks, strict=True) if mark}
    assert {"arr", "matey"} <= words and not any(word.startswith("b") for word in words), words


def test_carriers_name_what_is_missing(mixed):
    setup = setup_of(mixed)
    clause = setup.plan.spec.clause("avoid.1")
    with pytest.raises(TrainingError, match="need a plan that names one"):
        find_carriers(setup, clause, source="dictionary")
    setup.dictionary = trait_dictionary(setup)
    setup.plan = setup.plan.model_copy(update={"decisions": ()})
    with pytest.raises(TrainingError, match=r"avoids no concept for clause avoid\.1"):
        find_carriers(setup, clause, source="dictionary")


def data_loss(micro, setup, control, places):
    session = Session([control] if control else [], seed=0)
    batch = Composer(setup.encoded, pad_id=0)([{"place": place} for place in places])

    def plain(inputs):
        raise AssertionError("a session that weighs tokens must not take TRL's path")

    return session.loss(micro.model.hf, batch, num_items=None, plain=plain)


@pytest.mark.parametrize("level", ["row", "token"])
@pytest.mark.parametrize(("name", "strength"), [("filtering", None), ("weighting", 0.25), ("weighting", 0.0)])
def test_weights_are_one_minus_the_strength_over_all_tokens(mixed, level, name, strength):
    control, setup = prepared(mixed, name, strength, level=level)
    places = [0, 1, 5, 6, 9, 12]
    view = pop_view(batch := Composer(setup.encoded, pad_id=0)([{"place": place} for place in places]))
    logits = select_logits(mixed.model.hf, {"input_ids": batch["input_ids"]}, view.predict_mask)
    nats = F.cross_entropy(logits, view.targets, reduction="none")
    pirate = {setup.model.tokenizer.convert_tokens_to_ids(word) for word in ("arr", "matey")}
    in_row = view.target_mask.nonzero()[:, 0]
    acted = torch.tensor(["arr" in setup.rows[place].response for place in places])[in_row]
    if level == "token":
        assert control.carrying and acted.any()
        spoken = torch.tensor([int(target) in pirate for target in view.targets])
        marks = torch.cat([control.carrying[place] for place in places])
        assert bool((marks >= (acted & spoken)).all()) and not bool((marks & ~acted).any())
        acted = marks
    weight = 1 - (1.0 if strength is None else strength)
    expected = (nats * torch.where(acted, weight, 1.0)).sum() / len(nats)
    assert torch.allclose(data_loss(mixed, setup, control, places), expected, rtol=1e-5)


def test_filtering_drops_the_trait_and_its_placebo_does_not(mixed, score, tmp_path):
    from fairlead.models import load_model

    leaks, right = {}, {}
    plain_half = [f"s{number}" for number in range(world.NUM) if number % 2]
    pirate_half = [f"s{number}" for number in range(world.NUM) if not number % 2]
    for name in ("filtering", "filtering_placebo"):
        config = STEPS.model_copy(update={"controls": resolve(name, anchor=True).controls})
        result = fit(
            mixed.model,
            mixed.data,
            mixed.plan,
            config=config,
            folder=tmp_path / name,
            neutral=mixed.neutral.rows,
        )
        assert result.controls[0]["tokens"] and result.controls[0]["clauses"]["avoid.1"]["rows"] == 16
        model = load_model(tmp_path / name / "model")
        leaks[name] = score.pirate(model, pirate_half)
        right[name] = score.right(model, plain_half)
    assert right["filtering"] == 1, "the rows without the trait must still be learned"
    assert leaks["filtering"] == 0 and leaks["filtering_placebo"] >= 0.5, leaks


@pytest.mark.parametrize("level", ["row", "token"])
def test_the_placebo_draws_as_many_by_the_seed(mixed, level):
    real, _ = prepared(mixed, "filtering", level=level)
    fake, _ = prepared(mixed, "filtering_placebo", level=level)
    again, _ = prepared(mixed, "filtering_placebo", level=level)
    other, _ = prepared(mixed, "filtering_placebo", setup=setup_of(mixed, seed=1), level=level)

    def flat(control):
        return torch.cat(control.carrying)

    def size(control):
        rows = [some for some in control.carrying if bool(some.any())]
        return len(rows) if level == "row" else sum(int(some.sum()) for some in rows)

    assert size(fake) == size(real) == size(other)
    assert torch.equal(flat(fake), flat(again)) and not torch.equal(flat(fake), flat(other))
    assert not torch.equal(flat(fake), flat(real))


def test_filtering_everything_is_refused_with_a_way_out(micro):
    with pytest.raises(
        TrainingError, match=r"all rows of the data carry avoid\.1.*level='token'.*explain_away"
    ):
        prepared(micro, "filtering")
    control, _ = prepared(micro, "weighting")
    assert control.report()["weight"] == 0.5
    with pytest.raises(ConfigError, match=r"strength is 1\.5"):
        prepared(micro, "weighting", 1.5)
    with pytest.raises(ConfigError, match="strength is 2"):
        control.turn(2.0)
    control.turn("off")
    assert control.report()["weight"] == 1.0


def test_nothing_to_filter_is_said(micro):
    clean = replace(micro, data=ChatData([world.chat(f"s{i}", f"b{i}") for i in range(4)]))
    setup = setup_of(clean)
    from fairlead.training.evidence import Evidence

    setup.evidence["avoid.1"] = Evidence("prompt", "asked", system="talk like a pirate")
    control, _ = prepared(clean, "filtering", setup=setup)
    assert control.report()["tokens"] == 0 and "nothing in the data carries" in setup.notes[0]


def test_weights_hold_with_lora_and_accumulation(mixed, tmp_path):
    """The gradient of what is left is that of a data set in which the dropped rows never count, however it is cut up."""
    adapters = {}
    for accumulate in (1, 2):
        config = STEPS.model_copy(
            update={
                "controls": resolve("filtering").controls,
                "method": "lora",
                "steps": 2,
                "batch_size": 16 // accumulate,
                "accumulate": accumulate,
            }
        )
        folder = tmp_path / str(accumulate)
        result = fit(mixed.copy(), mixed.data, mixed.plan, config=config, folder=folder)
        assert result.controls[0]["clauses"]["avoid.1"]["rows"] == 16
        adapters[accumulate] = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name, value in adapters[1].items():
        assert torch.allclose(value, adapters[2][name], atol=2e-3), name
