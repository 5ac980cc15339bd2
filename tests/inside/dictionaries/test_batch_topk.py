"""The dictionary step against autograd and dense oracles; planted features are found; short runs are not plain ReLU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.dictionaries import DictionaryConfig, find_kind, fit_dictionary
from fairlead.dictionaries.batch_topk import geometric_median
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.evaluation import random_reconstruction_fvu, reconstruction_metrics
from fairlead.dictionaries.kinds import StepState
from fairlead.dictionaries.selection import Encoder
from fairlead.dictionaries.sparse import (
    batch_topk,
    decode,
    dense_to_pairs,
    gather_dot,
    transpose,
    transposed_product,
)
from fairlead.dictionaries.trainer import Trainer


def planted(
    num: int, *, d_model: int = 16, num_features: int = 24, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(
        torch.randn(num_features, d_model, generator=torch.Generator().manual_seed(99)), dim=-1
    )
    on = torch.rand(num, num_features, generator=generator) < 0.08
    size = 1 + torch.rand(num, num_features, generator=generator)
    return (on * size) @ features + 0.01 * torch.randn(num, d_model, generator=generator), features


def batches(num_tokens: int, size: int, **options):
    acts, _ = planted(num_tokens, **options)
    return iter(acts.split(size))


def active(kind: str, pre: torch.Tensor, k: int) -> torch.Tensor:
    """Dense activations as the kind's paper has them."""
    if kind == "topk":
        kept = pre.relu().topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
    kept = pre.relu().flatten().topk(pre.shape[0] * k)
    return torch.zeros(pre.numel()).scatter(0, kept.indices, kept.values).view(pre.shape)


KINDS = {"batch_topk": (1.0,), "topk": (1.0,), "matryoshka": (0.1, 0.5, 1.0)}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_hand_written_gradients_equal_autograd_also_for_dead_latents(kind, precision):
    config = DictionaryConfig(
        kind=kind, d_dict=40, k=3, k_aux=5, aux_weight=0.5, prefixes=(0.1, 0.5), precision=precision
    ).sized(16)
    x, _ = planted(32)
    params = find_kind(kind).start(x, config, torch.Generator().manual_seed(0))
    params["b_enc"] = 0.05 * torch.randn(40, generator=torch.Generator().manual_seed(1))
    dead = torch.arange(40) % 3 == 0
    found = find_kind(kind).step(params, x, config, StepState(0.3, dead))

    p = {name: value.clone().requires_grad_() for name, value in params.items()}
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    acts = active(kind, pre, 3)
    errors = [
        acts[:, : round(share * 40)] @ p["W_dec"][: round(share * 40)] + p["b_dec"] - x
        for share in KINDS[kind]
    ]
    loss = torch.stack([error.square().mean() for error in errors]).mean()
    aux = pre[:, dead].relu().topk(5, dim=-1)
    aux_acts = torch.zeros(32, int(dead.sum())).scatter(1, aux.indices, aux.values)
    # the residual is a constant for AuxK, and the centred input of the encoder is where b_dec gets its gradient
    loss = loss + 0.5 * (aux_acts @ p["W_dec"][dead] + errors[-1].detach()).square().mean()
    loss.backward()
    loss = loss.detach()
    wanted = {name: value.grad for name, value in p.items()}
    wanted["W_dec"] = (
        wanted["W_dec"] - (wanted["W_dec"] * params["W_dec"]).sum(-1, keepdim=True) * params["W_dec"]
    )
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.num_active == int((acts > 0).sum())
    for name, grad in wanted.items():
        torch.testing.assert_close(
            found.grads[name], grad, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@given(seed=st.integers(0, 50), num=st.integers(1, 30), floor=st.floats(0, 3))
def test_batch_topk_keeps_the_largest_whatever_the_floor(seed, num, floor):
    pre = torch.randn(6, 9, generator=torch.Generator().manual_seed(seed))
    pairs = batch_topk(pre, num, floor=floor)
    wanted = pre.flatten().clamp_min(0).topk(num).values
    kept = pairs.value.sort(descending=True).values
    torch.testing.assert_close(kept, wanted[wanted > 0])
    torch.testing.assert_close(pre[pairs.token, pairs.latent], pairs.value)


def test_sparse_products_equal_dense_ones():
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(7, 11, generator=generator).relu() * (torch.rand(7, 11, generator=generator) < 0.3)
    acts[3] = 0  # a token with no active latent
    decoder, right = torch.randn(11, 5, generator=generator), torch.randn(7, 5, generator=generator)
    pairs = dense_to_pairs(acts)
    torch.testing.assert_close(decode(pairs, decoder), acts @ decoder)
    torch.testing.assert_close(transposed_product(transpose(pairs, 11), pairs.value, right), acts.T @ right)
    torch.testing.assert_close(
        gather_dot(pairs, right, decoder), (right @ decoder.T)[pairs.token, pairs.latent]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_planted_features_are_found_and_a_random_decoder_is_beaten(kind):
    config = DictionaryConfig(
        kind=kind, d_dict=32, k=3, num_tokens=60_000, batch_tokens=128, lr=6e-3, seed=1, prefixes=(0.5,)
    )
    trainer = fit_dictionary(batches(60_000, 128), config)
    found = Dictionary(trainer.export(), site="layers.0.resid_post")
    held_out, features = planted(4000, seed=5)
    recovered = (features @ found.decoder.T).max(-1).values
    metrics = reconstruction_metrics(found, held_out)
    baseline = random_reconstruction_fvu(held_out, d_dict=32, k=3)
    if kind != "matryoshka":  # its prefixes mix features that have no hierarchy: that is their price
        assert (recovered > 0.9).float().mean() > 0.8, f"planted features recovered: {recovered}"
    assert metrics["fvu"] < 0.5 * baseline, (
        f"FVU {metrics['fvu']:.3f} against a random decoder's {baseline:.3f}"
    )
    assert 1.0 < metrics["l0"] < 4.0, (
        "the inference threshold keeps about k latents a token, also after a short run"
    )
    torch.testing.assert_close(found.decoder.norm(dim=-1), torch.ones(32))


def test_the_first_prefix_of_a_matryoshka_reconstructs_by_itself():
    """Its first 4 latents leave less unexplained than the first 4 of a BatchTopK."""

    def prefix_fvu(kind: str) -> float:
        config = DictionaryConfig(
            kind=kind, d_dict=32, k=3, num_tokens=40_000, batch_tokens=128, lr=6e-3, seed=2, prefixes=(0.125,)
        )
        found = Dictionary(fit_dictionary(batches(40_000, 128), config).export(), site="layers.0.resid_post")
        held_out, _ = planted(3000, seed=5)
        acts = found.encode(held_out)
        acts[:, 4:] = 0
        error = (found.decode(acts) - held_out).square().sum()
        return float(error / (held_out - held_out.mean(0)).square().sum())

    nested, plain = prefix_fvu("matryoshka"), prefix_fvu("batch_topk")
    assert nested < plain - 0.05, (
        f"unexplained by the first 4 latents: nested {nested:.2f}, plain {plain:.2f}"
    )


def test_every_token_of_a_topk_keeps_its_own():
    pre = torch.tensor([[5.0, 4.0, 3.0, 0.0], [0.3, 0.2, 0.1, -1.0], [-1.0, -2.0, 0.05, -3.0]])
    config, kind = DictionaryConfig(kind="topk", d_dict=4, k=2), find_kind("topk")
    encoder = Encoder(pre, torch.eye(4), torch.zeros(4))
    pairs, least = kind.select(encoder, config, StepState(0.0, torch.zeros(4, dtype=torch.bool)))
    assert pairs.token.tolist() == [0, 0, 1, 1, 2] and pairs.latent.tolist() == [0, 1, 0, 1, 2]
    assert least == pytest.approx(0.2), "the cut that keeps as many pairs over the batch"


def test_a_short_run_notices_dead_latents_and_only_auxk_gives_them_a_gradient():
    acts, _ = planted(20_000)
    config = DictionaryConfig(d_dict=64, k=2, num_tokens=20_000, batch_tokens=50, k_aux=16).sized(16)
    trainer = Trainer(find_kind("batch_topk"), config, acts[:50])
    trainer.params["b_enc"][:4] = -100.0
    for batch in acts.split(50)[:12]:  # 3 % of the run
        trainer.step(batch)
    assert trainer.dead[:4].all(), "silent for longer than 2 % of the run's tokens"

    params = trainer.params
    params["b_enc"][:4] = -0.5  # below the batch's threshold, but not below zero everywhere
    x = acts[1000:1050] * trainer.scale
    silent = torch.zeros(64, dtype=torch.bool)
    silent[:4] = True
    for weight, moved in ((0.0, False), (1 / 32, True)):
        settings = config.model_copy(update={"aux_weight": weight, "k": 1})
        found = find_kind("batch_topk").step(params, x, settings, StepState(0.0, silent))
        quiet_ones = silent & ~found.fired
        assert quiet_ones.any()
        assert bool(found.grads["W_dec"][quiet_ones].abs().sum() > 0) is moved


@pytest.mark.parametrize("kind", ["batch_topk", "topk"])
def test_a_fitted_start_reconstructs_best_and_a_short_run_gains_by_it(kind):
    config = DictionaryConfig(kind=kind, d_dict=128, k=8, num_tokens=2000, batch_tokens=100)
    acts, _ = planted(2000)
    held_out, _ = planted(1000, seed=5)
    state = StepState(0.0, torch.zeros(128, dtype=torch.bool))

    def start_loss(factor: float) -> float:
        fitted = config.model_copy(update={"fit_start": True, "aux_weight": 0.0}).sized(16)
        params = find_kind(kind).start(acts[:200], fitted, torch.Generator().manual_seed(0))
        params["W_enc"] *= factor
        return float(find_kind(kind).step(params, acts[:200], fitted, state).loss)

    assert start_loss(1.0) <= min(start_loss(0.95), start_loss(1.05)), "no other factor does better"
    plain, fitted = (
        fit_dictionary(iter(acts.split(100)), config.model_copy(update={"fit_start": flag}))
        for flag in (False, True)
    )
    left = [
        reconstruction_metrics(Dictionary(run.export(), site="embed"), held_out)["fvu"]
        for run in (plain, fitted)
    ]
    assert left[1] < 0.8 * left[0], f"FVU plain {left[0]:.3f}, fitted {left[1]:.3f}"


def test_scaling_is_folded_into_the_weights():
    config = DictionaryConfig(d_dict=32, k=2, num_tokens=5_000, batch_tokens=100)
    acts, _ = planted(5_000)
    one = fit_dictionary(iter(acts.split(100)), config)
    hundred = fit_dictionary(iter((100 * acts).split(100)), config)
    first = Dictionary(one.export(), site="embed")
    second = Dictionary(hundred.export(), site="embed")
    torch.testing.assert_close(second.encode(100 * acts), 100 * first.encode(acts), rtol=1e-2, atol=1e-1)


def test_geometric_median_resists_outliers():
    points = torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
    points[0] = 1e6
    assert geometric_median(points).norm() < 1


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="batch_topk"):
        find_kind("gated")
    with pytest.raises(ConfigError, match=r"DictionaryConfig\.k"):
        DictionaryConfig.make(k=0)
    broken = iter([torch.full((8, 4), float("nan"))])
    with pytest.raises(DictionaryError, match="finite"):
        fit_dictionary(broken, DictionaryConfig(num_tokens=8, batch_tokens=8, d_dict=8, k=1))
