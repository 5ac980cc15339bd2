"""A feature that training gave to one model alone is found by a crosscoder, on its token; one that both have is not called exclusive."""

from __future__ import annotations

import copy

import pytest
import torch

from fairlead.concepts import exclusive_latents
from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.dictionaries import Crosscoder
from fairlead.models import Model

SITE, TOKEN, STRENGTH = "layers.0.resid_post", 7, 6.0


@pytest.fixture(scope="module")
def changed(model):
    """The model with a new direction on one token's embedding."""
    hf = copy.deepcopy(model.hf)
    new = torch.zeros(model.d_model)
    new[5] = STRENGTH
    with torch.no_grad():
        hf.get_input_embeddings().weight[TOKEN] += new
    return Model.wrap(hf, model.tokenizer, "changed")


def crosscoder(before, after, shared: float) -> Crosscoder:
    """Latent 0 reads what the second model has more of along the new direction; its decoder's share of the first model is `shared`."""
    d = before.d_model
    encoder, decoder = torch.zeros(2 * d, 2), torch.zeros(2, 2 * d)
    encoder[d + 5, 0], encoder[5, 0] = 1.0, -1.0
    decoder[0, d + 5], decoder[0, 5] = 1.0 - shared, shared
    decoder[1, 0] = decoder[1, d] = 1.0
    weights = {
        "W_enc": encoder,
        "W_dec": decoder,
        "b_enc": torch.zeros(2),
        "b_dec": torch.zeros(2 * d),
        "threshold": torch.tensor([STRENGTH / 2, 1e9]),
        "site_scale": torch.ones(2),
    }
    return Crosscoder(
        weights,
        sites=[SITE, SITE],
        widths=(d, d),
        models=[before.name, after.name],
        fingerprints=[before.fingerprint, after.fingerprint],
    )


def test_what_only_the_second_model_has_is_found_on_its_token(model, changed, rows):
    (found,) = exclusive_latents(crosscoder(model, changed, 0.0), model, changed, rows)
    assert (found.side, found.latent, found.share) == ("after", 0, pytest.approx(1.0))
    assert found.tokens[0].strip() == f"w{TOKEN}"
    on_token = sum(row.input_ids[1:].count(TOKEN) for row in rows)
    assert found.num_active >= on_token > 0
    best = found.contexts[0]
    assert best.tokens[max(range(len(best.scores)), key=best.scores.__getitem__)].strip() == f"w{TOKEN}"
    assert abs(found.nu_reconstruction) < 0.05, "no other latent carries it in the first model"


def test_a_latent_on_both_sides_is_no_candidate(model, changed, rows):
    assert exclusive_latents(crosscoder(model, changed, 0.5), model, changed, rows) == []


def test_a_latent_that_shrank_away_on_one_side_is_not_called_exclusive(model, rows):
    """The same model twice: whatever the decoder says, both have it."""
    twin = Model.wrap(copy.deepcopy(model.hf), model.tokenizer, "twin")
    made = crosscoder(model, twin, 0.0)
    made.weights["W_enc"][5, 0] = 0.0
    made.weights["threshold"][0] = 0.0
    (found,) = exclusive_latents(made, model, twin, rows)
    assert (
        found.share == pytest.approx(1.0)
        and not found.exclusive
        and found.nu_error == pytest.approx(1.0, abs=0.02)
    )


def test_other_models_and_odd_settings_are_refused(model, changed, rows):
    with pytest.raises(DictionaryError, match=r"made for model.*Next"):
        exclusive_latents(crosscoder(model, changed, 0.0), changed, model, rows)
    with pytest.raises(ConfigError, match="min_share"):
        exclusive_latents(crosscoder(model, changed, 0.0), model, changed, rows, min_share=0.5)
