"""Probes of a model: fitted, measured beside their baselines, and applied; the linear script behind `fairlead probe`.

1. Read labelled texts (answers with claims, or anything else with spans or labels).
2. Harvest features once, fit each kind on the same split by entity, calibrate.
3. Measure each beside all baselines on the held-out entities; keep the best by its calibration part, never by its test.
4. Write the probe, the record, the scored test texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from fairlead.activations import ActivationStore, StoredModel
from fairlead.core.errors import DataError
from fairlead.core.progress import say
from fairlead.core.run import Run, sha256_file
from fairlead.core.stats import auroc
from fairlead.models import Model
from fairlead.probes import FittedProbe, SpanProbe, SpanProbeConfig, load_span_probe
from fairlead.probes.evaluating import evaluate
from fairlead.probes.examples import Example, Stretch, Task
from fairlead.probes.fitting import (
    apply_to,
    default_sites,
    fit_with,
    head_logits,
    split,
)
from fairlead.probes.harvesting import Harvest, harvest
from fairlead.probes.labelled import load_examples, name_of
from fairlead.probes.reading import make_reading
from fairlead.probes.scoring import ScoredText, score_texts

NUM_SHOWN = 40
PROBE, RECORD, SCORED = "probe", "evaluation.json", "scored.json"


class Probed(NamedTuple):
    """What a probe study gives back.

    Attributes:
        folder: The run folder.
        probe: The best probe (the only one of an evaluation).
        records: Per kind, its measures beside the baselines.
        best: Name of the best kind.
        scored: Some of the test texts, scored by the best.
    """

    folder: Path
    probe: SpanProbe
    records: dict[str, dict[str, Any]]
    best: str
    scored: list[ScoredText]


def fit_probes(
    model: Model,
    data: str | Path,
    *,
    out: str | Path,
    kinds: Sequence[str] = ("linear",),
    task: Task = "classify",
    positive: str | None = None,
    tokens: bool = False,
    config: SpanProbeConfig | None = None,
    store: str | Path | None = None,
    overwrite: bool = False,
) -> Probed:
    """Fit probes of several kinds on a data file and keep the best.

    Args:
        store: Folder of an `ActivationStore` of these texts at the probe's sites, read in place of the model's passes.

    Raises:
        DataError: A broken line of the data.
        ConfigError: A setting is off, or a part of the split lacks a class.
        RunError: The folder exists, or is in use.
    """
    examples = load_examples(data, task=task, positive=positive, tokens=tokens)
    name = name_of(data, task=task, positive=positive)
    sites = (config.sites if config else None) or default_sites(model)
    base = SpanProbeConfig.make(config.model_dump() if config else None, sites=sites)
    base = base.model_copy(update={"confidence": base.confidence and model.is_causal})
    if (
        task != "classify" or positive is not None or tokens
    ):  # confidence alone says whether a claim is made up, and little else
        base = base.model_copy(update={"adds": "all"})
    settings = {
        **base.model_dump(mode="json"),
        "kinds": list(kinds),
        "task": task,
        "positive": positive,
        "tokens": tokens,
    }
    inputs = {"data": sha256_file(data), "model": model.fingerprint}
    with Run.start(
        out, study="probe fit", config=settings, inputs=inputs, seed=base.seed, overwrite=overwrite
    ) as run:
        reading = make_reading(model, sites, confidence=base.confidence)
        reader = StoredModel(model, ActivationStore(store)) if store is not None else model
        found = harvest(cast("Model", reader), examples, reading)
        if isinstance(reader, StoredModel) and not reader.num_read:
            raise DataError(
                f"holds none of the texts at all of {', '.join(map(str, reading.sites))}. Next: harvest these texts at these sites, or "
                "leave the store out.",
                source=str(store),
            )
        read: dict[str, Harvest] = {}
        records: dict[str, dict[str, Any]] = {}
        fitted: dict[str, FittedProbe] = {}
        for kind in kinds:
            config_ = SpanProbeConfig.make(base.model_dump(), kind=kind)
            fitted[kind] = fit_with(model, examples, found, name=name, config=config_)
            with fitted[kind].probe.attached(model):
                read[kind] = harvest(model, examples, reading) if fitted[kind].probe.adapters else found
            records[kind] = evaluate(fitted[kind], read[kind], examples).record
            say(f"{kind}: AUROC {records[kind]['auroc']:.3f}, calibration error {records[kind]['ece']:.3f}")
        best = max(kinds, key=lambda kind: _choice(fitted[kind], read[kind], examples))
        probe = fitted[best].probe
        scored = _score_some(model, probe, examples, sorted({i for i, _ in fitted[best].spans}))
        probe.save(run.path(PROBE))
        _write(run, records, best, scored)
    return Probed(run.final, probe, records, best, scored)


def evaluate_probe(
    model: Model,
    probe_folder: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    task: Task = "classify",
    positive: str | None = None,
    tokens: bool = False,
    any_model: bool = False,
    overwrite: bool = False,
) -> Probed:
    """Measure a saved probe on a data file: on the entities that its split keeps for testing; baselines learn from the others.

    Raises:
        ModelError: The probe is another model's.
        DataError: A broken line of the data.
    """
    probe = load_span_probe(probe_folder, model=model, any_model=any_model)
    examples = load_examples(data, task=task, positive=positive, tokens=tokens)
    inputs = {"data": sha256_file(data), "model": model.fingerprint, "probe": probe.data_sha256}
    settings = {**probe.config.model_dump(mode="json"), "task": task, "positive": positive, "tokens": tokens}
    with Run.start(
        out,
        study="probe evaluate",
        config=settings,
        inputs=inputs,
        seed=probe.config.seed,
        overwrite=overwrite,
    ) as run:
        with probe.attached(model):
            found = harvest(model, examples, probe.reading)
        fitted = apply_to(probe, found, examples)
        record = evaluate(fitted, found, examples).record
        scored = _score_some(model, probe, examples, sorted({i for i, _ in fitted.spans}))
        records = {probe.config.kind: record}
        _write(run, records, probe.config.kind, scored)
    return Probed(run.final, probe, records, probe.config.kind, scored)


def score_text(model: Model, probe_folder: str | Path, text: str, *, prompt: str = "") -> ScoredText:
    """Score one text (an answer, where a prompt is given): its tokens and, as stretches, its sentences.

    Raises:
        ModelError: The probe is another model's.
    """
    from fairlead.probes.claims.splitting import SENTENCE

    probe = load_span_probe(probe_folder, model=model)
    bounds = []
    for match in SENTENCE.finditer(text):
        said = match.group().strip()
        start = match.start() + match.group().find(said)
        bounds.append((start, start + len(said)))
    stretches = tuple(Stretch(start=a, end=b, label=False) for a, b in bounds or [(0, len(text))])
    messages = ({"role": "user", "content": prompt},) if prompt else ()
    example = Example(id="text", messages=messages, response=text, stretches=stretches)
    return score_texts(model, probe, [example], labelled=False)[0]


def _choice(fitted: FittedProbe, found: Harvest, examples: Sequence[Example]) -> float:
    """What kinds are chosen by: the AUROC on the calibration part."""
    places = split(found, examples, fitted.probe.config)["calibration"]
    spans = found.spans.subset(places)
    logits, labels = head_logits(fitted.probe.head, spans), spans.labels.numpy()
    return auroc(logits[labels], logits[~labels])


def _score_some(
    model: Model, probe: SpanProbe, examples: Sequence[Example], test: Sequence[int]
) -> list[ScoredText]:
    """Evenly spread test texts, the worst failures first."""
    chosen = [test[i] for i in torch.linspace(0, len(test) - 1, min(NUM_SHOWN, len(test))).long().tolist()]
    scored = score_texts(model, probe, [examples[i] for i in chosen])

    def worst(text: ScoredText) -> float:
        return max((abs(score - float(bool(label))) for *_, label, score in text.stretches), default=0.0)

    return sorted(scored, key=worst, reverse=True)


def _write(run: Run, records: dict[str, dict[str, Any]], best: str, scored: list[ScoredText]) -> None:
    run.write_json(RECORD, {"best": best, "kinds": records})
    run.write_json(SCORED, [text._asdict() for text in scored])
    run.record["summary"] = {"best": best, **{k: records[best][k] for k in ("auroc", "ece", "num")}}
