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


_STATES = ("past_key_values", "cache_params", "state")  # names of what a family carries between calls


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
    num, width = len(ids), max(map(len, ids))
    room = min(max_new_tokens, model.max_length - width)
    tokens = torch.full((num, width), model.pad_id, dtype=torch.long)
    mask = torch.zeros((num, width + room), dtype=torch.long)
    for place, row in enumerate(ids):
        tokens[place, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[place, width - len(row) :] = 1
    tokens, mask = tokens.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    stop = torch.tensor(sorted(stops), dtype=torch.long, device=device)
    draws = None if draws is None else draws.to(device)
    rows = torch.arange(num, device=device)  # which prompt each row of the batch is
    done = torch.zeros(num, dtype=torch.bool, device=device)
    answers: list[list[int]] = [[] for _ in ids]
    step = _Step(model)
    other = None if against is None else _Step(against[0])
    if follower is not None:
        follower.begin(range(num) if places is None else places, mask[:, :width])
    for count in range(room):
        end = width + count
        if follower is not None:
            follower.step(end - tokens.shape[1], tokens.shape[1])
        logits = step(tokens, mask[:, :end], positions[:, end - tokens.shape[1] : end])
        if other is not None and against is not None:
            there = against[0].device
            seen = (
                tokens.to(there),
                mask[:, :end].to(there),
                positions[:, end - tokens.shape[1] : end].to(there),
            )
            logits = logits + against[1] * (logits - other(*seen).to(logits))
        chosen = _choose(logits, temperature, None if draws is None else draws[rows, count])
        done |= torch.isin(chosen, stop)
        ended = follower.stopped() if follower is not None else None
        if ended is not None:
            done |= ended
        for row, token, over in zip(rows.tolist(), chosen.tolist(), done.tolist(), strict=True):
            if not over:
                answers[row].append(token)
        num_done = int(done.sum())
        if num_done == len(done):
            break
        tokens = step.next_tokens(tokens, chosen)
        if 2 * num_done >= len(done) and step.can_select and (other is None or other.can_select):
            keep = (~done).nonzero()[:, 0]
            step.select(keep)
            if other is not None:
                other.select(keep)
            if follower is not None:
                follower.select(keep)
            tokens, mask, positions, rows, done = (
                item[keep] for item in (tokens, mask, positions, rows, done)
            )
    return answers


class _Step:
    """One forward call of generation, with what is carried to the next."""

    def __init__(self, model: Model) -> None:
        self.hf = model.hf
        self.reads_mask = model.resolved.family.reads_mask
        self.takes = {
            name: families.accepts(self.hf, name)
            for name in ("use_cache", "position_ids", "logits_to_keep", "attention_mask")
        }
        self.state_name = next((n for n in _STATES if families.accepts(self.hf, n)), None)
        self.state: Any = None

    def __call__(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits `[batch, vocab]` for the next token."""
        inputs: dict[str, Any] = {"input_ids": tokens}
        if self.takes["use_cache"]:
            inputs["use_cache"] = self.state_name is not None
        recurrent = self.state_name == "cache_params"
        if self.takes["attention_mask"] and self.reads_mask and not (recurrent and self.state is not None):
            inputs["attention_mask"] = mask
        if self.takes["position_ids"]:
            inputs["position_ids"] = positions
        if self.takes["logits_to_keep"]:
            inputs["logits_to_keep"] = 1
        if self.state is not None and self.state_name is not None:
            inputs[self.state_name] = self.state
        output = self.hf(**inputs)
        if self.state_name is not None:
            self.state = getattr(output, self.state_name, None)
        return output.logits[:, -1].float()

    def next_tokens(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Input of the next call: the new token, or everything where the model carries no state."""
        new = chosen[:, None]
        return new if self.state is not None else torch.cat([tokens, new], dim=1)

    @property
    def can_select(self) -> bool:
        """Whether rows can be taken out of the carried state."""
        if self.state is None or isinstance(self.state, list):
            return True
        layers = getattr(self.state, "layers", None)
        return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)

    def select(self, keep: Tensor) -> None:
        """Keep some rows of the batch."""
        if isinstance(self.state, list):
            self.state = [item[keep] for item in self.state]
        elif self.state is not None:
            self.state.batch_select_indices(keep)


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


def _choose(logits: Tensor, temperature: float, draws: Tensor | None) -> Tensor:
    """Next token ids `[batch]`: the largest logit, or the draw inverted through the distribution function."""
    if temperature == 0 or draws is None:
        return logits.argmax(-1)
    total = (logits / temperature).softmax(-1).double().cumsum(-1)
    wanted = draws.double()[:, None] * total[:, -1:]
    return torch.searchsorted(total, wanted, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


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
