"""Activations against single forward passes; the stream gives every token, shuffled, the same by seed."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from fairlead.activations import iter_activations
from fairlead.core.errors import ConfigError, SiteError
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


def test_refusals(model, encoded):
    with pytest.raises(SiteError):
        next(iter_activations(model, encoded, "layers.7.resid_post"))
    with pytest.raises(ConfigError, match="tokens is 'some'"):
        next(iter_activations(model, encoded, SITE, tokens="some"))
