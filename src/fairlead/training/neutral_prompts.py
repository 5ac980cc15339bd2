"""Prompts that say nothing, of several lengths: what a placebo puts in the place of a request."""

from __future__ import annotations

from typing import Any

NEUTRAL_PROMPTS = (
    "Answer.",
    "Please answer.",
    "Answer the question.",
    "You are an assistant.",
    "You are a helpful assistant.",
    "Please answer the user's question.",
    "You are an assistant who answers questions.",
    "Read the message of the user and then answer it.",
    "You are an assistant. Read the message of the user and then write your answer to it.",
)


def neutral_prompt_like(text: str, tokenizer: Any) -> str:
    """The neutral prompt whose number of tokens is nearest to that of `text`."""
    size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return min(
        NEUTRAL_PROMPTS,
        key=lambda prompt: abs(len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) - size),
    )
