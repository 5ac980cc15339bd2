"""Batches: every row once, nothing but padding added, on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import ConfigError
from fairlead.data import Encoded, Row, collate, encode, iter_batches

PAD = 99


def rows(lengths: list[int]) -> list[Encoded]:
    return [Encoded([i + 1] * n, [False] + [True] * (n - 1), i, Row(text="x")) for i, n in enumerate(lengths)]


@given(
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=30),
    batch_size=st.integers(1, 7),
    sort=st.booleans(),
    seed=st.none() | st.integers(0, 5),
    side=st.sampled_from(["right", "left"]),
)
def test_every_row_comes_once_and_unchanged(
    lengths: list[int], batch_size: int, sort: bool, seed: int | None, side: Any
) -> None:
    encoded = rows(lengths)
    seen = []
    batches = list(
        iter_batches(encoded, batch_size=batch_size, pad_id=PAD, sort=sort, seed=seed, padding_side=side)
    )
    for batch in batches:
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.loss_mask.shape
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.long
        assert not (batch.loss_mask & (batch.attention_mask == 0)).any()
        for place, index in enumerate(batch.index.tolist()):
            real = batch.attention_mask[place].bool()
            assert batch.input_ids[place][real].tolist() == encoded[index].input_ids
            assert batch.loss_mask[place][real].tolist() == encoded[index].loss_mask
            assert (batch.input_ids[place][~real] == PAD).all()
            assert bool(real[0 if side == "right" else -1])
            seen.append(index)
    assert sorted(seen) == list(range(len(lengths)))
    assert sum(batch.num_loss_tokens for batch in batches) == sum(e.num_loss_tokens for e in encoded)


def test_sorting_puts_like_lengths_together_and_the_seed_decides_the_order() -> None:
    encoded = rows([3, 11, 4, 12, 3, 11, 4, 12])
    plain = list(iter_batches(encoded, batch_size=2, pad_id=PAD))
    assert [batch.input_ids.shape[1] for batch in plain] == [12, 11, 4, 3]
    orders = {
        seed: [tuple(b.index.tolist()) for b in iter_batches(encoded, batch_size=2, pad_id=PAD, seed=seed)]
        for seed in range(6)
    }
    again = [tuple(b.index.tolist()) for b in iter_batches(encoded, batch_size=2, pad_id=PAD, seed=3)]
    assert again == orders[3]
    assert len({tuple(order) for order in orders.values()}) > 1
    for order in orders.values():  # still sorted: no padding inside any batch
        assert all(len(encoded[a]) == len(encoded[b]) for a, b in order)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        next(iter_batches(rows([3]), batch_size=0, pad_id=0))
    with pytest.raises(ConfigError, match="padding_side"):
        collate(rows([3]), pad_id=0, padding_side="top")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one row"):
        collate([], pad_id=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_of_a_model_does_not_depend_on_padding(make_tokenizer: Callable[..., Any], side: Any) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer("chatml")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).eval()
    chats = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in (("a", "b"), ("longer question", "a longer answer than that"), ("mid", "answer"))
    ]
    encoded = encode(chats, tokenizer, max_length=None)

    def loss(batch: Any) -> dict[int, float]:
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp_min(0)
        with torch.no_grad():
            logits = model(
                batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions
            ).logits
        logprobs = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        return dict(
            zip(batch.index.tolist(), (-(logprobs * batch.loss_mask[:, 1:]).sum(-1)).tolist(), strict=True)
        )

    alone: dict[int, float] = {}
    for batch in iter_batches(encoded, batch_size=1, pad_id=tokenizer.pad_token_id):
        alone |= loss(batch)
    together = loss(collate(encoded, pad_id=tokenizer.pad_token_id, padding_side=side))
    for index, value in alone.items():
        assert together[index] == pytest.approx(value, abs=1e-4), f"row {index}, padding {side}"
