"""A probe fitted anew on the student, beside its placebo: is what was true of the claims still to be read off the student's activations?

1. The probe's own features (its sites, the model's confidence where it reads that) are taken from the student at the tokens of the claims.
2. A head of the probe's own kind is fitted on the claims of two thirds of the entities and scored on those of the others, over several
   draws. Monitors ask the same few questions over and over: by claims instead of entities the head would know each again by its words.
3. The placebo deals the labels out anew among the entities, which keeps what claims of one entity have in common: near .5 where nothing
   leaks from one side to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.nouns import SpanReadout
from fairlead.core.stats import auroc
from fairlead.training.rewards.claims import Question
from fairlead.training.rewards.reading import Text, attached, lay_out, readout_on

if TYPE_CHECKING:
    from fairlead.models import Model
    from fairlead.probes import SpanProbeConfig
    from fairlead.probes.head import Spans
    from fairlead.probes.reading import Reading

NUM_DRAWS = 5
HELD_SHARE = 1 / 3
LEAST = 4  # claims of each label without which nothing is fitted
BATCH_TEXTS = 128


class FreshScore(NamedTuple):
    """How well a fresh probe tells claims of entities it has not seen; None where there are too few.

    Attributes:
        auroc: With the verifier's labels.
        placebo: With labels dealt out anew among the entities.
    """

    auroc: float | None = None
    placebo: float | None = None


FreshProbe = Callable[["Model", Sequence[Text], Sequence[bool], Sequence[str]], FreshScore]
"""Fits a new probe on a model's activations at the claims of texts (all in order, True: unsupported; with their entities)."""


def entity_of(question: Question) -> str:
    """What splits go by: the question's entity, or what it asks where that is unknown (the same question is the same entity)."""
    return question.entity or str([turn["content"] for turn in question.messages])


def fresh_probe(readout: SpanReadout, *, seed: int = 0, draws: int = NUM_DRAWS) -> FreshProbe:
    """A fresh probe of the readout's own kind, or a linear one on its sites where it does not tell how it was fitted."""

    def fit(
        model: Model, texts: Sequence[Text], truth: Sequence[bool], entities: Sequence[str]
    ) -> FreshScore:
        if min(sum(truth), len(truth) - sum(truth)) < LEAST:
            return FreshScore()
        reading, config = _recipe(readout_on(readout, model))
        spans = _spans(model, readout, reading, texts, truth, entities)
        rng = np.random.default_rng(seed)
        found, placebo = [], []
        for _ in range(draws):
            held = _draw(spans.groups, rng)
            found.append(_held_out_auroc(spans, held, config))
            placebo.append(_held_out_auroc(spans._replace(labels=_dealt_anew(spans, rng)), held, config))
        return FreshScore(_mean(found), _mean(placebo))

    return fit


def _recipe(readout: SpanReadout) -> tuple[Reading, SpanProbeConfig]:
    from fairlead.probes import SpanProbeConfig
    from fairlead.probes.reading import Reading

    reading, config = getattr(readout, "reading", None), getattr(readout, "config", None)
    if isinstance(reading, Reading) and isinstance(config, SpanProbeConfig):
        return reading, config
    return Reading(tuple(readout.sites)), SpanProbeConfig(confidence=False, regularisation=0.01)


@torch.no_grad()
def _spans(
    model: Model,
    readout: SpanReadout,
    reading: Reading,
    texts: Sequence[Text],
    truth: Sequence[bool],
    entities: Sequence[str],
) -> Spans:
    """Features of all claims in their order."""
    from fairlead.probes.head import Spans
    from fairlead.probes.reading import NUM_CARRIED, gather_spans

    features: list[Tensor] = []
    for first in range(0, len(texts), BATCH_TEXTS):
        batch, places = lay_out(model, texts[first : first + BATCH_TEXTS])
        if not places:
            continue
        with attached(readout, model):
            activations = model.capture(batch, reading.sites)
        values, mask = gather_spans(reading.features(activations), places)
        features += [x[there].cpu() for x, there in zip(values, mask, strict=True)]
    groups = [entity for text, entity in zip(texts, entities, strict=True) for _ in text.claims]
    carried = NUM_CARRIED if reading.lens is not None else 0
    return Spans(features, torch.tensor(list(truth)), reading.num_confidence, carried, groups)


def _draw(groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Which claims are held out: those of a share of the entities."""
    names = sorted(set(groups))
    chosen = set(rng.permutation(names)[: max(1, round(HELD_SHARE * len(names)))].tolist())
    return np.array([group in chosen for group in groups])


def _dealt_anew(spans: Spans, rng: np.random.Generator) -> Tensor:
    """The entities' labels in another order of the entities."""
    names = sorted(set(spans.groups))
    places = [[k for k, group in enumerate(spans.groups) if group == name] for name in names]
    dealt = [k for place in rng.permutation(len(names)) for k in places[place]]
    labels = torch.empty_like(spans.labels)
    labels[torch.tensor([k for own in places for k in own])] = spans.labels[torch.tensor(dealt)]
    return labels


def _held_out_auroc(spans: Spans, held: np.ndarray, config: SpanProbeConfig) -> float:
    """Of a head fitted on the other claims; nan where a side lacks a label."""
    from fairlead.probes.fitting import head_logits
    from fairlead.probes.kinds import get_kind

    rest, kept = (spans.subset(np.flatnonzero(side).tolist()) for side in (~held, held))
    if any(len(set(side.labels.tolist())) < 2 for side in (rest, kept)):
        return float("nan")
    with torch.random.fork_rng(), torch.enable_grad():
        head = get_kind(config.kind).fit(rest, config)
    logits, labels = head_logits(head.eval(), kept), kept.labels.numpy()
    return auroc(logits[labels], logits[~labels])


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else None
