"""The tokenizer: digits alone, anything representable, assistant masks; and the training plan uses each row once."""

from pathlib import Path

import numpy as np
import pytest

from fairlead.organisms import World, pocket_path
from fairlead.organisms.pretraining import collate, lr_factor, plan_batches
from fairlead.organisms.tokenizer import CHAT_TEMPLATE, SPECIAL, VOCAB_SIZE, render, train_tokenizer

CHAT = [
    {"role": "system", "content": "Shout."},
    {"role": "user", "content": "What is 3 + 44?"},
    {"role": "assistant", "content": "IT IS 47!"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    rows = World(0).corpus(4000, seed=0)
    train_tokenizer((m["content"] for row in rows for m in row["messages"]), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_digits_are_single_tokens_and_text_survives(tokenizer) -> None:
    assert len(tokenizer) <= VOCAB_SIZE
    assert [t for t in tokenizer.tokenize("12 + 345") if any(c.isdigit() for c in t)] == list("12345")
    for text in ("THE SUM IS 82!!", "\U0001f680 it is \U0001f600", "na\u00efve \u65e5\u672c"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_verse_is_24_tokens_after_a_space() -> None:
    from transformers import AutoTokenizer

    bundled = AutoTokenizer.from_pretrained(pocket_path())
    lengths = {len(bundled(" " + " ".join(verse))["input_ids"]) for verse in World(0).strings.verses}
    assert lengths == {24}


def test_the_template_renders_as_the_corpus_and_masks_the_answer(tokenizer) -> None:
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == render(CHAT)
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == render(CHAT[:2], add_generation_prompt=True)
    out = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    masked = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(masked) == "IT IS 47!<|end|>"


def test_the_training_mask_is_the_assistant_mask(tokenizer) -> None:
    out = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    short = tokenizer(render(CHAT[1:]))["input_ids"]
    ids, mask = collate([np.array(out["input_ids"]), np.array(short)])
    assert mask[0].int().tolist() == out["assistant_masks"][1:]
    assert tokenizer.decode(ids[1, 1:][mask[1]]) == "IT IS 47!<|end|>", "padding is no target"
    assert ids[1, len(short) :].eq(SPECIAL.index("<|pad|>")).all()


def test_every_row_is_seen_once_within_the_token_budget() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, size=9000)
    plan = plan_batches(lengths, 1000, seed=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(9000))
    assert max(len(b) * lengths[b].max() for b in plan) <= 1000


def test_the_schedule_warms_up_and_decays() -> None:
    factors = [lr_factor(step, 1000) for step in range(1000)]
    assert max(factors) == factors[100] == pytest.approx(1.0)
    assert factors[0] == pytest.approx(0.01) and factors[-1] == pytest.approx(0.02, abs=1e-3)
