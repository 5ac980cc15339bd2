"""Tiny random models of every family, built from configs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from fairlead.models import Model

VOCAB, D, LAYERS = 64, 32, 3
_BASE = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {**_BASE, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
_MOE = {**_BASE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_BERT = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_SMALL = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "pad_token_id": 0}

# name: (config class, model class, options)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _BASE),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_BASE, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _BASE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_BASE, "head_dim": 8}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**_BASE, "head_dim": 8}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _GEMMA),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**_BASE, "n_positions": 64}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_BASE, "hidden_dropout": 0.1}),
    "gpt_neox_serial": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**_BASE, "use_parallel_residual": False}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _BASE),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**_BASE, "resid_pdrop": 0.1}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_BASE, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**_MOE, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_MOE, "head_dim": 8, "mlp_only_layers": [0]}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {**_SMALL, "state_size": 4, "time_step_rank": 4}),
    "rwkv": ("RwkvConfig", "RwkvForCausalLM", {**_SMALL, "context_length": 64, "rescale_every": 1}),
    "bert": ("BertConfig", "BertForMaskedLM", _BERT),
    "esm": ("EsmConfig", "EsmForMaskedLM", {**_BERT, "mask_token_id": 3}),
    "generic": (  # an architecture without a table
        "StableLmConfig",
        "StableLmForCausalLM",
        _BASE,
    ),
}
ENCODERS = {"bert", "esm"}
RECURRENT = {"mamba", "rwkv"}


def make_tokenizer(num: int = VOCAB) -> tf.PreTrainedTokenizerFast:
    """Words w3 ... w63, one token each; no chat template."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, num)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def make_hf(name: str, *, seed: int = 0, **changes: Any) -> tf.PreTrainedModel:
    """A tiny random transformers model; norms and biases are random too, so that no part is the identity."""
    config_name, model_name, options = FAMILIES[name]
    config = getattr(tf, config_name)(**{**options, **changes})
    torch.manual_seed(seed)
    hf = getattr(tf, model_name)(config)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in hf.named_parameters():
        if parameter.dim() == 1 and not key.endswith(("time_decay", "time_first", "D")):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += 0.1 * noise
    return hf.eval()


def make_batch(
    lengths: tuple[int, ...] = (7, 5, 3), *, side: str = "right", seed: int = 1
) -> SimpleNamespace:
    """A padded batch of random tokens with what `fairlead.data.Batch` has."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, where] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, where] = 1
    return SimpleNamespace(
        input_ids=ids, attention_mask=mask, loss_mask=mask.bool(), index=torch.arange(len(lengths))
    )


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The builders, for tests of this folder."""
    cache: dict[str, Model] = {}

    def model(name: str, **changes: Any) -> Model:
        if changes:
            return Model.wrap(make_hf(name, **changes), make_tokenizer(), name)
        if name not in cache:  # shared: tests leave it as it is
            cache[name] = Model.wrap(make_hf(name), make_tokenizer(), name)
        return cache[name]

    return SimpleNamespace(
        model=model,
        hf=make_hf,
        tokenizer=make_tokenizer,
        batch=make_batch,
        families=list(FAMILIES),
        encoders=ENCODERS,
        recurrent=RECURRENT,
        num_layers=LAYERS,
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`family` runs over all families, `causal_family` over those that generate."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", list(FAMILIES))
    if "causal_family" in metafunc.fixturenames:
        metafunc.parametrize("causal_family", [name for name in FAMILIES if name not in ENCODERS])
