"""Answers with claims to tokens: character spans of the response become token spans of the encoded row.

The response is tokenised on its own behind the rendered prompt, which is how the model itself wrote it, with the offsets that the
tokenizer reports. Texts without a prompt (`messages` empty) stand alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fairlead.core.claims import ClaimedAnswer
from fairlead.core.errors import DataError
from fairlead.data import Encoded
from fairlead.data.rows import Message, Row
from fairlead.data.template import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedAnswer(NamedTuple):
    """An answer as tokens.

    Attributes:
        encoded: The row; the loss mask is True on the tokens of the response.
        start: Position of the response's first token.
        offsets: Characters of the response that each of its tokens stands for.
        spans: Per claim, tokens `(start, end)` of the row, half open.
    """

    encoded: Encoded
    start: int
    offsets: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...]


def encode_answers(
    answers: Sequence[ClaimedAnswer], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[EncodedAnswer]:
    """Encode answers; claims beyond `max_length` tokens have no span (`(0, 0)`), the text is cut there.

    Raises:
        DataError: The tokenizer reports no offsets; the prompt alone fills `max_length`.
    """
    return [
        encode_answer(answer, tokenizer, index=index, max_length=max_length)
        for index, answer in enumerate(answers)
    ]


def encode_answer(
    answer: ClaimedAnswer, tokenizer: PreTrainedTokenizerBase, *, index: int = 0, max_length: int
) -> EncodedAnswer:
    """Encode one answer (see `encode_answers`)."""
    found = encode_prompt_and_text(
        answer.messages, answer.response, tokenizer, index=index, max_length=max_length, source=answer.id
    )
    spans = tuple(locate(found.offsets, claim.start, claim.end, shift=found.start) for claim in answer.claims)
    return found._replace(spans=spans)


def encode_prompt_and_text(
    messages: Sequence[dict[str, str]],
    response: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    index: int = 0,
    max_length: int,
    source: str = "text",
) -> EncodedAnswer:
    """Encode a response behind its prompt, without spans (see `encode_answers`)."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "the tokenizer reports no character offsets, so claims cannot be located. Next: load a fast tokenizer."
        )
    prompt = _prompt(messages, tokenizer)
    found: Any = tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)
    room = max_length - len(prompt)
    if room < 1:
        raise DataError(
            f"the prompt has {len(prompt)} tokens, the model takes {max_length}. Next: shorten the prompt.",
            source=source,
        )
    ids = list(found["input_ids"])[:room]
    offsets = tuple((int(a), int(b)) for a, b in found["offset_mapping"])[:room]
    start = len(prompt)
    turns = tuple(Message(m["role"], m["content"]) for m in messages)
    row = Row(messages=(*turns, Message("assistant", response))) if turns else Row(text=response)
    return EncodedAnswer(
        Encoded(prompt + ids, [False] * start + [True] * len(ids), index, row), start, offsets, ()
    )


def locate(offsets: Sequence[tuple[int, int]], start: int, end: int, *, shift: int = 0) -> tuple[int, int]:
    """Tokens that hold any of the characters `start` to `end`, as positions `shift` later; `(0, 0)` where none does."""
    inside = [place for place, (a, b) in enumerate(offsets) if b > start and a < end and b > a]
    return (inside[0] + shift, inside[-1] + 1 + shift) if inside else (0, 0)


def _prompt(messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if messages:
        return encode_prompt(list(messages), tokenizer)
    start = tokenizer.bos_token_id if getattr(tokenizer, "add_bos_token", False) else None
    return [int(start)] if isinstance(start, int) else []
