"""Batched generation: one loop of plain forward calls for every causal family.

Left-padded batches of prompts of like length, a key-value cache (or the recurrent state of Mamba and RWKV)
that is carried from call to call, greedy or sampled. It stands in for transformers' `generate` for three
reasons: rows that are done leave the batch, RWKV generates in batches at all, and sampling does not depend on
how prompts are batched. Per token of a full batch the two cost the same, the forward pass.

Sampling draws one uniform number per prompt and token before the loop starts and inverts the distribution
function there, so that a prompt's answer does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from fairlead.core.errors import ConfigError, DataError, ModelError
from fairlead.core.progress import Meter, say
from fairlead.models import families
from fairlead.models.decoding import Decoding, Row

if TYPE_CHECKING:
    from fairlead.models.model import Model


class Follower(Protocol):
    """Goes along with a generation: knows which row is which prompt and which tokens a pass holds, and may end rows."""

    def begin(self, places: Sequence[int], mask: Tensor) -> None:
        """A batch begins: the places of its prompts and their attention mask `[batch, width]` (left-padded)."""
        ...

    def step(self, offset: int, seq: int) -> None:
        """The next pass holds `seq` columns from column `offset` on; column `width - 1` is the prompts' last token."""
        ...

    def stopped(self) -> Tensor | None:
        """`[row]` bool: rows whose answer ends before the token that the last pass predicts; None for no row."""
        ...

    def select(self, keep: Tensor) -> None:
        """Only these rows go on."""
        ...


def generate(
    model: Model,
    prompts: Sequence[str | Sequence[Any]],
    *,
    system: str | None = None,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    chat: bool | None = None,
    progress: str | None = None,
    follower: Follower | None = None,
    against: tuple[Model, float] | None = None,
) -> list[str]:
    """Answers to prompts.

    Args:
        model: A causal model.
        prompts: Strings (a user turn) or lists of messages (`fairlead.data.Message` or dicts with role and
            content).
        system: System message for all prompts; replaces one that a message list has.
        max_new_tokens: Longest answer; shorter where the model's longest input is reached.
        temperature: 0 for the most probable token each time.
        seed: Of sampling; an answer depends on it, the prompt, its place in `prompts` and `max_new_tokens`.
        batch_size: Prompts at a time.
        chat: Put strings into the chat template (True) or continue them as plain text (False); by default
            True where the tokenizer brings a chat template or `system` is given. Message lists always are
            chats.
        progress: Label of a progress display; none by default.
        follower: Told of every batch, pass and row (steering by conditions needs it).
        against: Another model with the same tokens and a factor alpha: the logits become
            `own + alpha (own - other)`, which amplifies what sets the models apart.

    Returns:
        Answers without special tokens, in the order of the prompts. They end at the end-of-sequence token or
        at the token that ends a turn in the chat template.

    Raises:
        ModelError: The model is an encoder, or a prompt fills its longest input.
        ConfigError: A setting is out of range.
    """
    if not model.is_causal:
        raise ModelError(f"{model.name}: an encoder cannot generate. Next: use a causal model.")
    if max_new_tokens < 1 or batch_size < 1 or temperature < 0:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens}, batch_size {batch_size} and temperature {temperature} must "
            f"be at least "
            "1, 1 and 0. Next: change them."
        )
    ids = [prompt_ids(model, prompt, system=system, chat=chat) for prompt in prompts]
    for place, row in enumerate(ids):
        if len(row) >= model.max_length:
            raise ModelError(
                f"prompt {place} has {len(row)} tokens, {model.name} takes at most {model.max_length} with "
                f"the answer. "
                "Next: shorten it."
            )
    stops = stop_ids(model)
    draws = None
    if temperature > 0:
        draws = torch.rand(len(ids), max_new_tokens, generator=torch.Generator().manual_seed(seed))
    answers: list[list[int]] = [[] for _ in ids]
    meter = Meter(progress, len(ids), unit="answers") if progress else None
    try:
        for places in _batches(ids, batch_size, same_length=not model.resolved.family.reads_mask):
            found = generate_ids(
                model,
                [ids[place] for place in places],
                max_new_tokens=max_new_tokens,
                stops=stops,
                temperature=temperature,
                draws=None if draws is None else draws[places],
                places=places,
                follower=follower,
                against=against,
            )
            for place, tokens in zip(places, found, strict=True):
                answers[place] = tokens
            if meter is not None:
                meter.advance(len(places))
    finally:
        if meter is not None:
            meter.close()
    return [_text(model, row, answer) for row, answer in zip(ids, answers, strict=True)]


@torch.no_grad()
def generate_ids(
    model: Model,
    ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: set[int],
    temperature: float = 0.0,
    draws: Tensor | None = None,
    places: Sequence[int] | None = None,
    follower: Follower | None = None,
    against: tuple[Model, float] | None = None,
) -> list[list[int]]:
    """New token ids for one batch of prompts, without the token that ended each.

    Args:
        model: A causal model; one that ignores the attention mask needs prompts of equal length.
        ids: Token ids of the prompts.
        max_new_tokens: Longest answer.
        stops: Token ids that end an answer.
        temperature: 0 for greedy.
        draws: `[batch, max_new_tokens]` uniform numbers, for sampling.
        places: What the prompts are called towards the follower; 0, 1, ... by default.
        follower: Told of every pass and row.
        against: Another model and a factor, see `generate`.
    """
    device = model.device
    stop = torch.tensor(sorted(stops), dtype=torch.long, device=device)
    rows = [
        Row(
            row,
            min(max_new_tokens, model.max_length - len(row)),
            temperature,
            draws=None if draws is None else draws[place].tolist(),
            key=place,
        )
        for place, row in enumerate(ids)
    ]
    batch = Decoding(model, against=against)
    if follower is not None:
        width = max(map(len, ids))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        follower.begin(range(len(rows)) if places is None else places, mask)
        follower.step(0, width)
    batch.join(rows)
    done = torch.tensor([row.limit < 1 for row in rows], device=device)
    while True:
        chosen = batch.choose()
        done |= torch.isin(chosen, stop)
        ended = follower.stopped() if follower is not None else None
        if ended is not None:
            done |= ended
        full = []
        for place, (row, token, over) in enumerate(
            zip(batch.rows, chosen.tolist(), done.tolist(), strict=True)
        ):
            if not over:
                row.answer.append(token)
                if len(row.answer) >= row.limit:
                    full.append(place)
        done[full] = True
        num_done = int(done.sum())
        if num_done == len(done):
            return [row.answer for row in rows]
        if 2 * num_done >= len(done) and batch.can_select:
            keep = (~done).nonzero()[:, 0]
            batch.select(keep)
            if follower is not None:
                follower.select(keep)
            chosen, done = chosen[keep], done[keep]
        if follower is not None:
            follower.step(*batch.next_columns)
        batch.read(chosen)


def prompt_ids(
    model: Model, prompt: str | Sequence[Any], *, system: str | None = None, chat: bool | None = None
) -> list[int]:
    """Token ids of a prompt, rendered as in training (see `generate`)."""
    from fairlead.data.template import encode_prompt, has_chat_template

    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        if chat is None:
            chat = has_chat_template(tokenizer) or system is not None
        if not chat:
            if system is not None:
                raise ConfigError("a system message needs a chat. Next: leave out system, or set chat=True.")
            ids = list(tokenizer(prompt)["input_ids"])
            while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:  # some tokenizers close every text
                ids.pop()
            if not ids:
                raise ModelError("an empty prompt has no token to start from. Next: write a prompt.")
            return ids
        prompt = [{"role": "user", "content": prompt}]
    return encode_prompt(prompt, tokenizer, system=system)


def stop_ids(model: Model) -> set[int]:
    """Ids that end an answer: end of sequence, and what ends an assistant turn in the chat template."""
    from fairlead.data.rows import Message
    from fairlead.data.template import encode_chat, has_chat_template

    tokenizer, found = model.tokenizer, set()
    configs = (getattr(model.hf, "generation_config", None), families.text_config(model.hf.config))
    for value in (*(getattr(config, "eos_token_id", None) for config in configs), tokenizer.eos_token_id):
        found |= set(value) if isinstance(value, list | tuple) else {value}
    if has_chat_template(tokenizer):
        chat = (Message("user", "a"), Message("assistant", "b"))
        try:
            ids, mask = encode_chat(chat, tokenizer)
        except DataError as error:  # a template that cannot be trained on can still be generated with
            say(
                f"note: {model.name}: what ends a turn is not known, answers end at end of sequence only "
                f"({error})"
            )
        else:
            last = max(place for place, wanted in enumerate(mask) if wanted)
            special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
            if ids[last] in special:
                found.add(ids[last])
    return {int(value) for value in found if value is not None}


def _batches(ids: list[list[int]], batch_size: int, *, same_length: bool) -> list[list[int]]:
    """Places of the prompts, sorted by length, in batches; only equal lengths together where asked."""
    batches: list[list[int]] = []
    for place in sorted(range(len(ids)), key=lambda p: len(ids[p])):
        full = not batches or len(batches[-1]) == batch_size
        if full or (same_length and len(ids[batches[-1][0]]) != len(ids[place])):
            batches.append([])
        batches[-1].append(place)
    return batches


def _text(model: Model, prompt: list[int], answer: list[int]) -> str:
    """The answer as text; with the space that some tokenizers drop at the start of a text."""
    from fairlead.data.template import has_chat_template

    tokenizer: Any = model.tokenizer
    if has_chat_template(tokenizer):
        return tokenizer.decode(answer, skip_special_tokens=True)
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + answer, skip_special_tokens=True)
    return (
        whole[len(before) :]
        if whole.startswith(before)
        else tokenizer.decode(answer, skip_special_tokens=True)
    )
