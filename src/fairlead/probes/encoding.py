"""Answers with claims to tokens: character spans of the response become token spans of the encoded row.

The response is tokenised on its own behind the rendered prompt, which is how the model itself wrote it, with the offsets that the
tokenizer reports. Texts without a prompt (`messages` empty) stand alone. Encoders read them as they were trained, between the tokenizer's
special tokens (`[CLS] text [SEP]`, `[CLS] prompt [SEP] response [SEP]`). Tokenizers that report no offsets (those of protein and DNA
models) will do where each token is literally a piece of the text.
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

    from fairlead.models import Model


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


def encode_for(
    model: Model, messages: Sequence[dict[str, str]], response: str, *, index: int = 0, source: str = "text"
) -> EncodedAnswer:
    """Encode a response behind its prompt as a model reads it, without spans (see `encode_answers`)."""
    return encode_prompt_and_text(
        messages,
        response,
        model.tokenizer,
        index=index,
        max_length=model.max_length,
        source=source,
        between_specials=not model.is_causal,
    )


def encode_prompt_and_text(
    messages: Sequence[dict[str, str]],
    response: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    index: int = 0,
    max_length: int,
    source: str = "text",
    between_specials: bool = False,
) -> EncodedAnswer:
    """Encode a response behind its prompt, without spans (see `encode_answers`).

    Raises:
        DataError: The tokens cannot be located in the text; the prompt alone fills `max_length`.
    """
    all_ids, all_offsets = _tokens(response, tokenizer, source)
    prompt, closing = _prompt(messages, tokenizer), []
    if between_specials:
        opening, closing = _specials(response, all_ids, tokenizer)
        inner = tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"] if messages else []
        prompt = [*opening, *inner, *(closing if messages else [])]
    room = max_length - len(prompt) - len(closing)
    if room < 1:
        raise DataError(
            f"the prompt has {len(prompt)} tokens, the model takes {max_length}. Next: shorten the prompt.",
            source=source,
        )
    ids, offsets, start = all_ids[:room], tuple(all_offsets[:room]), len(prompt)
    turns = tuple(Message(m["role"], m["content"]) for m in messages)
    row = Row(messages=(*turns, Message("assistant", response))) if turns else Row(text=response)
    return EncodedAnswer(
        Encoded(
            prompt + ids + closing,
            [False] * start + [True] * len(ids) + [False] * len(closing),
            index,
            row,
        ),
        start,
        offsets,
        (),
    )


def locate(offsets: Sequence[tuple[int, int]], start: int, end: int, *, shift: int = 0) -> tuple[int, int]:
    """Tokens that hold any of the characters `start` to `end`, as positions `shift` later; `(0, 0)` where none does."""
    inside = [place for place, (a, b) in enumerate(offsets) if b > start and a < end and b > a]
    return (inside[0] + shift, inside[-1] + 1 + shift) if inside else (0, 0)


def _tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, source: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text and the characters that each stands for."""
    if getattr(tokenizer, "is_fast", False):
        found: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]
    offsets, at = [], 0
    pieces = tokenizer.tokenize(text)
    for piece in pieces:
        while text[at : at + 1].isspace():
            at += 1
        if not piece or not text.startswith(piece, at):
            raise DataError(
                f"the tokenizer reports no character offsets, and its token {piece!r} is not literally in the text at "
                f"{text[at : at + 12]!r}, so spans cannot be located. Next: load a fast tokenizer.",
                source=source,
            )
        offsets.append((at, at + len(piece)))
        at += len(piece)
    ids: Any = tokenizer.convert_tokens_to_ids(pieces)
    return [int(i) for i in ids], offsets


def _specials(
    text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    whole: Any = list(tokenizer(text)["input_ids"])
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == list(ids):
            return whole[:start], whole[start + len(ids) :]
    return [], []  # it writes the text otherwise between them: they cannot be told


def _prompt(messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if messages:
        return encode_prompt(list(messages), tokenizer)
    start = tokenizer.bos_token_id if getattr(tokenizer, "add_bos_token", False) else None
    return [int(start)] if isinstance(start, int) else []
