"""numba's loops against torch: the same products, whatever the number of threads."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from fairlead.core.threads import in_parts, num_plain_threads, plain_threads
from fairlead.dictionaries import DictionaryConfig, find_kind, numba_kernels, selection, sparse
from fairlead.dictionaries.kinds import StepState
from fairlead.dictionaries.selection import Encoder, batch_pairs
from fairlead.dictionaries.trainer import Trainer


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def without_loops(monkeypatch) -> None:
    for module in (selection, sparse):
        monkeypatch.setattr(module, "loops", lambda value: None)


def products(num: int, latents: int, width: int, density: float) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(num)
    acts = torch.rand(num, latents, generator=draws) * (torch.rand(num, latents, generator=draws) < density)
    pairs = sparse.dense_to_pairs(acts)
    rows, left = torch.randn(latents, width, generator=draws), torch.randn(num, width, generator=draws)
    value, table = pairs.value.clone().requires_grad_(), rows.clone().requires_grad_()
    out = sparse.decode(pairs._replace(value=value), table)
    grads = torch.autograd.grad((out * left).sum(), [value, table])
    layout = sparse.transpose(pairs, latents)
    dots = sparse.gather_dot(pairs, left, rows)
    return [out, *grads, *layout, dots, sparse.transposed_product(layout, pairs.value, left)]


@pytest.mark.parametrize(
    "sizes", [(7, 40, 300, 0.2), (5, 12, 16, 0.0), (1, 3, 257, 1.0), (300, 64, 5, 0.3), (0, 4, 3, 1.0)]
)
def test_every_product_is_torchs(sizes, monkeypatch, two_threads):
    assert sparse.kernels(torch.ones(1)) is numba_kernels
    with plain_threads():
        found = products(*sizes)
    without_loops(monkeypatch)
    assert sparse.kernels(torch.ones(1)) is None
    for place, (one, other) in enumerate(zip(found, products(*sizes), strict=True)):
        torch.testing.assert_close(
            one, other, atol=1e-5, rtol=1e-4, msg=lambda m, n=place: f"product {n}: {m}"
        )


def test_other_types_are_left_to_torch():
    assert sparse.kernels(torch.ones(1, dtype=torch.float64)) is None
    pairs = sparse.dense_to_pairs(torch.eye(3, dtype=torch.float64))
    assert sparse.decode(pairs, torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("kind", ["batch_topk", "topk", "matryoshka", "block_sparse", "transcoder"])
def test_a_step_of_every_kind_is_torchs(kind, monkeypatch):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(96, 32, generator=draws)
    more = {"widths": (16, 16)} if kind == "transcoder" else {}
    config = DictionaryConfig(kind=kind, d_dict=64, k=4, **more).sized(32)
    params = find_kind(kind).start(x, config, torch.Generator().manual_seed(0))
    state = StepState(0.0, torch.arange(64) // 2 % 5 == 0)
    found = find_kind(kind).step({name: value.clone() for name, value in params.items()}, x, config, state)
    without_loops(monkeypatch)
    wanted = find_kind(kind).step({name: value.clone() for name, value in params.items()}, x, config, state)
    assert found.num_active == wanted.num_active and found.fired.equal(wanted.fired)
    torch.testing.assert_close(torch.as_tensor(found.loss), torch.as_tensor(wanted.loss))
    for name in wanted.grads:
        torch.testing.assert_close(found.grads[name], wanted.grads[name], atol=1e-5, rtol=1e-3)


def test_a_training_does_not_depend_on_the_number_of_threads():
    """Work is shared by tokens, latents or rows, and no sum is split."""
    draws = torch.Generator().manual_seed(0)
    batches = [torch.randn(512, 24, generator=draws) for _ in range(6)]
    config = DictionaryConfig(
        d_dict=300, k=5, num_tokens=6 * 512, batch_tokens=512, precision="float32"
    ).sized(24)
    before, weights = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        trainer = Trainer(find_kind(config.kind), config, batches[0])
        for batch in batches:
            trainer.step(batch)
        assert torch.get_num_threads() == threads, "torch's own number is restored"
        weights.append(trainer.export()["W_dec"])
    torch.set_num_threads(before)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("screen", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_is_not_taken_for_a_large_one(screen):
    """With numbers beside them: the pairs are sound; a loss that is not finite is the guard's affair."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(64, 24, generator=draws), dim=-1)
    encoder = Encoder(torch.randn(80, 24, generator=draws), weight, torch.zeros(64), screen)
    sound = batch_pairs(encoder, 160)
    weight[3] = torch.nan
    kept = batch_pairs(encoder, 160)
    assert sound.value.isfinite().all() and (kept.value.isfinite() | (kept.latent == 3)).all()


def test_parts_cover_all_in_order_also_when_nested(two_threads):
    with plain_threads():
        assert num_plain_threads() == 2 and torch.get_num_threads() == 1
        with plain_threads():
            nested = in_parts(lambda a, b: [in_parts(lambda c, d: (a + c, a + d), b - a)], 10)
        assert torch.get_num_threads() == 1
    assert nested == [[[(0, 5)]], [[(5, 10)]]] and torch.get_num_threads() == 2
    assert in_parts(lambda a, b: (a, b), 10) == [(0, 10)], "outside, torch's own threads work"


def test_an_error_in_a_part_is_raised_and_the_next_call_works(two_threads):
    def fail(first: int, last: int) -> None:
        if first:
            raise ValueError(f"part {first}")

    with plain_threads():
        with pytest.raises(ValueError, match="part 2"):
            in_parts(fail, 4)
        assert in_parts(lambda a, b: b - a, 4) == [2, 2]
