"""What a probe must beat: the model's confidence alone, the text alone, and a ledger of what the model was told.

Each baseline gives a score per span of the test part; one that has a choice to make (how to pool over a span's tokens) or a parameter
makes it on the part that the probe was fitted on. Differences to a probe come with bootstrap intervals in which whole entities are drawn.

    entropy        entropy of the next-token distribution before each token, pooled
    max_softmax    probability of the most probable token there, pooled
    surprisal      of the tokens that were written, pooled (knows what entropy and max-softmax do not: what was sampled)
    text_only      logistic regression on word n-grams (TF-IDF) of prompt and span
    span_text      ... of the span alone
    exposures      how often the fact stood in the training data (worlds with a ledger only: nobody has it for a real model)
    shuffled       the probe's own kind fitted on labels dealt out anew to entities: a placebo
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.stats import Interval, auroc
from fairlead.probes.examples import Example
from fairlead.probes.fitting import head_logits
from fairlead.probes.harvesting import Harvest
from fairlead.probes.head import SpanProbeConfig
from fairlead.probes.kinds import get_kind
from fairlead.probes.reading import NUM_CARRIED

EXPOSURES = "exposures"  # key in the meta data of examples
POOLS: dict[str, Callable[[Tensor], float]] = {
    "mean": lambda x: float(x.mean()),
    "max": lambda x: float(x.max()),
    "sum": lambda x: float(x.sum()),
    "last": lambda x: float(x[-1]),
}


class Baseline(NamedTuple):
    """Scores of the test part's spans, higher for the positive class, and what was chosen on the fit part."""

    name: str
    scores: np.ndarray
    choice: str = ""


def confidence_baselines(found: Harvest, fit: Sequence[int], test: Sequence[int]) -> list[Baseline]:
    """Entropy, max-softmax and surprisal, each with the pool that tells best on the fit part; none without confidence."""
    if not found.spans.num_confidence:
        return []
    columns = {
        "surprisal": -3,
        "entropy": -2,
        "max_softmax": -1,
    }  # carried columns: before, or of, each token
    assert len(columns) == NUM_CARRIED
    return [_pooled(name, column, found, fit, test) for name, column in columns.items()]


def text_baselines(
    found: Harvest, examples: Sequence[Example], fit: Sequence[int], test: Sequence[int]
) -> list[Baseline]:
    """A classifier that sees words only, once with the prompt and once without."""
    return [
        Baseline("text_only", _text_scores(_texts(found, examples, with_prompt=True), found, fit, test)),
        Baseline("span_text", _text_scores(_texts(found, examples, with_prompt=False), found, fit, test)),
    ]


def ledger_baseline(found: Harvest, examples: Sequence[Example], test: Sequence[int]) -> list[Baseline]:
    """Fewer exposures, higher score; none where the examples do not tell."""
    if any(EXPOSURES not in example.meta for example in examples):
        return []
    return [
        Baseline("exposures", np.array([-float(examples[found.example[p]].meta[EXPOSURES]) for p in test]))
    ]


def shuffled_baseline(
    found: Harvest,
    examples: Sequence[Example],
    fit: Sequence[int],
    test: Sequence[int],
    config: SpanProbeConfig,
) -> Baseline:
    """The same kind of probe fitted on labels that were dealt out anew, entity by entity."""
    rng = np.random.default_rng(config.seed)
    spans = found.spans.subset(list(fit))
    groups = np.array([examples[found.example[p]].group for p in fit])
    labels = spans.labels.numpy().copy()
    names = np.unique(groups)
    pool = [labels[groups == name] for name in names]
    for name, source in zip(names, rng.permutation(len(names)), strict=True):
        here = np.flatnonzero(groups == name)
        labels[here] = rng.choice(pool[source], size=len(here), replace=True)
    if labels.all() or not labels.any():
        labels[0] = not labels[0]
    head = get_kind(config.kind).fit(spans._replace(labels=torch.from_numpy(labels)), config).eval()
    return Baseline("shuffled", head_logits(head, found.spans.subset(list(test))))


class Gain(NamedTuple):
    """AUROC of a baseline and how much more the probe has, with the interval of the difference."""

    auroc: float
    gain: Interval


def compare_auroc(
    probe: np.ndarray,
    baseline: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    *,
    num_resamples: int = 500,
    seed: int = 0,
) -> Gain:
    """AUROC of the probe less that of the baseline, bootstrapped over groups (both score the same draw)."""
    labels = np.asarray(labels, bool)
    both = [auroc(s[labels], s[~labels]) for s in (probe, baseline)]
    draws = []
    for places in resample_groups(groups, num_resamples=num_resamples, seed=seed):
        y = labels[places]
        if 0 < y.sum() < len(y):
            one, two = (auroc(s[places][y], s[places][~y]) for s in (probe, baseline))
            draws.append(one - two)
    low, high = np.quantile(draws, [0.025, 0.975]) if draws else (float("nan"), float("nan"))
    return Gain(both[1], Interval(both[0] - both[1], float(low), float(high)))


def auroc_interval(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence[str], *, num_resamples: int = 500, seed: int = 0
) -> Interval:
    """AUROC with its bootstrap interval over groups."""
    gain = compare_auroc(
        scores, np.zeros(len(scores)), labels, groups, num_resamples=num_resamples, seed=seed
    )
    return Interval(*(0.5 + part for part in gain.gain))  # a constant has one half


def resample_groups(groups: Sequence[str], *, num_resamples: int, seed: int) -> list[np.ndarray]:
    """Places of bootstrap draws in which groups are drawn whole, with replacement."""
    rng = np.random.default_rng(seed)
    order: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        order.setdefault(group, []).append(place)
    members = [np.array(places) for places in order.values()]
    return [
        np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        for _ in range(num_resamples)
    ]


def _pooled(name: str, column: int, found: Harvest, fit: Sequence[int], test: Sequence[int]) -> Baseline:
    def scores(pool: str, places: Sequence[int]) -> np.ndarray:
        values = (found.spans.features[p][:, column] for p in places)
        return np.array([POOLS[pool](x[1:] if len(x) > 1 else x) for x in values])

    labels = found.spans.labels.numpy()[list(fit)]
    quality = {pool: auroc(scores(pool, fit)[labels], scores(pool, fit)[~labels]) for pool in POOLS}
    best = max(quality, key=lambda pool: quality[pool])
    return Baseline(name, scores(best, test), best)


def _texts(found: Harvest, examples: Sequence[Example], *, with_prompt: bool) -> list[str]:
    texts = []
    for i, j in zip(found.example, found.stretch, strict=True):
        example, stretch = examples[i], examples[i].stretches[j]
        span = example.response[stretch.start : stretch.end]
        prompt = " ".join(turn["content"] for turn in example.messages)
        texts.append(f"{prompt} {example.response[: stretch.end]}" if with_prompt else span)
    return texts


def _text_scores(texts: list[str], found: Harvest, fit: Sequence[int], test: Sequence[int]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        rows = vectors.fit_transform([texts[p] for p in fit])
    except ValueError:  # no word in any text
        return np.zeros(len(test))
    model = LogisticRegression(C=10.0, max_iter=2000).fit(rows, found.spans.labels.numpy()[list(fit)])
    return model.decision_function(vectors.transform([texts[p] for p in test]))
