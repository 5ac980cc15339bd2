"""What is selected without dense pre-activations is what a dense top-k keeps, also when bfloat16 does the looking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.dictionaries import selection, sparse
from fairlead.dictionaries.selection import Encoder, batch_pairs, row_pairs, sampled_cut, screening_dtype
from fairlead.dictionaries.sparse import batch_topk

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module", params=["numba", "torch"])
def compiled(request):
    """Every test with numba's loops and without."""
    if request.param == "numba":
        pytest.importorskip("numba")
        yield
        return
    patch = pytest.MonkeyPatch()
    for module in (selection, sparse):
        patch.setattr(module, "loops", lambda value: None)
    yield
    patch.undo()


def random_encoder(seed: int, *, num: int, width: int, d_model: int, screen: torch.dtype) -> Encoder:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, d_model, generator=generator)
    weight = torch.nn.functional.normalize(torch.randn(width, d_model, generator=generator), dim=-1)
    return Encoder(x, weight, 0.1 * torch.randn(width, generator=generator), screen)


def dense(encoder: Encoder) -> torch.Tensor:
    return encoder.centred_ND @ encoder.weight_FD.T + encoder.bias_F


def entries(pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.token.tolist(), pairs.latent.tolist(), strict=True))


@pytest.mark.parametrize("screen", TYPES)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(2, 70),
    width=st.sampled_from([8, 33, 256]),
    k=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_a_batchs_largest_are_those_of_the_dense_oracle(screen, seed, num, width, k):
    encoder = random_encoder(seed, num=num, width=width, d_model=24, screen=screen)
    k = min(k, width)
    found, wanted = batch_pairs(encoder, num * k), batch_topk(dense(encoder), num * k)
    assert entries(found) == entries(wanted)
    torch.testing.assert_close(found.value, wanted.value, atol=1e-5, rtol=1e-5)
    assert found.token.equal(found.token.sort().values), "sorted by token, as the sparse products need"


@pytest.mark.parametrize("screen", TYPES)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(2, 70),
    width=st.sampled_from([8, 33, 256]),
    k=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_a_tokens_largest_are_those_of_the_dense_oracle(screen, seed, num, width, k):
    encoder = random_encoder(seed, num=num, width=width, d_model=24, screen=screen)
    k = min(k, width)
    found, pre = row_pairs(encoder, k), dense(encoder)
    kept = pre.topk(k, dim=-1)
    wanted = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.clamp_min(0))
    acts = torch.zeros_like(pre)
    acts[found.token, found.latent] = found.value
    torch.testing.assert_close(acts, wanted, atol=1e-5, rtol=1e-5)
    assert found.token.equal(found.token.sort().values)


@pytest.mark.parametrize("screen", TYPES)
def test_ties_and_batches_with_few_positive_entries(screen):
    """All equal: all are kept (BatchTopK may keep more) or any k of them (TopK); nothing positive: nothing is kept."""
    same = Encoder(torch.ones(4, 1), torch.ones(64, 1), torch.zeros(64), screen)
    assert batch_pairs(same, 8).value.numel() == 256
    assert torch.bincount(row_pairs(same, 3).token).tolist() == [3, 3, 3, 3]
    silent = same._replace(bias_F=torch.full((64,), -2.0))
    assert batch_pairs(silent, 8).value.numel() == row_pairs(silent, 3).value.numel() == 0
    few = silent._replace(bias_F=torch.where(torch.arange(64) == 5, 1.0, -2.0))
    assert batch_pairs(few, 8).latent.tolist() == row_pairs(few, 3).latent.tolist() == [5, 5, 5, 5]


def test_a_batch_whose_first_tokens_mislead_the_guess_is_selected_right():
    encoder = random_encoder(0, num=400, width=64, d_model=24, screen=torch.float32)
    for factor in (0.01, 30.0):  # the sampled tokens are much quieter or louder than the rest
        x = encoder.centred_ND.clone()
        x[:30] *= factor
        odd = encoder._replace(centred_ND=x)
        for screen in TYPES:
            found = batch_pairs(odd._replace(screen=screen), 1200)
            assert entries(found) == entries(batch_topk(dense(odd), 1200))


def test_where_rounding_hides_entries_the_search_is_repeated(monkeypatch):
    """Nearly parallel latents differ by less than bfloat16 can tell: without the second look the wrong ones would be kept."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=-1)
    weight = direction + 1e-4 * torch.randn(256, 32, generator=generator)
    x = 40 * direction + torch.randn(50, 32, generator=generator)
    encoder = Encoder(x, weight, torch.zeros(256), torch.bfloat16)
    wanted = entries(batch_topk(dense(encoder), 200))
    assert entries(batch_pairs(encoder, 200)) == wanted
    low = (x.bfloat16() @ weight.T.bfloat16()).float()
    alone = {divmod(place, 256) for place in low.flatten().topk(200).indices.tolist()}
    assert len(alone & wanted) < 190, "placebo: bfloat16 alone keeps others"
    monkeypatch.setattr(selection, "_SLACK", (1e-6, 0.0))  # nothing but the check protects
    assert entries(batch_pairs(encoder, 200)) == wanted
    rows = row_pairs(encoder, 4)
    kept = dense(encoder).topk(4, dim=-1).values
    torch.testing.assert_close(
        rows.value.view(50, 4).sort(-1, descending=True).values, kept, atol=1e-4, rtol=1e-5
    )


def test_the_sampled_cut_keeps_as_many_a_token():
    encoder = random_encoder(1, num=300, width=128, d_model=24, screen=torch.float32)
    cut = sampled_cut(encoder, 6.0, num_tokens=100)
    assert (dense(encoder)[:100] >= cut).sum() == 600


def test_precision_is_chosen_or_measured():
    cpu = torch.device("cpu")
    assert screening_dtype("float32", cpu) == torch.float32
    assert screening_dtype("bfloat16", cpu) == torch.bfloat16
    assert screening_dtype("auto", cpu) == screening_dtype("auto", cpu)
