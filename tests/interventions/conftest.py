"""Two tiny random models in memory and a batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from fairlead.models import Model


@pytest.fixture(params=["llama", "gpt2"])
def model(request) -> Model:
    torch.manual_seed(0)
    if request.param == "llama":
        config = tf.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            initializer_range=0.2,
        )
        hf = tf.LlamaForCausalLM(config)
    else:
        config = tf.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2
        )
        hf = tf.GPT2LMHeadModel(config)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", unk_token="w0", eos_token="w2"
    )
    return Model.wrap(hf.eval(), tokenizer, request.param)


@pytest.fixture
def batch() -> SimpleNamespace:
    ids = torch.randint(3, 64, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return SimpleNamespace(input_ids=ids, attention_mask=mask, loss_mask=mask.bool(), index=torch.arange(3))
