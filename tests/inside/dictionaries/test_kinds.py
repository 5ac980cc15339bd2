"""JumpReLU and block-sparse: gradients against oracles, and planted structure that only the right kind recovers."""

from __future__ import annotations

import pytest
import torch

from fairlead.core.errors import DictionaryError
from fairlead.dictionaries import BlockSparse, DictionaryConfig, find_kind, load_dictionary, train_dictionary
from fairlead.dictionaries.dictionary import Dictionary
from fairlead.dictionaries.evaluation import random_reconstruction_fvu, reconstruction_metrics
from fairlead.dictionaries.jumprelu import jump, step_above
from fairlead.dictionaries.kinds import StepState

from .planting import circles, codes, noise, train, unit_rows


def expected_loss(theta: torch.Tensor, pre: torch.Tensor, pull: float, cost: float) -> torch.Tensor:
    """Mean over draws of a loss that JumpReLU enters smoothly and that counts active latents."""
    acts = torch.where(pre > theta, pre, 0.0)
    return (pull * acts + cost * (pre > theta).float()).mean()


@pytest.mark.parametrize("theta", [0.3, 0.8])
def test_the_straight_through_gradient_is_the_slope_of_the_expected_loss(theta):
    """Its definition (arXiv 2407.14435, section 4): an estimate of the derivative of the expectation, not of any sample."""
    pre = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0))
    pull, cost, width = -0.7, 0.4, 0.1
    at = torch.tensor([theta], requires_grad=True)
    loss = (pull * jump(pre, at, width) + cost * step_above(pre, at, width)).sum(-1).mean()
    loss.backward()
    density = float(torch.exp(torch.tensor(-(theta**2) / 2)) / (2 * torch.pi) ** 0.5)
    exact = -(pull * theta + cost) * density  # d/dtheta of the integral above theta
    steps = 0.05
    numeric = float(
        expected_loss(torch.tensor(theta + steps), pre, pull, cost)
        - expected_loss(torch.tensor(theta - steps), pre, pull, cost)
    ) / (2 * steps)
    assert float(at.grad) == pytest.approx(exact, abs=0.01)
    assert float(at.grad) == pytest.approx(numeric, abs=0.01)


def test_jumprelu_sends_the_pre_activations_autograds_gradient_and_thresholds_only_the_estimators():
    """All but the thresholds against autograd with the mask held fixed; the thresholds against the formula by hand."""
    config = DictionaryConfig(kind="jumprelu", d_dict=40, k=3, aux_weight=0.0, bandwidth=0.4).sized(16)
    x = codes(64, 24, rate=0.1, seed=0) @ unit_rows(24, 16, 1)
    kind = find_kind("jumprelu")
    params = kind.start(x, config, torch.Generator().manual_seed(0))
    found = kind.step(params, x, config, StepState(0.0, torch.zeros(40, dtype=torch.bool)))

    p = {name: value.clone().requires_grad_() for name, value in params.items() if name != "log_threshold"}
    theta = params["log_threshold"].exp()
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    mask = (pre > theta).float().detach()
    error = (pre * mask) @ p["W_dec"] + p["b_dec"] - x
    l0 = mask.sum(-1).mean()
    reconstruction = error.square().mean()
    reconstruction.backward()
    wanted = {name: value.grad for name, value in p.items()}
    wanted["W_dec"] -= (wanted["W_dec"] * params["W_dec"]).sum(-1, keepdim=True) * params["W_dec"]
    for name, grad in wanted.items():
        torch.testing.assert_close(found.grads[name], grad, atol=1e-6, rtol=1e-4)
    near = ((pre - theta).abs() < 0.2).float().detach()
    out = (2 * error / error.numel()).detach() @ params["W_dec"].T
    slope = -(theta / 0.4) * (out * near).sum(0) - 2 * (l0 / 3 - 1) / 3 * near.sum(0) / (64 * 0.4)
    torch.testing.assert_close(found.grads["log_threshold"], slope * theta, atol=1e-6, rtol=1e-4)
    assert found.loss == pytest.approx(float(reconstruction.detach() + (l0 / 3 - 1) ** 2), rel=1e-5)


def test_jumprelu_learns_to_keep_k_latents_and_finds_planted_features():
    features = unit_rows(24, 16, 99)
    x = codes(60_000, 24, rate=0.08, seed=0) @ features + noise(60_000, 16, 0)
    config = DictionaryConfig(
        kind="jumprelu", d_dict=32, k=2, num_tokens=60_000, batch_tokens=128, lr=6e-3, seed=1
    )
    found = train(x, config)
    held_out = codes(4000, 24, rate=0.08, seed=5) @ features + noise(4000, 16, 5)
    metrics = reconstruction_metrics(found, held_out)
    assert metrics["l0"] == pytest.approx(2, abs=0.5), "the penalty steers L0 to k"
    assert metrics["fvu"] < 0.5 * random_reconstruction_fvu(held_out, d_dict=32, k=2)
    recovered = (features @ found.decoder.T).max(-1).values
    assert (recovered > 0.9).float().mean() > 0.7, f"planted features recovered: {recovered}"
    assert found.threshold.std() > 0, "every latent has its own threshold"


def test_a_circle_lands_in_one_block_and_in_several_latents_of_an_ordinary_dictionary():
    x, planes = circles(60_000, width=16, num_planes=6, rate=0.1, seed=2)
    common = {"d_dict": 64, "k": 2, "num_tokens": 60_000, "batch_tokens": 64, "lr": 2e-2, "seed": 2}
    blocks = train(x, DictionaryConfig(kind="block_sparse", block=2, **common))
    plain = train(x, DictionaryConfig(kind="batch_topk", **common))

    def affinity(rows: torch.Tensor) -> torch.Tensor:
        """For each plane, how much of it lies in the best pair of neighbouring rows (1: all)."""
        pairs = torch.linalg.qr(rows.view(-1, 2, 16).transpose(1, 2)).Q.transpose(1, 2)
        return torch.einsum("pid,bjd->pbij", planes, pairs).square().sum((-1, -2)).max(1).values / 2

    whole = (affinity(blocks.decoder) > 0.9).float().mean()
    placebo = (affinity(plain.decoder) > 0.9).float().mean()
    assert whole > 0.5, f"planes that lie in one block: {whole:.0%}"
    assert placebo < 0.2, f"pairs of an ordinary dictionary's rows hold {placebo:.0%} of the planes"
    in_plane = torch.einsum("fd,pid->fpi", plain.decoder, planes).norm(dim=-1) > 0.9
    assert in_plane.sum(0).float().mean() > 1.2, "a circle takes several ordinary latents"
    gram = blocks.decoder.view(-1, 2, 16) @ blocks.decoder.view(-1, 2, 16).transpose(1, 2)
    torch.testing.assert_close(gram, torch.eye(2).expand_as(gram), atol=1e-3, rtol=0)
    acts = blocks.encode(x[:500])
    on = acts.view(500, -1, 2) != 0
    assert torch.equal(on[..., 0], on[..., 1]) and (acts < 0).any(), (
        "latents of a block are on together, with sign"
    )


def test_block_gradients_equal_autograds_on_the_dense_formula():
    config = DictionaryConfig(kind="block_sparse", d_dict=36, k=4, k_aux=6, aux_weight=0.5, block=3).sized(16)
    x, _ = circles(40, width=16, num_planes=6, rate=0.3, seed=0)
    kind = find_kind("block_sparse")
    params = kind.start(x, config, torch.Generator().manual_seed(0))
    dead = (torch.arange(36) // 3) % 3 == 0
    found = kind.step(params, x, config, StepState(0.0, dead))
    p = {name: value.clone().requires_grad_() for name, value in params.items()}
    rows = p["W_dec"].flatten(0, 1)
    pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    norm = pre.detach().view(40, 12, 3).norm(dim=-1)
    kept = norm >= norm.flatten().topk(40 * 4 // 3).values[-1]
    error = (pre * kept.repeat_interleave(3, dim=1)) @ rows + p["b_dec"] - x
    best = norm[:, ::3].topk(2, dim=-1).indices
    used = torch.zeros(40, 4).scatter(1, best, 1.0).repeat_interleave(3, dim=1)
    loss = error.square().mean()
    loss = loss + 0.5 * ((pre[:, dead] * used) @ rows[dead] + error.detach()).square().mean()
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for name in ("W_enc", "b_enc", "b_dec"):
        torch.testing.assert_close(found.grads[name], p[name].grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["jumprelu", "block_sparse"])
def test_a_kind_trains_on_a_model_and_comes_back_from_its_files(kind, model, rows, tmp_path):
    config = DictionaryConfig(
        kind=kind, d_dict=64, k=4, num_tokens=3000, batch_tokens=50, buffer_tokens=200, block=4
    )
    made = train_dictionary(model, rows, config=config, out=tmp_path / "d")
    found = load_dictionary(tmp_path / "d")
    assert (
        type(found) is (BlockSparse if kind == "block_sparse" else Dictionary) and found.sha256 == made.sha256
    )
    h = torch.randn(3, 5, 32)
    torch.testing.assert_close(found.encode(h), made.encode(h))
    torch.testing.assert_close(
        found.encode_latents(h, [5, 60, 5, 7]), found.encode(h)[..., [5, 60, 5, 7]], atol=1e-5, rtol=1e-4
    )


def test_kinds_of_several_sites_are_not_trained_on_one(model, rows):
    with pytest.raises(DictionaryError, match="train_transcoder"):
        train_dictionary(model, rows, config=DictionaryConfig(kind="transcoder"))


@pytest.mark.parametrize(
    "kind", ["batch_topk", "topk", "matryoshka", "jumprelu", "block_sparse", "transcoder", "crosscoder"]
)
def test_a_steps_numbers_stay_on_the_device(kind):
    """All but counts that the selection knows anyway are tensors, so that the trainer waits for them together."""
    config = DictionaryConfig(kind=kind, d_dict=32, k=4, widths=(6, 6)).sized(12)
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    made = find_kind(kind)
    params = made.start(x, config, torch.Generator().manual_seed(0))
    found = made.step(params, x, config, StepState(0.0, torch.arange(32) // 2 % 5 == 0))
    numbers = [found.loss, found.squared_error, found.variance]
    if kind not in ("topk", "jumprelu"):  # topk's is sampled, jumprelu has thresholds of its own
        numbers.append(found.least)
    assert all(isinstance(number, torch.Tensor) and number.dim() == 0 for number in numbers), numbers
