"""The same trainer on real labelled text with a small real model, beside TF-IDF and logistic regression: reported where it loses.

Movie reviews (sentiment; the first 900 characters, which is what the model can read at once) and subjectivity (single sentences), from
NLTK; activations of stories260K, a 260,000-parameter model that has read children's stories only. Splits are by review, or by sentence.

    python -m benchmarks.probes_text --seeds 3 --publish probes_text
"""

from __future__ import annotations

import argparse
import random
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.summary import cell, write_table
from fairlead.core.errors import DataError
from fairlead.core.progress import say
from fairlead.core.stats import auroc
from fairlead.models import Model, load_model
from fairlead.probes import Example, SpanProbeConfig, Stretch
from fairlead.probes.baselines import compare_auroc
from fairlead.probes.fitting import fit_on
from fairlead.probes.harvesting import harvest
from fairlead.probes.parts import part_of
from fairlead.probes.reading import make_reading

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KINDS = ("linear", "mean_difference", "attention")
CHUNK, MAX_CHUNKS = 900, 1
COLUMNS = (
    ("reviews", "movie reviews: positive or negative"),
    ("reviews_gain", "less TF-IDF"),
    ("subjectivity", "subjective or objective"),
    ("subjectivity_gain", "less TF-IDF"),
)


class Text(NamedTuple):
    """A labelled text."""

    id: str
    text: str
    label: bool


def movie_reviews(folder: Path, num: int, seed: int) -> list[Text]:
    """`num` reviews, half of them positive."""
    with zipfile.ZipFile(folder / "movie_reviews.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt") and "/cv" in name)
        random.Random(seed).shuffle(names)
        halves = [[n for n in names if f"/{label}/" in n][: num // 2] for label in ("pos", "neg")]
        return [
            Text(name, archive.read(name).decode("latin-1"), place == 0)
            for place, half in enumerate(halves)
            for name in half
        ]


def subjectivity(folder: Path, num: int, seed: int) -> list[Text]:
    """`num` sentences, half of them subjective."""
    found = []
    with zipfile.ZipFile(folder / "subjectivity.zip") as archive:
        for name, label in (("quote.tok.gt9.5000", True), ("plot.tok.gt9.5000", False)):
            lines = archive.read(f"subjectivity/{name}").decode("latin-1").splitlines()
            lines = [line.strip() for line in lines if line.strip()]
            random.Random(seed).shuffle(lines)
            found += [Text(f"{name}:{n}", line, label) for n, line in enumerate(lines[: num // 2])]
    return found


def chunks(text: str) -> list[tuple[int, int]]:
    """The first characters of a text, in stretches that the model can read."""
    stops = range(0, max(1, min(len(text), CHUNK * MAX_CHUNKS)), CHUNK)
    return [(start, min(len(text), start + CHUNK)) for start in stops]


def examples_of(texts: list[Text]) -> list[Example]:
    """An example a chunk; the text is the entity."""
    found = []
    for text in texts:
        for place, (start, end) in enumerate(chunks(text.text)):
            part = text.text[start:end]
            if part.strip():
                stretch = Stretch(start=0, end=len(part), label=text.label)
                found.append(
                    Example(id=f"{text.id}#{place}", response=part, stretches=(stretch,), entity=text.id)
                )
    return found


def tfidf_scores(texts: list[Text], config: SpanProbeConfig) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores of test texts by the words and pairs of words that the probe sees too, fitted on all other texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    fit = [t for t in texts if part_of(t.id, config) != "test"]
    test = [t for t in texts if part_of(t.id, config) == "test"]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=10.0, max_iter=2000)
    seen = CHUNK * MAX_CHUNKS
    model.fit(vectors.fit_transform([t.text[:seen] for t in fit]), [t.label for t in fit])
    scores = model.decision_function(vectors.transform([t.text[:seen] for t in test]))
    return scores, np.array([t.label for t in test]), [t.id for t in test]


def measure(model: Model, texts: list[Text], seed: int) -> dict[str, Any]:
    """AUROC of TF-IDF and of each kind on the same test texts."""
    sites = ("layers.2.resid_post", "layers.4.resid_post")
    config = SpanProbeConfig.make(
        sites=sites, confidence=False, seed=seed, regularisation=0.01, adds="all", test_share=0.3
    )
    base, labels, ids = tfidf_scores(texts, config)
    examples = examples_of(texts)
    found = harvest(model, examples, make_reading(model, sites, confidence=False))
    record: dict[str, Any] = {"TF-IDF and logistic regression": {"auroc": auroc(base[labels], base[~labels])}}
    for kind in KINDS:
        fitted = fit_on(
            found, examples, model=model, name="label", config=config.model_copy(update={"kind": kind})
        )
        sums: dict[str, list[float]] = {}
        for (place, _), logit in zip(fitted.spans, fitted.logits, strict=True):
            sums.setdefault(examples[place].entity, []).append(float(logit))
        scores = np.array([np.mean(sums[name]) for name in ids])
        gain = compare_auroc(scores, base, labels, ids, num_resamples=200).gain
        record[f"probe: {kind.replace('_', ' ')}"] = {
            "auroc": auroc(scores[labels], scores[~labels]),
            "gain": gain[0],
        }
        say(f"seed {seed} {kind}: {record[f'probe: {kind.replace(chr(95), chr(32))}']}")
    return record


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=600, help="texts of each data set")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--publish")
    given = parser.parse_args()
    if not (given.data / "text" / "movie_reviews.zip").is_file():
        raise DataError("the shared data are not there. Next: pass --data.", source=str(given.data))
    torch.set_num_threads(1)
    model = load_model(given.data / "models" / "stories260K")
    sets = {"reviews": movie_reviews, "subjectivity": subjectivity}
    values: dict[str, dict[str, list[float]]] = {}
    for name, read in sets.items():
        for seed in range(given.seeds):
            for title, record in measure(model, read(given.data / "text", given.num, seed), seed).items():
                row = values.setdefault(title, {})
                row.setdefault(name, []).append(record["auroc"])
                if "gain" in record:
                    row.setdefault(f"{name}_gain", []).append(record["gain"])
    rows = [
        {"title": title, "cells": {k: cell(v, digits=3) for k, v in row.items()}, "values": row}
        for title, row in values.items()
    ]
    for row in rows:
        print(row["title"], row["cells"])
    if given.publish:
        write_table(
            given.publish,
            title="The probe trainer on real labelled text",
            model="stories260K (260,032 parameters, children's stories)",
            command=f"python -m benchmarks.probes_text --seeds {given.seeds} --publish {given.publish}",
            columns=COLUMNS,
            rows=rows,
            notes=(
                f"AUROC on {given.num} texts of each set, 30 % held out, of reviews the first 900 characters; mean and 95 % t interval "
                f"over {given.seeds} seeds.",
            ),
        )


if __name__ == "__main__":
    main()
