"""The lens reads what the model itself would say next, and refuses heads that it cannot read."""

from __future__ import annotations

import pytest
import torch

from fairlead.core.errors import ModelError
from fairlead.data import collate, encode
from fairlead.models import load_model
from fairlead.models.lens import Lens


@pytest.fixture(scope="module")
def pocket():
    return load_model("organism:pocket")


def test_it_equals_the_models_own_log_probabilities(pocket):
    rows = encode(["Naltidil keeps a dog.", "It is Monday."], pocket.tokenizer, max_length=64)
    batch = collate(rows, pad_id=pocket.pad_id)
    lens = Lens(pocket)
    found = pocket.capture(batch, ["embed", lens.site], stop_early=False)
    wanted = pocket.forward(batch).detach().float().log_softmax(-1)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(lens.logprobs(found[str(lens.site)])[real], wanted[real], atol=1e-4, rtol=1e-4)
    assert torch.equal(lens.tokens(found["embed"])[real], batch.input_ids[real])
    seen = lens.confidence(found["embed"], found[str(lens.site)])
    torch.testing.assert_close(
        -seen.surprisal[real], pocket.token_logprobs(batch).detach()[real], atol=1e-4, rtol=1e-4
    )


def test_a_head_that_does_more_is_refused(pocket):
    handle = pocket.hf.register_forward_hook(
        lambda module, args, output: output.__class__(logits=2 * output.logits)
    )
    try:
        with pytest.raises(ModelError, match="confidence=False"):
            Lens(pocket)
    finally:
        handle.remove()
