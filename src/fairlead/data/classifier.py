"""A text classifier fitted on a handful of examples: the text-only baseline and the checker of last resort.

TF-IDF over words (1- and 2-grams) and character n-grams (2 to 4, case kept, so that shouting and emoji count)
into a class-balanced logistic regression of scikit-learn. Its AUROC is cross-validated: the mean over folds
of repeated stratified k-fold, k the size of the smaller class up to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fairlead.core.errors import DataError
from fairlead.core.stats import auroc


@dataclass(frozen=True)
class TextClassifier:
    """A fitted classifier of answers.

    Attributes:
        auroc: Cross-validated area under the ROC curve; None with fewer than two texts on a side.
        num_positive: Texts that show the behaviour.
        num_negative: Texts that do not.
    """

    auroc: float | None
    num_positive: int
    num_negative: int
    _model: Any = field(repr=False)

    def __call__(self, text: str) -> float:
        """Probability (0 to 1) that the text shows the behaviour."""
        return self.scores([text])[0]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Probabilities of many texts."""
        if not texts:
            return []
        return [float(value) for value in self._model.predict_proba(list(texts))[:, 1]]


def fit_text_classifier(
    positives: Sequence[str], negatives: Sequence[str], *, seed: int = 0, num_repeats: int = 5
) -> TextClassifier:
    """Fit a classifier that tells `positives` from `negatives`.

    Args:
        positives: Texts that show the behaviour.
        negatives: Texts that do not (counterparts, plain answers).
        seed: Of the cross-validation.
        num_repeats: Repetitions of the k-fold.

    Raises:
        DataError: A side is empty, or no text has a letter or sign in it.
    """
    from sklearn.model_selection import RepeatedStratifiedKFold

    if not positives or not negatives:
        raise DataError(
            f"a text classifier needs texts of both kinds, there are {len(positives)} with and "
            f"{len(negatives)} without the behaviour. Next: add examples or 'instead' counterparts to the "
            "spec."
        )
    texts = np.array([*positives, *negatives], dtype=object)
    labels = np.array([1] * len(positives) + [0] * len(negatives))
    num_folds = min(5, len(positives), len(negatives))
    score = None
    if num_folds >= 2:
        folds = RepeatedStratifiedKFold(n_splits=num_folds, n_repeats=num_repeats, random_state=seed)
        found = []
        for train, test in folds.split(texts, labels):
            part = _fit(_pipeline, texts[train], labels[train]).predict_proba(texts[test])[:, 1]
            found.append(auroc(part[labels[test] == 1], part[labels[test] == 0]))
        score = float(np.nanmean(found))
    return TextClassifier(score, len(positives), len(negatives), _fit(_pipeline, texts, labels))


def _fit(make: Callable[[], Any], texts: np.ndarray, labels: np.ndarray) -> Any:
    model = make()
    try:
        model.fit(texts, labels)
    except ValueError as error:
        raise DataError(
            f"the text classifier cannot be fitted ({error}). Next: use longer examples."
        ) from error
    return model


def _pipeline() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    chars = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), lowercase=False, sublinear_tf=True)
    return make_pipeline(
        make_union(words, chars), LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    )
