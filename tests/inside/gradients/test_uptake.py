"""Uptake against finite differences and invariances; resumption; the remainder; tokens and pressure agree with the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fairlead.gradients.uptake as uptake_module
from fairlead.core.errors import DataError, DictionaryError
from fairlead.core.records import Concept
from fairlead.data.batches import collate
from fairlead.dictionaries import Dictionary
from fairlead.gradients import (
    PressureGauge,
    batch_pressure,
    load_uptake,
    measure_uptake,
    save_uptake,
    token_menu,
)
from fairlead.gradients.attribution import remainder_parts, site_gradient, token_uptake
from fairlead.gradients.resampling import half_signs, poisson_weights
from fairlead.models.hooks import site_hook

SITE = "layers.1.resid_post"


@pytest.fixture(scope="module")
def dictionary(model):
    generator = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(80, 32, generator=generator), dim=-1)
    weights = {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": torch.full((80,), -0.3),
        "b_dec": 0.1 * torch.randn(32, generator=generator),
        "threshold": torch.full((80,), 0.2),
    }
    return Dictionary(weights, site=SITE, model_fingerprint=model.fingerprint)


def mean_loss(model, dictionary, rows, latent, alpha):
    """Mean loss per loss token with latent's contribution scaled by 1 + alpha, one row at a time."""
    total, num = 0.0, 0
    for row in rows:
        batch = collate([row], pad_id=0)

        def scale(hidden):
            return hidden + alpha * dictionary.encode(hidden)[..., latent, None] * dictionary.decoder[latent]

        with torch.no_grad(), site_hook(model, SITE, scale):
            scores = model.token_logprobs(batch)
        total -= float(scores[batch.loss_mask].double().sum())
        num += int(batch.loss_mask.sum())
    return total / num


def test_uptake_is_the_fall_of_the_loss_when_a_latent_grows(model, dictionary, rows):
    uptake = measure_uptake(model, dictionary, rows, batch_size=7)
    values = uptake.per_latent
    checked = torch.argsort(-values.abs())[[0, 1, 2, 5, 10, 20]].tolist()
    for latent in checked:
        step = 2e-3
        rise = mean_loss(model, dictionary, rows, latent, step) - mean_loss(
            model, dictionary, rows, latent, -step
        )
        assert float(values[latent]) == pytest.approx(-rise / (2 * step), rel=0.03, abs=2e-4), (
            f"latent {latent}, sign included"
        )
    assert uptake.loss == pytest.approx(mean_loss(model, dictionary, rows, 0, 0.0), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batch_size_does_not_matter(model, dictionary, rows, batch_size):
    one = measure_uptake(model, dictionary, rows, batch_size=3)
    other = measure_uptake(model, dictionary, rows, batch_size=batch_size)
    for name in (
        "sum_F",
        "mass_F",
        "act_F",
        "act_response_F",
        "boot_RF",
        "half_HF",
        "carried_U",
        "fires_U",
        "example_loss",
    ):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-3, msg=lambda t, n=name: f"{n}: {t}"
        )
    assert one.num_tokens == other.num_tokens and one.num_examples == len(rows)


def test_two_processes_measure_what_one_does(model, dictionary, rows):
    concepts = [Concept(id="c1", label="-", site=SITE, latents=(1, 4, 7))]
    alone = measure_uptake(model, dictionary, rows, batch_size=4, concepts=concepts, seed=2)
    shared = measure_uptake(model, dictionary, rows, batch_size=4, concepts=concepts, seed=2, workers=2)
    for name in (
        "sum_F",
        "mass_F",
        "act_F",
        "boot_RF",
        "boot_tokens_R",
        "half_HF",
        "carried_U",
        "fires_U",
        "example_loss",
    ):
        torch.testing.assert_close(getattr(shared, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    assert torch.equal(shared.table_index, alone.table_index)
    assert shared.num_tokens == alone.num_tokens and shared.loss == pytest.approx(alone.loss)
    assert shared.remainder == pytest.approx(alone.remainder, abs=0.05), "the remainder is sampled"
    assert shared.stability((1, 4, 7)) == alone.stability((1, 4, 7))


def test_padding_side_does_not_matter(model, dictionary, rows):
    def sums(side):
        batch = collate(rows[:6], pad_id=0, padding_side=side)
        pairs, _, _ = token_uptake(dictionary, batch, site_gradient(model, batch, SITE))
        return torch.zeros(80).index_add_(0, pairs.latent, pairs.value)

    torch.testing.assert_close(sums("right"), sums("left"), atol=1e-4, rtol=1e-3)


def test_the_model_is_left_as_it_was(model, dictionary, rows):
    wanted = [parameter.requires_grad for parameter in model.hf.parameters()]
    measure_uptake(model, dictionary, rows[:4])
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_an_interrupted_measurement_goes_on_to_the_same_numbers(
    model, dictionary, rows, tmp_path, monkeypatch
):
    whole = measure_uptake(model, dictionary, rows, batch_size=4)
    state = tmp_path / "uptake.state"
    calls = []

    def stop(num):
        calls.append(num)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_uptake(model, dictionary, rows, batch_size=4, state=state, save_every=2, on_batch=stop)
    assert state.is_file()
    runs = []
    real = uptake_module.site_gradient
    monkeypatch.setattr(uptake_module, "site_gradient", lambda *a: (runs.append(1), real(*a))[1])
    resumed = measure_uptake(model, dictionary, rows, batch_size=4, state=state)
    assert len(runs) == 2, "four of six batches were kept"
    torch.testing.assert_close(resumed.sum_F, whole.sum_F)
    torch.testing.assert_close(resumed.table_value, whole.table_value)
    assert not state.exists()


def test_a_state_of_other_data_is_not_continued(model, dictionary, rows, tmp_path):
    state = tmp_path / "uptake.state"

    def stop(num):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_uptake(model, dictionary, rows[:8], batch_size=4, state=state, save_every=1, on_batch=stop)
    found = measure_uptake(model, dictionary, rows[8:], batch_size=4, state=state)
    torch.testing.assert_close(found.sum_F, measure_uptake(model, dictionary, rows[8:], batch_size=4).sum_F)


def test_table_and_files_keep_the_per_example_numbers(model, dictionary, rows, tmp_path):
    concepts = [
        Concept(id="c0", label="a", site=SITE, latents=(0, 1, 2)),
        Concept(id="c3", label="b", site=SITE, latents=(3, 9)),
    ]
    uptake = measure_uptake(model, dictionary, rows, concepts=concepts)
    assert len(uptake.units) == 3, "the rest is a unit of its own"
    units = torch.zeros(3, dtype=torch.float64)
    units.index_add_(0, uptake.table_unit.flatten(), uptake.table_value.flatten().double())
    assert float(units[0]) == pytest.approx(float(uptake.sum_F[[0, 1, 2]].sum()), rel=1e-4, abs=1e-4)
    save_uptake(uptake, tmp_path / "u.safetensors")
    loaded = load_uptake(tmp_path / "u.safetensors")
    assert loaded.units == uptake.units and loaded.of((3, 9)) == uptake.of((3, 9))
    best = uptake.examples_of((0, 1, 2), 3)
    assert best == sorted(best, key=lambda pair: -pair[1])


def test_token_menu_sums_to_the_example(model, dictionary, rows):
    concepts = [Concept(id=f"c{i}", label="", site=SITE, latents=(i, i + 40)) for i in range(5)]
    tokens = token_menu(model, dictionary, concepts, rows[2])
    alone = measure_uptake(model, dictionary, rows[2:3])
    assert tokens.shape == (5, len(rows[2].input_ids))
    torch.testing.assert_close(
        tokens.sum(1).double(), torch.tensor([alone.of(c.latents) for c in concepts], dtype=torch.float64)
    )


def test_pressure_equals_uptake_whether_the_loss_is_a_sum_or_a_mean(model, dictionary, rows):
    concepts = [Concept(id=f"c{i}", label="", site=SITE, latents=(3 * i, 3 * i + 1)) for i in range(6)]
    batch = collate(rows[:5], pad_id=0)
    found = site_gradient(model, batch, SITE)
    wanted = measure_uptake(model, dictionary, rows[:5])
    expected = torch.tensor([wanted.of(c.latents) for c in concepts], dtype=torch.float32)
    num = found.num_tokens
    torch.testing.assert_close(
        batch_pressure(dictionary, concepts, found.hidden, found.grad, num_loss_tokens=num),
        expected,
        atol=1e-5,
        rtol=1e-3,
    )
    mean = PressureGauge(dictionary, concepts)(found.hidden, found.grad / num, num_loss_tokens=num, scale=num)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-3)


def test_remainder_equals_projection_token_by_token(model, dictionary, rows):
    batch = collate(rows[:6], pad_id=0)
    _, pairs, grad = token_uptake(dictionary, batch, site_gradient(model, batch, SITE))
    outside, total, chance = remainder_parts(dictionary, pairs, grad, max_tokens=10_000)
    wanted, by_chance = 0.0, 0.0
    for token in range(grad.shape[0]):
        rows_active = dictionary.decoder[pairs.latent[pairs.token == token]]
        left = grad[token]
        if len(rows_active):
            left = (
                left
                - rows_active.T
                @ torch.linalg.lstsq(rows_active.T, left[:, None], driver="gelsd").solution[:, 0]
            )
        wanted += float(left.square().sum())
        by_chance += float(grad[token].square().sum()) * max(0.0, 1 - len(rows_active) / 32)
    assert total == pytest.approx(float(grad.square().sum()), rel=1e-4)
    assert outside == pytest.approx(wanted, rel=0.02)
    assert chance == pytest.approx(by_chance, rel=1e-3)
    assert 0 < outside < total


def test_random_weights_belong_to_the_example():
    index = torch.tensor([5, 1, 900])
    torch.testing.assert_close(
        poisson_weights(index, 50, seed=0)[:, [1]], poisson_weights(torch.tensor([1]), 50, seed=0)
    )
    many = poisson_weights(torch.arange(2000), 50, seed=0)
    assert float(many.mean()) == pytest.approx(1.0, abs=0.02) and float(many.var()) == pytest.approx(
        1.0, abs=0.03
    )
    assert abs(float(half_signs(torch.arange(2000), 20, seed=0).mean())) < 0.02


def test_bootstrap_interval_matches_resampling_of_examples(model, dictionary, rows):
    uptake = measure_uptake(model, dictionary, rows)
    latents = torch.argsort(-uptake.per_latent.abs())[:3].tolist()
    each = [measure_uptake(model, dictionary, [row]) for row in rows]
    sums = np.array([float(one.sum_F[latents].sum()) for one in each])
    tokens = np.array([one.num_tokens for one in each])
    picks = np.random.default_rng(0).integers(0, len(rows), (4000, len(rows)))
    spread = (sums[picks].sum(1) / tokens[picks].sum(1)).std()
    assert float(uptake.resampled(latents).std()) == pytest.approx(spread, rel=0.25)


def test_bad_input_is_named(model, other_model, dictionary, rows):
    with pytest.raises(DictionaryError, match="fingerprint"):
        measure_uptake(other_model, dictionary, rows)
    with pytest.raises(DataError, match="no example"):
        measure_uptake(model, dictionary, [])


def test_a_loss_that_is_not_finite_is_named(other_model, dictionary, rows):
    weight = other_model.hf.get_output_embeddings().weight
    before = weight.data.clone()
    weight.data[5] = float("nan")
    free = Dictionary(dictionary.weights, site=SITE)
    try:
        with pytest.raises(DataError, match="not finite"):
            measure_uptake(other_model, free, rows)
    finally:
        weight.data = before
