"""Attribution against the oracle (exact ablation of each concept), its placebo, and completeness."""

from __future__ import annotations

import random

import pytest
import torch
from tests.inside.concepts.test_steering import SITE, make_dictionary

from fairlead.concepts import attribute
from fairlead.core.errors import ConfigError
from fairlead.core.records import Concept
from fairlead.core.stats import spearman
from fairlead.data import iter_batches


@pytest.fixture(scope="module")
def dictionary(model, rows):
    """Without a bias the path would start where the layer norm is singular; real dictionaries start at the mean."""
    made = make_dictionary(model)
    hidden = [model.capture(batch, [SITE])[SITE][batch.attention_mask.bool()] for batch in batches(rows)]
    made.weights["b_dec"] = torch.cat(hidden).mean(0)
    return made


def batches(rows):
    return iter_batches(rows, batch_size=8, pad_id=0)


@pytest.fixture(scope="module")
def concepts():
    return [Concept(id=f"c{f}", label=str(f), site=SITE, latents=(f, f + 1)) for f in range(0, 48, 2)]


def values(found):
    return {cause.concept.id: cause.value for cause in found.causes}


@pytest.mark.parametrize("method", ["gradient", "integrated"])
def test_ranks_concepts_as_exact_ablation_does_and_shuffled_concepts_do_not(
    model, dictionary, concepts, rows, method
):
    real, shuffled = [], []
    for row in rows[:8]:
        exact = values(attribute(model, dictionary, concepts, row, method="ablation"))
        found = values(attribute(model, dictionary, concepts, row, method=method))
        acting = [name for name in exact if exact[name] != 0]
        real.append(spearman([exact[n] for n in acting], [found[n] for n in acting]))
        other = random.Random(0).sample(acting, len(acting))
        shuffled.append(spearman([exact[n] for n in acting], [found[n] for n in other]))
    mean = {name: sum(each) / len(each) for name, each in (("real", real), ("placebo", shuffled))}
    assert mean["real"] > 0.8, mean
    assert abs(mean["placebo"]) < 0.3, mean


def test_integrated_gradients_add_up_with_the_error_as_remainder(model, dictionary, concepts, rows):
    some = concepts[:10]  # the other latents are in `other`
    for row in rows[:4]:
        found = attribute(model, dictionary, some, row, method="integrated", steps=48)
        parts = sum(cause.value for cause in found.causes) + found.other + found.remainder
        change = found.output - found.baseline
        assert parts + found.gap == pytest.approx(change, abs=1e-3)
        assert abs(found.gap) < 0.02 * abs(change) + 0.02, (found.gap, change)
        assert abs(found.remainder) > 0.05, "this dictionary reconstructs badly: its error must show"
        for cause in found.causes:
            assert sum(cause.tokens) == pytest.approx(cause.value, abs=1e-4) and cause.tokens[0] == 0
    assert abs(attribute(model, dictionary, some, rows[0], steps=1).gap) > abs(found.gap) / 10


def test_the_output_is_the_chosen_tokens_log_probability(model, dictionary, concepts, rows):
    row = rows[0]
    scores = model.logprobs([row])[0]
    places = [place for place, wanted in enumerate(row.loss_mask) if wanted]
    whole = attribute(model, dictionary, concepts, row, method="gradient")
    one = attribute(model, dictionary, concepts, row, method="gradient", tokens=[places[1]])
    assert whole.output == pytest.approx(float(scores[places].sum()), abs=1e-3)
    assert one.output == pytest.approx(float(scores[places[1]]), abs=1e-4)
    with pytest.raises(ConfigError, match="not predicted"):
        attribute(model, dictionary, concepts, row, tokens=[0])


def test_the_difference_of_two_answers_is_the_difference_of_their_attributions(
    model, dictionary, concepts, rows
):
    one, two = (attribute(model, dictionary, concepts, row) for row in rows[:2])
    both = attribute(model, dictionary, concepts, rows[0], against=rows[1])
    assert both.output == pytest.approx(one.output - two.output, abs=1e-4)
    for name, value in values(both).items():
        assert value == pytest.approx(values(one)[name] - values(two)[name], abs=1e-4)
    same = attribute(model, dictionary, concepts, rows[0], against=rows[0])
    assert max(abs(cause.value) for cause in same.causes) < 1e-6
