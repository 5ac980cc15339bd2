"""Reads the claims of texts with a span readout on one model: the frozen copy, or the student where a study asks for it.

The text is tokenised anew behind the prompt's tokens: what is read is the text, whatever tokens the student wrote it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fairlead.core.claims import ClaimSpan, TokenSpan
from fairlead.core.nouns import SpanReadout

if TYPE_CHECKING:
    from fairlead.models import Model


class Text(NamedTuple):
    """A text to read: the prompt's tokens, the answer, and its claims (in characters of the answer)."""

    prompt_ids: tuple[int, ...]
    response: str
    claims: tuple[ClaimSpan, ...]


class PaddedBatch(NamedTuple):
    """A batch padded on the right."""

    input_ids: Tensor
    attention_mask: Tensor


def read_claims(
    model: Model, readout: SpanReadout, texts: Sequence[Text], *, batch_size: int = 128
) -> list[tuple[ClaimSpan, ...]]:
    """The texts' claims with `score`, P(unsupported); nothing is drawn, nothing is changed, no gradient is kept."""
    order = sorted((p for p, text in enumerate(texts) if text.claims), key=lambda p: len(texts[p].response))
    found: list[tuple[ClaimSpan, ...]] = [text.claims for text in texts]
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        chunk = [texts[place] for place in places]
        with torch.no_grad():
            scores = span_scores(model, readout, chunk).float().cpu().tolist()
        position = 0
        for place, text in zip(places, chunk, strict=True):
            own = scores[position : position + len(text.claims)]
            position += len(own)
            found[place] = tuple(
                claim.model_copy(update={"score": score})
                for claim, score in zip(text.claims, own, strict=True)
            )
    return found


def readout_on(readout: SpanReadout, model: Model) -> SpanReadout:
    """The readout for another model than it was fitted on; one that knows nothing of its model (no `on`) reads any."""
    on: Any = getattr(readout, "on", None)
    return readout if on is None else on(model)


def attached(readout: SpanReadout, model: Model) -> AbstractContextManager[Any]:
    """The model as the readout reads it: with its adapters on, where it has any (LoRA probes), unchanged otherwise."""
    own: Any = getattr(readout, "attached", None)
    return nullcontext() if own is None else own(model)


def span_scores(
    model: Model, readout: SpanReadout, texts: Sequence[Text], *, grad: bool = False
) -> Float[Tensor, "span"]:
    """Scores of all claims of the texts, one after the other, in one forward pass."""
    batch, spans = lay_out(model, texts)
    with attached(readout, model):
        activations = model.capture(batch, readout.sites, grad=grad)
    return readout.span_scores(activations, spans)


def lay_out(model: Model, texts: Sequence[Text]) -> tuple[PaddedBatch, list[TokenSpan]]:
    """Tokens of the texts, padded on the right, and where their claims stand."""
    rows, spans = [], []
    for row, text in enumerate(texts):
        ids, places = _encode(model.tokenizer, text)
        rows.append(ids)
        spans += [TokenSpan(row, start, end) for start, end in places]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), model.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = torch.tensor(values)
        mask[row, : len(values)] = 1
    return PaddedBatch(ids, mask), spans


def _encode(tokenizer: object, text: Text) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(text.response, add_special_tokens=False, return_offsets_mapping=True)  # type: ignore[operator]
    offsets, before = encoded["offset_mapping"], len(text.prompt_ids)
    places = []
    for claim in text.claims:
        start, end = tokens_of(offsets, claim.start, claim.end)
        places.append((before + start, before + end))
    return [*text.prompt_ids, *encoded["input_ids"]], places


def tokens_of(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Tokens (half open) that hold any of the characters `start` to `end`; at least one."""
    inside = [k for k, (first, last) in enumerate(offsets) if last > start and first < end]
    return (inside[0], inside[-1] + 1) if inside else (max(0, len(offsets) - 1), max(1, len(offsets)))
