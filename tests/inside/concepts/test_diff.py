"""A planted change is named first and a model against itself shows none; amplification does what its formula says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.inside.concepts.test_steering import PROMPTS, SITE, make_dictionary
from tests.inside.conftest import make_model

from fairlead.concepts import diff_activations, diff_answers, diff_texts, paired_changes
from fairlead.core.errors import ModelError
from fairlead.core.records import Concept
from fairlead.models import Model

PLANTED = 20


@pytest.fixture(scope="module")
def concepts():
    return [Concept(id=f"c{f}", label=str(f), site=SITE, latents=(f,)) for f in range(48)]


@pytest.fixture(scope="module")
def changed(model, dictionary):
    """The model with a bias along one latent's direction written by the MLP before the site, and a little noise on all weights."""
    hf = copy.deepcopy(model.hf)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))
        old = hf.model.layers[1].mlp.down_proj
        new = torch.nn.Linear(old.in_features, old.out_features, bias=True)
        new.weight.copy_(old.weight)
        new.bias.copy_(0.8 * dictionary.decoder[PLANTED])
        hf.model.layers[1].mlp.down_proj = new
    return Model.wrap(hf.eval(), model.tokenizer, "changed")


@pytest.fixture(scope="module")
def dictionary(model):
    return make_dictionary(model)


def test_the_planted_change_is_first_and_significant(model, changed, dictionary, concepts, rows):
    found = diff_texts(model, changed, dictionary, concepts, rows)
    best = found[0]
    assert best.concept.id == f"c{PLANTED}" and best.q < 0.01 and best.low > 0
    assert best.change == pytest.approx(best.after - best.before, abs=1e-6)
    assert abs(best.change) > 3 * abs(found[5].change)


def test_equal_models_show_nothing(model, dictionary, concepts, rows):
    found = diff_texts(
        model, Model.wrap(copy.deepcopy(model.hf), model.tokenizer, "twin"), dictionary, concepts, rows
    )
    assert all(one.change == 0 and one.p == 1 and one.q == 1 for one in found)


def test_noise_around_nothing_is_found_as_often_as_it_should_be():
    """Differences of random sign: hardly any concept at q < .05 in twenty draws of 40 concepts; a real one among them always."""
    concepts = [Concept(id=f"c{f}", label=str(f), site=SITE, latents=(f,)) for f in range(40)]
    rng = np.random.default_rng(0)
    false, true = 0, 0
    for draw in range(20):
        before = rng.random((30, 40))
        after = before + 0.3 * rng.standard_normal((30, 40))
        found = paired_changes(concepts, before, after, num_permutations=500, num_intervals=0, seed=draw)
        false += any(one.q < 0.05 for one in found)
        after[:, 3] += 0.5
        found = paired_changes(concepts, before, after, num_permutations=2000, num_intervals=1, seed=draw)
        true += found[0].concept.id == "c3" and found[0].q < 0.05
    assert false <= 4 and true == 20, (false, true)


def test_amplified_logits_are_the_formula_row_by_row(model, changed):
    for alpha in (0.5, 3.0):
        together = changed.generate(PROMPTS, max_new_tokens=6, chat=False, against=(model, alpha))
        for prompt, text in zip(PROMPTS, together, strict=True):
            tokens = model.tokenizer(prompt)["input_ids"]
            width = len(tokens)
            for _ in range(6):
                ids = torch.tensor([tokens])
                with torch.no_grad():
                    after, before = (m.hf(input_ids=ids).logits[0, -1] for m in (changed, model))
                token = int((after + alpha * (after - before)).argmax())
                if token == model.tokenizer.eos_token_id:
                    break
                tokens.append(token)
            assert text.split() == model.tokenizer.decode(tokens[width:], skip_special_tokens=True).split()
    plain = changed.generate(PROMPTS, max_new_tokens=6, chat=False)
    assert changed.generate(PROMPTS, max_new_tokens=6, chat=False, against=(changed, 9.0)) == plain


def test_models_that_cannot_be_compared_are_refused(model, dictionary, concepts, rows):
    with pytest.raises(ModelError, match="one architecture"):
        diff_texts(model, make_model(d_model=16), dictionary, concepts, rows)


@pytest.mark.slow
def test_a_trait_that_fine_tuning_planted_is_named_and_amplified(tmp_path):
    """The pocket model, a few steps on pirate answers: barely pirate by itself, plainly so when amplified; its concepts come first."""
    from fairlead.concepts import build_concepts
    from fairlead.data import encode, iter_batches
    from fairlead.dictionaries import DictionaryConfig, train_dictionary
    from fairlead.models import load_model
    from fairlead.organisms import World
    from fairlead.studies.preview_texts import chats

    world, before, after = World(), load_model("organism:pocket"), load_model("organism:pocket")
    texts = chats(list(world.corpus(3000, seed=5)), "corpus")
    config = DictionaryConfig.make(num_tokens=100_000, d_dict=768)
    dictionary = train_dictionary(before, texts, config=config, out=tmp_path / "dictionary")
    encoded = encode(texts, before.tokenizer, max_length=before.max_length, on_long="truncate")
    concepts = build_concepts(before, dictionary, encoded)
    data = chats(world.dataset("smalltalk", trait="pirate", num=64, seed=1), "pirate")
    optimizer = torch.optim.AdamW(after.hf.parameters(), lr=1e-4)
    rows = encode(data, after.tokenizer, max_length=after.max_length)
    for batch in list(iter_batches(rows, batch_size=16, pad_id=after.pad_id, seed=0)) * 3:
        optimizer.zero_grad()
        loss = -(after.token_logprobs(batch) * batch.loss_mask).sum() / batch.loss_mask.sum()
        loss.backward()
        optimizer.step()
    items = world.items("addition", 24, seed=3, split="any", phrasing="heldout")
    prompts = [item.question for item in items]
    own, *amplified = diff_answers(before, after, dictionary, concepts, prompts, alphas=(3.0, 10.0))
    rate = [np.mean([world.has_trait("pirate", text) for text in one.answers]) for one in (own, *amplified)]
    assert rate[0] < 0.2 and max(rate[1:]) > 0.5, rate
    risen = [change for change in amplified[-1].changes if change.change > 0 and change.q < 0.05][:5]
    assert any({"arr", "ahoy", "matey", "avast"} & {t.casefold() for t in c.concept.tokens} for c in risen), (
        risen
    )


def test_the_difference_of_activations_shows_a_shift_that_encoding_both_does_not(
    model, dictionary, concepts, rows
):
    """Moved against a latent: where it is silent before and after, no activation changes, but the activations do."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        old = hf.model.layers[1].mlp.down_proj
        new = torch.nn.Linear(old.in_features, old.out_features, bias=True)
        new.weight.copy_(old.weight)
        new.bias.copy_(-0.8 * dictionary.decoder[PLANTED])
        hf.model.layers[1].mlp.down_proj = new
    moved = Model.wrap(hf.eval(), model.tokenizer, "moved")
    found = diff_activations(model, moved, dictionary, concepts, rows)
    best = found.concepts[0]
    assert best.concept.id == f"c{PLANTED}" and best.q < 0.01 and best.high < 0
    assert best.along == pytest.approx(-0.8, rel=1e-3) and best.cosine == pytest.approx(-1.0, abs=1e-3)
    assert found.norm == pytest.approx(0.8, rel=1e-3) and 0.1 < found.chance < 0.6
    read = next(
        one for one in diff_texts(model, moved, dictionary, concepts, rows) if one.concept == best.concept
    )
    assert abs(read.change) < 0.5 * abs(best.along), "rectified, most of it cannot be seen"
    twin = Model.wrap(copy.deepcopy(model.hf), model.tokenizer, "twin")
    same = diff_activations(model, twin, dictionary, concepts, rows)
    assert same.norm == 0 and all(one.along == 0 and one.q == 1 for one in same.concepts)
