"""Texts scored by a probe, token by token and stretch by stretch, as records that pages and `--json` show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from fairlead.core.claims import TokenSpan
from fairlead.data import collate
from fairlead.probes.encoding import encode_for, locate
from fairlead.probes.examples import Example
from fairlead.probes.span_probe import SpanProbe

if TYPE_CHECKING:
    from fairlead.models import Model


class ScoredText(NamedTuple):
    """A text with its scores.

    Attributes:
        id: Of the example.
        prompt: The last turn of the prompt, "" where there is none.
        tokens: Characters of the text that each token stands for.
        scores: Probability of each token.
        stretches: `(start, end, label, score)`, characters; label None where unknown.
    """

    id: str
    prompt: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    stretches: tuple[tuple[int, int, bool | None, float], ...]


@torch.no_grad()
def score_texts(
    model: Model,
    probe: SpanProbe,
    examples: Sequence[Example],
    *,
    labelled: bool = True,
    batch_size: int = 32,
) -> list[ScoredText]:
    """Score texts, in order; stretches beyond the model's longest input are left out.

    Args:
        model: The probe's own (check with `probe.check`).
        probe: The probe.
        examples: Texts with stretches.
        labelled: Whether the stretches' labels mean anything.
        batch_size: Texts in a forward pass.
    """
    found = []
    for begin in range(0, len(examples), batch_size):
        part = examples[begin : begin + batch_size]
        encoded = [
            encode_for(model, e.messages, e.response, index=i, source=e.id) for i, e in enumerate(part)
        ]
        batch = collate([e.encoded for e in encoded], pad_id=model.pad_id)
        with probe.attached(model):
            activations = model.capture(batch, probe.sites)
        tokens = probe.token_scores(activations)
        for row, (example, code) in enumerate(zip(part, encoded, strict=True)):
            spans, places = [], []
            for stretch in example.stretches:
                start, end = locate(code.offsets, stretch.start, stretch.end, shift=code.start)
                if end:
                    spans.append(TokenSpan(row, start, end))
                    places.append((stretch.start, stretch.end, stretch.label if labelled else None))
            scores = probe.span_scores(activations, spans).tolist()
            prompt = example.messages[-1]["content"] if example.messages else ""
            texts = tuple(example.response[a:b] for a, b in _covering(code.offsets, len(example.response)))
            here = tokens[row, code.start : code.start + len(code.offsets)].tolist()
            stretches = tuple((*place, score) for place, score in zip(places, scores, strict=True))
            found.append(ScoredText(example.id, prompt, texts, tuple(here), stretches))
    return found


def _covering(offsets: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Offsets stretched so that together they cover the text: what lies between two tokens goes to the later one."""
    covered, at = [], 0
    for _, end in offsets:
        covered.append((at, max(at, end)))
        at = max(at, end)
    return covered
