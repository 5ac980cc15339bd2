"""Activations against single forward passes; the stream gives every token, shuffled, the same by seed."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from fairlead.activations import ActivationStream, iter_activations
from fairlead.core.errors import ConfigError, DataError, SiteError
from fairlead.data import Encoded
from fairlead.data.rows import Row
from fairlead.models import Model

SITE = "layers.1.resid_post"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.2,
    )
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", unk_token="w0")
    return Model.wrap(tf.LlamaForCausalLM(config).eval(), tokenizer, "tiny")


@pytest.fixture(scope="module")
def encoded() -> list[Encoded]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(23):
        length = int(torch.randint(3, 12, (), generator=generator))
        ids = torch.randint(1, 64, (length,), generator=generator).tolist()
        ids[0] = 1 + index  # no two rows begin alike, so that no two activations are equal
        mask = [False] * 2 + [True] * (length - 2)
        rows.append(Encoded(ids, mask, 100 + index, Row(text="x")))
    return rows


def by_hand(model, encoded):
    """(index, position) to activation, one row at a time through transformers' own hidden states."""
    found = {}
    for item in encoded:
        with torch.no_grad():
            states = model.hf(
                input_ids=torch.tensor([item.input_ids]), output_hidden_states=True
            ).hidden_states
        for position in range(len(item.input_ids)):
            found[item.index, position] = states[2][0, position]
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("tokens", ["response", "all"])
def test_every_wanted_token_once(model, encoded, tokens, batch_size):
    oracle = by_hand(model, encoded)
    wanted = {
        (item.index, position)
        for item in encoded
        for position, in_loss in enumerate(item.loss_mask)
        if tokens == "all" or in_loss
    }
    seen = []
    for acts, index, position in iter_activations(model, encoded, SITE, tokens=tokens, batch_size=batch_size):
        assert acts.shape == (len(index), 32) and not acts.requires_grad
        for act, key in zip(acts, zip(index.tolist(), position.tolist(), strict=True), strict=True):
            torch.testing.assert_close(act, oracle[key], atol=1e-5, rtol=1e-4)
            seen.append(key)
    assert len(seen) == len(set(seen)) and set(seen) == wanted


def identify(acts, table):
    """Row of `table` that each activation is."""
    distance = torch.cdist(acts, table, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance.min(1).values < 1e-3).all(), (
        "the stream gave something that is no activation of the data"
    )
    return distance.argmin(1)


@pytest.fixture(scope="module")
def table(model, encoded) -> torch.Tensor:
    return torch.stack(list(by_hand(model, encoded).values()))


def test_data_that_fits_is_read_once_and_every_epoch_is_a_new_order(model, encoded, table):
    num = len(table)
    stream = ActivationStream(model, encoded, SITE, buffer_tokens=10_000, batch_tokens=16, seed=3)
    assert stream.capacity == stream.num_tokens == num
    acts = torch.cat([next(stream) for _ in range(3 * num // 16 + 1)])[: 3 * num]
    epochs = identify(acts, table).view(3, num)
    for epoch in epochs:
        assert len(epoch.unique()) == num, "within an epoch every token comes once"
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    assert not torch.equal(epochs[0], epochs[0].sort().values)
    assert stream.num_read == num


def test_a_small_buffer_streams_all_tokens_evenly(model, encoded, table):
    stream = ActivationStream(model, encoded, SITE, buffer_tokens=40, batch_tokens=8, seed=3, batch_size=2)
    assert stream.capacity == 40 < len(table)
    ids = torch.cat([identify(next(stream), table) for _ in range(50 * len(table) // 8)])
    counts = torch.bincount(ids, minlength=len(table)).float()
    assert counts.min() >= 25 and counts.max() <= 75, "each of 50 passes gives each token about once"
    assert stream.num_read >= len(ids)


def test_seeds(model, encoded):
    def batches(seed, buffer):
        stream = ActivationStream(model, encoded, SITE, buffer_tokens=buffer, batch_tokens=8, seed=seed)
        return torch.cat([next(stream) for _ in range(30)])

    for buffer in (40, 10_000):
        assert torch.equal(batches(1, buffer), batches(1, buffer))
        assert not torch.equal(batches(1, buffer), batches(2, buffer))


def test_batches_are_copies_in_the_models_dtype(model, encoded):
    stream = ActivationStream(model, encoded, SITE, buffer_tokens=10_000, batch_tokens=200, seed=0)
    first = next(stream)
    kept = first.clone()
    for _ in range(3):
        next(stream).zero_()
    assert torch.equal(first, kept) and first.shape == (200, 32)
    assert (next(stream).abs().sum(1) > 0).all(), "a caller's change must not reach the buffer"
    half = Model.wrap(tf.LlamaForCausalLM(model.hf.config).to(torch.bfloat16).eval(), model.tokenizer, "half")
    assert next(ActivationStream(half, encoded, SITE, batch_tokens=8)).dtype == torch.bfloat16


def test_refusals(model, encoded):
    with pytest.raises(ConfigError, match="at least twice"):
        ActivationStream(model, encoded, SITE, buffer_tokens=10, batch_tokens=8)
    with pytest.raises(DataError, match="no token"):
        ActivationStream(model, [], SITE)
    with pytest.raises(SiteError):
        ActivationStream(model, encoded, "layers.7.resid_post")
    with pytest.raises(ConfigError, match="tokens is 'some'"):
        next(iter_activations(model, encoded, SITE, tokens="some"))
