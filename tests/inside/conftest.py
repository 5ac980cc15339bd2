"""A tiny random chat model with a word tokenizer, and rows with prompts and responses."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from fairlead.data import Encoded, Row
from fairlead.models import Model

VOCAB, D = 64, 32


def make_model(seed: int = 0, d_model: int = D) -> Model:
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.25,
        max_position_embeddings=64,
    )
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
    return Model.wrap(tf.LlamaForCausalLM(config).eval(), tokenizer, f"tiny{seed}")


def make_rows(num: int = 24, *, seed: int = 0, prompt: int = 3) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(num):
        length = int(torch.randint(prompt + 2, 14, (), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [False] * prompt + [True] * (length - prompt), index, Row(text="x")))
    return rows


@pytest.fixture(scope="session")
def model() -> Model:
    return make_model()


@pytest.fixture(scope="session")
def other_model() -> Model:
    return make_model(seed=1)


@pytest.fixture(scope="session")
def rows() -> list[Encoded]:
    return make_rows()
