"""Single tokens as text."""

from __future__ import annotations

from typing import Any

_SPACE = "\u2581"  # how SentencePiece writes the space before a word


def token_text(tokenizer: Any, token: int) -> str:
    """A token as the text that it adds within a text, its leading space included.

    Decoding a single token strips the space of SentencePiece tokenizers, since it takes it for the start of a text.
    """
    text = str(tokenizer.decode([token]))
    raw = tokenizer.convert_ids_to_tokens(token)
    if isinstance(raw, str) and raw.startswith(_SPACE) and not text.startswith(" "):
        return " " + text
    return text
