"""A running batch: rows that join and leave answer as they do alone; forced tokens are as if they stood in the prompt."""

from __future__ import annotations

import pytest
import torch

from fairlead.core.errors import ModelError
from fairlead.models.decoding import Decoding, Row
from fairlead.models.generation import generate_ids

PROMPTS = [[5, 9, 30, 17, 8], [11, 7], [40, 12, 23], [60, 3, 4, 5, 6, 7, 8], [9], [33, 10]]


def alone(model, prompt, num=8):
    return generate_ids(model, [prompt], max_new_tokens=num, stops=set())[0]


def run(batch, finished):
    """One step: choose, take out rows that are full, read."""
    chosen = batch.choose()
    for row, token in zip(batch.rows, chosen.tolist(), strict=True):
        row.answer.append(token)
    keep = torch.tensor([len(row.answer) < row.limit for row in batch.rows])
    finished += [row for row, going in zip(batch.rows, keep.tolist(), strict=True) if not going]
    if not keep.all():
        batch.select(keep.nonzero()[:, 0])
        chosen = chosen[keep]
    batch.trim()
    if batch.rows:
        batch.read(chosen)


def test_rows_that_join_a_running_batch_answer_as_alone(tiny, causal_family):
    model, finished = tiny.model(causal_family), []
    batch = Decoding(model)
    waiting = [Row(prompt, 4 + 3 * place, key=place) for place, prompt in enumerate(PROMPTS)]
    batch.join([waiting.pop(0)])
    while batch.rows or waiting:
        if waiting and batch.can_join and len(batch.rows) < 3:
            batch.join([waiting.pop(0)])
        run(batch, finished)
    assert sorted(row.key for row in finished) == list(range(len(PROMPTS)))
    for row in finished:
        assert row.answer == alone(model, list(row.ids), row.limit), f"row {row.key}"


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2", "mamba"])
def test_columns_do_not_grow_while_rows_come_and_go(tiny, name):
    model, finished = tiny.model(name), []
    batch = Decoding(model)
    for place in range(12):
        batch.join([Row(PROMPTS[place % 6], 20, key=place)])
        for _ in range(7):
            run(batch, finished)
    assert batch.width < 64 and len(finished) >= 9
    for row in finished:
        assert row.answer == alone(model, list(row.ids), 20)


def test_a_token_fed_by_force_is_as_if_it_stood_in_the_prompt(tiny, causal_family):
    model = tiny.model(causal_family)
    batch = Decoding(model)
    batch.join([Row(PROMPTS[0], 9), Row(PROMPTS[0], 9)])
    for step in range(9):
        chosen = batch.choose()
        if step in (3, 4):
            chosen[1] = 40 + step  # the other row goes on by itself
        for row, token in zip(batch.rows, chosen.tolist(), strict=True):
            row.answer.append(token)
        batch.read(chosen)
    free, forced = (row.answer for row in batch.rows)
    assert free == alone(model, PROMPTS[0], 9)
    assert forced[:5] == [*free[:3], 43, 44]
    assert forced[5:] == alone(model, PROMPTS[0] + forced[:5], 4)


def test_rows_with_different_settings_share_a_batch(tiny):
    model = tiny.model("llama")
    draws = torch.rand(8, generator=torch.Generator().manual_seed(3)).tolist()
    together, finished = (
        [
            Row(PROMPTS[0], 8),
            Row(PROMPTS[0], 8, temperature=1.0, draws=draws),
            Row(PROMPTS[0], 8, temperature=1.0, top_p=1e-6, draws=draws),
            Row(PROMPTS[0], 8, temperature=2.0, top_p=0.9, draws=draws),
        ],
        [],
    )
    batch = Decoding(model)
    batch.join(together)
    while batch.rows:
        run(batch, finished)
    greedy, sampled, narrow, wide = (row.answer for row in together)
    assert greedy == narrow == alone(model, PROMPTS[0]), "the most probable token alone is the greedy one"
    found = generate_ids(
        model, [PROMPTS[0]], max_new_tokens=8, stops=set(), temperature=1.0, draws=torch.tensor([draws])
    )
    assert sampled == found[0] and len({tuple(a) for a in (greedy, sampled, wide)}) == 3


def test_a_state_that_takes_no_rows_says_so(tiny):
    model = tiny.model("llama")
    batch = Decoding(model)
    batch.join([Row(PROMPTS[0], 4)])
    for layer in batch._step.state.layers:
        layer.__class__ = type("OtherLayer", (type(layer),), {})
    assert not batch.can_join and batch.can_select
    with pytest.raises(ModelError, match="cannot join"):
        batch.join([Row(PROMPTS[1], 4)])
