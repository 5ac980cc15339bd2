"""Logits at chosen positions only, and log-probabilities of responses under a frozen model.

Responses are a small part of most chat batches, and the LM head is the dearest matrix of a small model. `select_logits`
therefore picks positions *before* the head (a pre-hook on the model's output embedding), so that everything a family does after
the head (scaling, soft-capping) stays the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fairlead.data import Encoded, collate
from fairlead.models.families import unwrap


def select_logits(
    module: nn.Module, inputs: dict[str, Any], positions: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "token vocab"]:
    """Run a forward pass and return the logits at `positions`, row by row, in float32.

    Args:
        module: A causal LM, also one wrapped by PEFT or accelerate.
        inputs: Arguments of its forward, without labels.
        positions: True where logits are wanted.
    """
    head = unwrap(module).get_output_embeddings()

    def before(_: nn.Module, args: tuple) -> tuple | None:
        hidden = args[0]
        if hidden.shape[:-1] != positions.shape:
            return None
        return (hidden[positions.to(hidden.device)], *args[1:])

    handle = head.register_forward_pre_hook(before) if head is not None else None
    try:
        output = module(**inputs)
    finally:
        if handle is not None:
            handle.remove()
    logits = output.logits if hasattr(output, "logits") else output[0]
    if logits.dim() == 3:
        logits = logits[positions.to(logits.device)]
    return logits.float()


def predicting(loss_mask: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """The positions from which the tokens of a loss mask are predicted: one to the left."""
    moved = torch.zeros_like(loss_mask)
    moved[:, :-1] = loss_mask[:, 1:]
    return moved


def iter_logprobs(
    module: nn.Module,
    encoded: Sequence[Encoded],
    *,
    pad_id: int,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[list[int], list[Float[Tensor, "token vocab"]], list[Tensor]]]:
    """Log-probabilities of a frozen model at every predicted token, batch by batch.

    Rows of like length go together; nothing is padded on the left.

    Yields:
        Places in `encoded`, per place the log-probabilities `[token, vocab]`, and per place the tokens `[token]`.
    """
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collate([encoded[place] for place in places], pad_id=pad_id).to(device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        with torch.no_grad():  # not around the loop: a generator would leave it on in its caller
            logprobs = select_logits(module, inputs, predicting(batch.loss_mask)).log_softmax(-1)
        counts = batch.loss_mask.sum(1).tolist()
        tokens = batch.input_ids[batch.loss_mask]
        yield places, list(logprobs.split(counts)), list(tokens.split(counts))


def pad_id_of(tokenizer: Any) -> int:
    """Token id for padding (masked everywhere, so any id does): pad, else end of sequence, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int):
            return value
    return 0
