"""Identity of a model: a hash of its architecture and its weights.

The hash covers the shape-giving keys of the config and, per parameter in order of name, its name, shape and
values: all of them up to 2^20 elements, 2^18 evenly spread ones of a larger tensor (a training step changes
nearly all, so it is noticed; an edit of single weights of a very large matrix may not be). Values are hashed
as float32, so that a bfloat16 checkpoint has the same identity whether it is loaded as bfloat16 or as
float32.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from fairlead.models.families import text_config, unwrap

WHOLE = 1 << 20  # elements up to which a tensor is hashed whole
SAMPLE = 1 << 18  # elements taken of a larger one
# fmt: off
_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
    "max_position_embeddings", "rope_theta", "rope_parameters", "sliding_window", "layer_types",
    "num_experts", "num_local_experts", "num_experts_per_tok", "tie_word_embeddings", "hidden_act",
    "rms_norm_eps", "layer_norm_eps", "state_size",
)
# fmt: on


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """Hex SHA-256 over the architecture and the weights of a transformers model.

    Invariants: the same on every device and for every thread count; another one after a training step.
    """
    hf = unwrap(module)
    config = text_config(hf.config)
    keys = {key: getattr(config, key) for key in _KEYS if getattr(config, key, None) is not None}
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True, default=str).encode())
    for name, parameter in sorted(hf.named_parameters()):
        flat = parameter.detach().reshape(-1)
        digest.update(f"{name}{list(parameter.shape)}".encode())
        if flat.numel() > WHOLE:
            flat = flat[_spread(flat.numel()).to(flat.device)]
        values = flat.to("cpu", torch.float32).contiguous()
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _spread(num: int) -> torch.Tensor:
    """`SAMPLE` indices below `num`, evenly spread, with both ends."""
    return torch.arange(SAMPLE, dtype=torch.long) * (num - 1) // (SAMPLE - 1)
