"""Guarded answers of other families are their plain ones, also where rows cannot share a batch freely."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fairlead.core.nouns import Direction, LinearReadout
from fairlead.guard import Guard, Policy
from fairlead.models import Model

_spec = importlib.util.spec_from_file_location(
    "tiny_families", Path(__file__).resolve().parents[1] / "models" / "conftest.py"
)
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

PROMPTS = ["w5 w9 w30 w17 w8", "w11 w7", "w40 w12 w23", "w60 w3 w4 w5 w6 w7", "w9 w12"]


class EveryThird:
    """Spans that end with a third of the vocabulary."""

    def may_end(self, piece):
        return piece.strip().startswith("w") and int(piece.strip()[1:]) % 3 == 0

    def ends(self, text, following):
        return True

    def is_claim(self, text):
        return True


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3", "mamba", "rwkv", "qwen3_moe"])
def test_a_guard_reads_and_corrects_any_family(family):
    model = Model.wrap(tiny.make_hf(family), tiny.make_tokenizer(), family)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    readout = LinearReadout(Direction(model.default_site(), vector))
    guard = Guard(model, readout, segmenter=EveryThird())
    plain = model.generate(PROMPTS, max_new_tokens=10)
    for size in (64, 2):
        found = guard.answer(PROMPTS, max_new_tokens=10, batch_size=size)
        assert [answer.text for answer in found] == plain
    policy = Policy(kind="correct", text="w13 w14", threshold=0.0)
    together = guard.answer(PROMPTS, policy=policy, max_new_tokens=14)
    alone = [guard.answer([prompt], policy=policy, max_new_tokens=14)[0] for prompt in PROMPTS]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert any(answer.interventions for answer in together)
    for answer in together:
        for act in answer.interventions:
            assert act.kind == "flag" or " w13 w14" in answer.text
