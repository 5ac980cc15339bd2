"""Chats to tokens: the one place that applies a chat template and knows where responses are.

Which tokens are the response is found, in this order:

1. `{% generation %}` blocks: where the model's template marks them, transformers returns the mask.
2. Prefix difference: the prompt before an assistant turn, rendered with its generation prompt, must be a
   token prefix of the whole chat; the turn is what follows, up to the end of the turn.
3. Otherwise a `DataError`: a mask that may be wrong is never guessed.

The end-of-turn token of a response is part of it (a model must learn to stop); line breaks that a template
writes after the end-of-turn token are not. Models without a chat template get a plain one, `User: ...` /
`Assistant: ...`, whose responses end with the tokenizer's end-of-sequence token. Templates that refuse a
system message (Gemma) get its text in front of the first user message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from fairlead.core.errors import DataError
from fairlead.core.progress import say
from fairlead.data.rows import Message, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
_warned: set[str] = set()


class Tokens(NamedTuple):
    """Token ids with the mask of response tokens."""

    input_ids: list[int]
    loss_mask: list[bool]


class Place(NamedTuple):
    """Where a chat comes from, for error messages."""

    source: str | None = None
    line: int | None = None


NOWHERE = Place()


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer brings a chat template of its own."""
    return bool(getattr(tokenizer, "chat_template", None))


def encode_prompt(
    messages: Sequence[Message | dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
) -> list[int]:
    """Token ids of a prompt, up to and with the opening of the assistant's turn.

    The same rendering as in training: for a row whose chat is `messages` plus an answer, these ids are a
    prefix of the encoded row.

    Args:
        messages: The chat so far.
        tokenizer: A Hugging Face tokenizer.
        system: Replaces the system message, or is put first.

    Raises:
        DataError: The template refuses the messages.
    """
    chat = tuple(m if isinstance(m, Message) else Message(m["role"], m["content"]) for m in messages)
    return _prompt_ids(with_system(chat, system), tokenizer, place=NOWHERE)


def encode_chat(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None = None,
    place: Place = NOWHERE,
) -> Tokens:
    """Token ids of a whole chat and the mask of all its assistant turns.

    Args:
        messages: The chat; turns after the last assistant turn are cut off.
        tokenizer: A Hugging Face tokenizer.
        system: Replaces the system message, or is put first.
        place: For error messages.

    Raises:
        DataError: The template refuses the chat, or its responses cannot be located.
    """
    chat = with_system(messages, system)
    last = max(index for index, message in enumerate(chat) if message.role == "assistant")
    chat = chat[: last + 1]
    if not has_chat_template(tokenizer):
        return _plain_chat(chat, tokenizer)
    template = tokenizer.get_chat_template()
    tokens = None
    if _GENERATION.search(template) and getattr(tokenizer, "is_fast", False):
        tokens = _by_generation_blocks(chat, tokenizer, place=place)
    if tokens is None:
        tokens = _by_prefix_difference(chat, tokenizer, place=place)
    return tokens


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase, *, system: str | None = None) -> Tokens:
    """Token ids of plain text with every token but the first in the loss.

    With `system`, that text and a blank line stand before it, outside the loss; the tokens of `text` and
    their mask are the same as without.
    """
    opening, closing, _, _ = _facts(tokenizer)
    body = tokenizer(text, add_special_tokens=False)["input_ids"] + closing
    mask = [bool(opening) or index > 0 for index in range(len(body))]
    context = [] if system is None else tokenizer(system + "\n\n", add_special_tokens=False)["input_ids"]
    return Tokens(opening + context + body, [False] * (len(opening) + len(context)) + mask)


def _by_generation_blocks(
    chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, place: Place
) -> Tokens | None:
    """Mask from the template's own marks, stretched over an end-of-turn token right after a block."""
    found = _apply(
        chat, tokenizer, place=place, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = list(found["input_ids"])
    mask = [bool(value) for value in found.get("assistant_masks", [])]
    if len(mask) != len(ids) or not any(mask):
        return None
    ends = _facts(tokenizer).ends
    for index in range(1, len(ids)):
        if mask[index - 1] and not mask[index] and ids[index] in ends and ids[index - 1] not in ends:
            mask[index] = True
    mask[0] = False
    return Tokens(ids, mask)


def _by_prefix_difference(
    chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, place: Place
) -> Tokens:
    ids = _ids(chat, tokenizer, place=place)
    mask = [False] * len(ids)
    ends = _facts(tokenizer).ends
    for index, message in enumerate(chat):
        if message.role != "assistant":
            continue
        prompt = _prompt_ids(chat[:index], tokenizer, place=place)
        start = len(prompt)
        if ids[:start] != prompt or start >= len(ids):
            raise DataError(
                "the tokens of the prompt are not the first tokens of the whole chat (the template renders "
                "them differently, or a token spans the border), so the response cannot be located. Next: "
                "use a template with {% generation %} blocks, or whose generation prompt ends in a line "
                "break or special token.",
                source=place.source,
                line=place.line,
                field=f"messages[{index}]",
            )
        if index == len(chat) - 1:
            end = len(ids)
        else:
            through = _ids(chat[: index + 1], tokenizer, place=place)
            if ids[: len(through)] == through and len(through) > start:
                end = len(through)
            else:  # templates that drop the reasoning of earlier turns: up to the end-of-turn token
                end = next((i + 1 for i in range(start, len(ids)) if ids[i] in ends), start)
        end = _trim(ids, start, end, ends, tokenizer)
        _check_response(ids[start:end], message.content, tokenizer, place=place, index=index)
        mask[start:end] = [True] * (end - start)
    mask[0] = False
    return Tokens(ids, mask)


def _trim(
    ids: list[int], start: int, end: int, ends: frozenset[int], tokenizer: PreTrainedTokenizerBase
) -> int:
    """End of a turn without the whitespace that follows its end-of-turn token."""
    for last in range(end - 1, start - 1, -1):
        if ids[last] in ends:
            tail = str(tokenizer.decode(ids[last + 1 : end]))
            return last + 1 if not tail.strip() else end
    return end


def _check_response(
    ids: list[int], content: str, tokenizer: PreTrainedTokenizerBase, *, place: Place, index: int
) -> None:
    """The located tokens must say what the response says (only letters and digits are compared)."""
    wanted, found = _squeeze(content), _squeeze(str(tokenizer.decode(ids)))
    head = wanted[-24:] if "</think>" in content else wanted[:24]
    if not ids or (head and head not in found and "\ufffd" not in found and not _has_unknown(ids, tokenizer)):
        raise DataError(
            "the tokens found for this response do not spell it: the chat template moves or drops it. Next: "
            "check the tokenizer's chat template.",
            source=place.source,
            line=place.line,
            field=f"messages[{index}]",
        )


def _squeeze(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _has_unknown(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids


def _prompt_ids(chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, place: Place) -> list[int]:
    if not has_chat_template(tokenizer):
        return _plain_prompt(chat, tokenizer)
    if not chat:
        # an answer without a prompt: only the opening of the turn, read off an empty user message where
        # needed
        return _opening_ids(tokenizer)
    return _ids(chat, tokenizer, place=place, add_generation_prompt=True)


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens before a response that follows nothing: common prefix of two such chats."""
    one = _ids((Message("assistant", "a"),), tokenizer, place=NOWHERE)
    two = _ids((Message("assistant", "7"),), tokenizer, place=NOWHERE)
    shared = 0
    while shared < min(len(one), len(two)) and one[shared] == two[shared]:
        shared += 1
    return one[:shared]


def _ids(
    chat: tuple[Message, ...],
    tokenizer: PreTrainedTokenizerBase,
    *,
    place: Place,
    add_generation_prompt: bool = False,
) -> list[int]:
    found = _apply(
        chat,
        tokenizer,
        place=place,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=add_generation_prompt,
    )
    return list(found["input_ids"])


def _apply(
    chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, place: Place, **options: Any
) -> Any:
    from jinja2 import TemplateError

    dicts = [message.as_dict() for message in chat]
    try:
        return tokenizer.apply_chat_template(dicts, **options)
    except TemplateError as error:
        if chat and chat[0].role == "system" and len(chat) > 1 and chat[1].role == "user":
            folded = (Message("user", f"{chat[0].content}\n\n{chat[1].content}"), *chat[2:])
            _warn_once(
                f"system:{tokenizer.name_or_path}",
                "note: this model's chat template takes no system message; its text is put before the first "
                "user message.",
            )
            return _apply(folded, tokenizer, place=place, **options)
        raise DataError(
            f"the model's chat template refuses this chat: {error}. Next: change the order of roles in the "
            "record.",
            source=place.source,
            line=place.line,
            field="messages",
        ) from error


def _plain_prompt(chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return _plain(chat, tokenizer, open_turn=True).input_ids


def _plain_chat(chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    return _plain(chat, tokenizer, open_turn=False)


def _plain(chat: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, *, open_turn: bool) -> Tokens:
    """The plain template, in pieces: everything up to `Assistant:` is one piece, each answer is another.

    Pieces are tokenised by themselves, so that a prompt is a prefix of its chat for every tokenizer.
    """
    _warn_once(
        f"plain:{tokenizer.name_or_path}",
        'note: this model has no chat template; chats are written as "User: ...\\nAssistant: ...".',
    )
    opening, _, lead, _ = _facts(tokenizer)
    ids, mask, pending = list(opening), [False] * len(opening), ""

    def add(text: str, in_loss: bool) -> None:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(piece)
        mask.extend([in_loss] * len(piece))

    turns = (*chat, Message("assistant", "")) if open_turn else chat
    for index, message in enumerate(turns):
        if message.role != "assistant":
            pending += f"{_PLAIN_NAMES[message.role]}: {message.content}\n"
            continue
        add(pending + "Assistant:", in_loss=False)
        pending = ""
        if open_turn and index == len(turns) - 1:
            break
        add(lead + message.content, in_loss=True)
        if isinstance(tokenizer.eos_token_id, int):
            ids.append(tokenizer.eos_token_id)
            mask.append(True)
        pending = "\n"
    if mask:
        mask[0] = False
    return Tokens(ids, mask)


class _Facts(NamedTuple):
    """What the code above asks of a tokenizer again and again."""

    opening: list[int]  # special tokens that it puts before a text
    closing: list[int]  # ... and after it
    lead: str  # a space, where the tokenizer does not put one before a piece by itself (sentencepiece does)
    ends: frozenset[
        int
    ]  # ids that can end a turn: special tokens, and added ones that look like control tokens


_facts_of: WeakKeyDictionary[Any, tuple[Any, _Facts]] = WeakKeyDictionary()


def _facts(tokenizer: PreTrainedTokenizerBase) -> _Facts:
    """Facts of a tokenizer, kept until its vocabulary or its special tokens change."""
    options = (getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token"))
    state = (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, *options)
    kept = _facts_of.get(tokenizer)
    if kept is not None and kept[0] == state:
        return kept[1]
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a")["input_ids"])
    starts = (n for n in range(len(framed) - len(bare) + 1) if framed[n : n + len(bare)] == bare)
    start = next(starts, None)
    opening, closing = ([], []) if start is None else (framed[:start], framed[start + len(bare) :])
    before = list(tokenizer("Assistant:", add_special_tokens=False)["input_ids"])
    lead = "" if str(tokenizer.decode(before + bare)).endswith(": a") else " "
    ends = set(tokenizer.all_special_ids)
    for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if token.special or re.fullmatch(r"<[|/\w].*>|\[/?\w+\]", token.content):
            ends.add(int(index))
    found = _Facts(opening, closing, lead, frozenset(ends))
    _facts_of[tokenizer] = (state, found)
    return found


def _warn_once(key: str, message: str) -> None:
    if key not in _warned:
        _warned.add(key)
        say(message)
