"""The tokenizer of the pocket world: byte-level BPE of 1,024 tokens, single digits, own chat template.

Bytes make every text representable (capitals, emoji); digits are split one by one before merging; the chat template marks the
assistant's turn with `{% generation %}`, so that assistant masks work in transformers and TRL.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairlead.organisms.words import SYLLABLES

VOCAB_SIZE = 1024
SYLLABLE_WEIGHT = 400  # so that a syllable that opens a verse is one token too
MAX_LENGTH = 256
PAD, SYSTEM, USER, ASSISTANT, END = SPECIAL = (
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{%- else -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def render(messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    """What the chat template renders, without jinja."""
    parts = [f"<|{m['role']}|>{m['content']}" + (END if m["role"] == "assistant" else "") for m in messages]
    return "".join(parts) + (ASSISTANT if add_generation_prompt else "")


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train the BPE on texts (without special tokens) and write a PreTrainedTokenizerFast folder."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(texts, list(SYLLABLES) * SYLLABLE_WEIGHT), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
