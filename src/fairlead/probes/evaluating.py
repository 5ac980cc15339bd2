"""A probe against its baselines on held-out entities: one record for tables, pages and `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fairlead.core.stats import auroc
from fairlead.probes.baselines import (
    Baseline,
    auroc_interval,
    compare_auroc,
    confidence_baselines,
    ledger_baseline,
    shuffled_baseline,
    text_baselines,
)
from fairlead.probes.calibrating import reliability
from fairlead.probes.examples import Example
from fairlead.probes.fitting import FittedProbe, split
from fairlead.probes.harvesting import Harvest


class Evaluation(NamedTuple):
    """A probe's measures on the test part.

    Attributes:
        record: JSON values: auroc and its interval, ece, baselines with gains, reliability, groups.
        baselines: Scores of the test part's spans.
    """

    record: dict[str, Any]
    baselines: list[Baseline]


def evaluate(
    fitted: FittedProbe,
    found: Harvest,
    examples: Sequence[Example],
    *,
    by: str = "way",
    num_resamples: int = 500,
) -> Evaluation:
    """Measure a probe beside all baselines.

    Args:
        fitted: The probe with its scores on the test part.
        found: The harvest that it was fitted on.
        examples: The examples of the harvest.
        by: Key in their meta data by which the AUROC is given as well (where it exists).
        num_resamples: Of the bootstrap.
    """
    parts = split(found, examples, fitted.probe.config)
    fit, test = parts["fit"], parts["test"]
    baselines = [
        *confidence_baselines(found, fit, test),
        *text_baselines(found, examples, fit, test),
        *ledger_baseline(found, examples, test),
        shuffled_baseline(found, examples, fit, test, fitted.probe.config),
    ]
    groups = [examples[i].group for i, _ in fitted.spans]
    labels, scores = fitted.labels, fitted.logits
    record: dict[str, Any] = {
        **fitted.probe.metrics,
        "kind": fitted.probe.config.kind,
        "auroc_interval": list(auroc_interval(scores, labels, groups, num_resamples=num_resamples))[1:],
        "num_entities": len(set(groups)),
        "reliability": [list(b) for b in reliability(fitted.probabilities, labels)],
        "roc": {"probe": roc_points(scores, labels)},
        "baselines": {},
        "by": {},
    }
    for baseline in baselines:
        gain = compare_auroc(scores, baseline.scores, labels, groups, num_resamples=num_resamples)
        record["baselines"][baseline.name] = {
            "auroc": gain.auroc,
            "gain": list(gain.gain),
            "choice": baseline.choice,
        }
        record["roc"][baseline.name] = roc_points(baseline.scores, labels)
    kinds = np.array([str(examples[i].meta.get(by, "")) for i, _ in fitted.spans])
    for kind in sorted(set(kinds) - {""}):
        here = kinds == kind
        y = labels[here]
        record["by"][kind] = {
            "num": int(here.sum()),
            "share_positive": float(y.mean()),
            "auroc": auroc(scores[here][y], scores[here][~y]),
            "baselines": {b.name: auroc(b.scores[here][y], b.scores[here][~y]) for b in baselines},
        }
    return Evaluation(record, baselines)


def roc_points(scores: np.ndarray, labels: np.ndarray, *, num: int = 60) -> list[list[float]]:
    """Points (share of false alarms, share found) of the ROC curve, at most `num` and the corners."""
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(labels, scores)
    keep = np.unique(np.linspace(0, len(fpr) - 1, num).round().astype(int))
    return [[round(float(fpr[i]), 4), round(float(tpr[i]), 4)] for i in keep]
