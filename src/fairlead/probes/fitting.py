"""The one trainer of span probes: split by entity, fit, calibrate, measure.

1. The texts' groups (entities) are dealt to fit, calibration and test by a hash of their name and the seed.
2. A head is fitted on the first part, its calibration on the second, and the metrics are those of the third.
Nothing is refitted afterwards: what is saved is what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fairlead.core.errors import ConfigError
from fairlead.core.progress import say
from fairlead.core.run import sha256_json
from fairlead.core.stats import auroc
from fairlead.probes.calibrating import Calibration, expected_calibration_error, fit_calibration
from fairlead.probes.examples import Example
from fairlead.probes.harvesting import Harvest, harvest
from fairlead.probes.head import Head, SpanProbeConfig, Spans, pad_spans
from fairlead.probes.kinds import get_kind
from fairlead.probes.parts import PARTS, part_of
from fairlead.probes.reading import make_reading
from fairlead.probes.seen import seen_keys
from fairlead.probes.span_probe import SpanProbe
from fairlead.probes.token_head import fit_token_head

if TYPE_CHECKING:
    from fairlead.models import Model

LORA = "lora"  # the one kind that changes what is harvested


class FittedProbe(NamedTuple):
    """A probe with what it was measured on.

    Attributes:
        probe: The probe.
        spans: `[span]` places (example, stretch) of the test part.
        logits: `[span]` of the test part.
        labels: `[span]` of the test part.
    """

    probe: SpanProbe
    spans: list[tuple[int, int]]
    logits: np.ndarray
    labels: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """Calibrated, of the test part."""
        return self.probe.calibration(torch.from_numpy(self.logits)).numpy()


def default_sites(model: Model) -> tuple[str, ...]:
    """The residual stream after half and after all of the blocks."""
    return tuple(
        f"layers.{layer}.resid_post" for layer in sorted({model.num_layers // 2, model.num_layers - 1})
    )


def fit_span_probe(
    model: Model,
    examples: Sequence[Example],
    *,
    name: str = "unsupported",
    config: SpanProbeConfig | None = None,
    **settings: Any,
) -> FittedProbe:
    """Fit a probe on labelled texts.

    Args:
        model: Whose activations are read.
        examples: Labelled stretches.
        name: What the positive class is called.
        config: Settings; `settings` override single ones.

    Raises:
        ConfigError: A setting is off, or a part lacks one of the classes.
    """
    config = SpanProbeConfig.make(config.model_dump() if config else None, **settings)
    sites = config.sites or default_sites(model)
    config = SpanProbeConfig.make(
        config.model_dump(), sites=sites, confidence=config.confidence and model.is_causal
    )
    reading = make_reading(model, sites, confidence=config.confidence)
    return fit_with(model, examples, harvest(model, examples, reading), name=name, config=config)


def fit_with(
    model: Model, examples: Sequence[Example], found: Harvest, *, name: str, config: SpanProbeConfig
) -> FittedProbe:
    """Fit any kind from a harvest of the unchanged model (LoRA probes make their own of the adapted one)."""
    if config.kind == LORA:
        from fairlead.probes.lora import fit_lora

        return fit_lora(model, examples, found, name=name, config=config)
    return fit_on(found, examples, model=model, name=name, config=config)


def fit_on(
    found: Harvest,
    examples: Sequence[Example],
    *,
    model: Model,
    name: str,
    config: SpanProbeConfig,
    head: Head | None = None,
) -> FittedProbe:
    """Fit on features that were harvested before (several kinds share a harvest); `config.sites` must be those of it.

    A head that was fitted already is only calibrated and measured.
    """
    parts = split(found, examples, config)
    if head is None:
        with torch.enable_grad():
            head = get_kind(config.kind).fit(found.spans.subset(parts["fit"]), config)
    head = head.eval().requires_grad_(False)
    with torch.enable_grad():
        token_head = fit_token_head(found.spans.subset(parts["fit"]), config).eval().requires_grad_(False)
    calibration = token_calibration = Calibration()
    if config.calibration != "none":
        held = found.spans.subset(parts["calibration"])
        calibration = fit_calibration(head_logits(head, held), held.labels.numpy(), method=config.calibration)
        token_calibration = fit_calibration(*token_logits(token_head, held), method="platt")
    test = found.spans.subset(parts["test"])
    logits, labels = head_logits(head, test), test.labels.numpy()
    reading = make_reading(model, config.sites or (), confidence=config.confidence)
    probe = SpanProbe(
        reading,
        head,
        token_head,
        calibration,
        token_calibration,
        config,
        name,
        model.fingerprint,
        sha256_json([e.model_dump(mode="json") for e in examples]),
        measure(calibration, logits, labels),
        {
            "num_spans": {part: len(places) for part, places in parts.items()},
            "share_positive": float(found.spans.labels.float().mean()),
            "num_dropped": found.num_dropped,
        },
        seen=seen_keys(examples, config),
    )
    places = [(found.example[p], found.stretch[p]) for p in parts["test"]]
    return FittedProbe(probe.to(model.device), places, logits, labels)


def apply_to(probe: SpanProbe, found: Harvest, examples: Sequence[Example]) -> FittedProbe:
    """A fitted probe with its scores on the test part of another harvest; its metrics are those of this part."""
    parts = split(found, examples, probe.config)
    test = found.spans.subset(parts["test"])
    logits, labels = head_logits(probe.head, test), test.labels.numpy()
    places = [(found.example[p], found.stretch[p]) for p in parts["test"]]
    return FittedProbe(
        replace(probe, metrics=measure(probe.calibration, logits, labels)), places, logits, labels
    )


def split(found: Harvest, examples: Sequence[Example], config: SpanProbeConfig) -> dict[str, list[int]]:
    """Places of the spans of each part.

    Raises:
        ConfigError: A part that is needed lacks a class.
    """
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for place, example in enumerate(found.example):
        parts[part_of(examples[example].group, config)].append(place)
    for part, places in parts.items():
        if part == "calibration" and config.calibration == "none":
            continue
        positive = int(found.spans.labels[torch.tensor(places, dtype=torch.long)].sum()) if places else 0
        if not 0 < positive < len(places):
            raise ConfigError(
                f"the {part} part has {len(places)} spans, {positive} of them positive: both classes are needed. Next: give more data "
                f"or change calibration_share, test_share or seed."
            )
    if len(parts["fit"]) < 50:
        say(f"note: only {len(parts['fit'])} spans to fit on")
    return parts


@torch.no_grad()
def head_logits(head: Head, spans: Spans, *, batch: int = 512) -> np.ndarray:
    """Logits `[span]` in float64."""
    device = head.mean.device
    logits = []
    for start in range(0, len(spans.features), batch):
        features, mask = pad_spans(spans.features[start : start + batch])
        logits.append(head.span_logits(features.to(device), mask.to(device)).cpu().double())
    return torch.cat(logits).numpy()


@torch.no_grad()
def token_logits(head: Head, spans: Spans, *, batch: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the tokens of all spans, each read alone, and the labels of the spans they stand in."""
    logits, labels = [], []
    for start in range(0, len(spans.features), batch):
        features, mask = pad_spans(spans.features[start : start + batch])
        here = head.token_logits(features.to(head.mean.device)).cpu()
        logits.append(here[mask].double())
        labels.append(spans.labels[start : start + batch, None].expand(mask.shape)[mask])
    return torch.cat(logits).numpy(), torch.cat(labels).numpy()


def measure(calibration: Calibration, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """AUROC, calibration error before and after calibration, and Brier score."""
    p = calibration(torch.from_numpy(logits)).numpy()
    raw = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return {
        "auroc": auroc(logits[labels], logits[~labels]),
        "ece": expected_calibration_error(p, labels),
        "ece_before": expected_calibration_error(raw, labels),
        "brier": float(np.mean((p - labels) ** 2)),
        "num": len(labels),
        "share_positive": float(labels.mean()),
    }
