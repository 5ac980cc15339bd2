"""Features of labelled stretches: one pass of the model over the texts, the tokens of the stretches kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fairlead.core.claims import TokenSpan
from fairlead.core.errors import ConfigError
from fairlead.core.progress import Meter
from fairlead.data import collate
from fairlead.probes.encoding import encode_for, locate
from fairlead.probes.examples import Example
from fairlead.probes.head import Spans
from fairlead.probes.reading import NUM_CARRIED, Reading, gather_spans

if TYPE_CHECKING:
    from fairlead.models import Model


class Harvest(NamedTuple):
    """Spans with where they come from.

    Attributes:
        spans: Features and labels.
        example: `[span]` index of the example.
        stretch: `[span]` index of the stretch in it.
        num_dropped: Stretches beyond the model's longest input.
    """

    spans: Spans
    example: list[int]
    stretch: list[int]
    num_dropped: int


@torch.no_grad()
def harvest(
    model: Model,
    examples: Sequence[Example],
    reading: Reading,
    *,
    batch_size: int = 32,
    label: str = "reading texts",
) -> Harvest:
    """Features of every stretch, in the order of the examples (token by token where an example says so).

    Raises:
        ConfigError: No stretch is left.
    """
    encoded = [
        encode_for(model, e.messages, e.response, index=i, source=e.id) for i, e in enumerate(examples)
    ]
    order = sorted(range(len(examples)), key=lambda i: len(encoded[i].encoded))
    found: list[tuple[int, int, Tensor, bool]] = []
    num_dropped = 0
    meter = Meter(label, len(examples), "texts")
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        batch = collate([encoded[i].encoded for i in places], pad_id=model.pad_id)
        features = reading.features(model.capture(batch, reading.sites))
        spans: list[TokenSpan] = []
        who: list[tuple[int, int, bool]] = []
        for row, i in enumerate(places):
            for j, stretch in enumerate(examples[i].stretches):
                start, end = locate(encoded[i].offsets, stretch.start, stretch.end, shift=encoded[i].start)
                if end == 0:
                    num_dropped += 1
                    continue
                cuts = [(t, t + 1) for t in range(start, end)] if examples[i].token_level else [(start, end)]
                spans += [TokenSpan(row, a, b) for a, b in cuts]
                who += [(i, j, stretch.label)] * len(cuts)
        if spans:
            values, mask = gather_spans(features, spans)
            lengths = mask.sum(1).tolist()
            for (i, j, positive), x, n in zip(who, values, lengths, strict=True):
                found.append((i, j, x[:n].cpu().clone(), positive))
        meter.advance(len(places))
    meter.close()
    if not found:
        raise ConfigError(
            "no labelled stretch lies within the model's longest input. Next: shorten the texts."
        )
    found.sort(key=lambda item: item[:2])
    labels = torch.tensor([item[3] for item in found])
    by_token = all(example.token_level for example in examples)
    # a token that is read alone keeps what is carried over to it: else it would have no surprisal at all
    carried = NUM_CARRIED if reading.lens is not None and not by_token else 0
    groups = [examples[item[0]].group for item in found]
    spans_ = Spans([item[2] for item in found], labels, reading.num_confidence, carried, groups)
    return Harvest(spans_, [item[0] for item in found], [item[1] for item in found], num_dropped)
