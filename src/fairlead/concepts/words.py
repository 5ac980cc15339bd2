"""Words of stretches of text, and which of them tell a concept's stretches from others.

The label of a concept without a language model has two parts: *context words*, which set the stretches that show it apart from a uniform
draw of all stretches (F-beta of "the stretch has the word", from smoothed rates, so that rare concepts, of which the corpus was searched
through, and common ones are treated alike), and *tokens it acts on*, the words that carry its activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from fairlead.concepts.corpus import read_stretch
from fairlead.concepts.labels import NUMBER, PLACE_SHARE, make_label, split_words
from fairlead.data import Encoded, token_text


class WordTable:
    """Words of stretches, read on demand and kept as numbers.

    Args:
        corpus: The texts.
        tokenizer: Of the model; its special tokens are no words.
        window: Tokens of a stretch.
    """

    def __init__(self, corpus: Sequence[Encoded], tokenizer: Any, window: int) -> None:
        self._corpus, self._tokenizer, self._window = corpus, tokenizer, window
        self._special = set(tokenizer.all_special_ids)
        self._pieces: dict[int, str] = {}
        self._number: dict[str, int] = {}
        self.names: list[str] = []  # the words, by number
        self._kept: dict[int, np.ndarray] = {}

    def piece(self, token: int) -> str:
        """A token as text; a space for special tokens."""
        if token not in self._pieces:
            self._pieces[token] = " " if token in self._special else token_text(self._tokenizer, token)
        return self._pieces[token]

    def split(self, ids: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
        """Words as numbers, with the places of their tokens, in order."""
        words = split_words(ids, [self.piece(token) for token in ids])
        return [(self._numbered(word), where) for word, where in words]

    def features(self, ids: Sequence[int]) -> list[tuple[str, str]]:
        """The word and the part of a word at each token; "" where there is none.

        A part is a token within a longer word, `ba-` at its start and `-olia` after it, or the digits of a number: what a latent acts on
        is often that and not the word.
        """
        found: list[tuple[str, str]] = [("", "") for _ in ids]
        for word, where in self.split(ids):
            name = self.names[word]
            for at in where:
                piece = self.piece(ids[at]).strip().casefold()
                part = piece if name == NUMBER else f"{piece}-" if at == min(where) else f"-{piece}"
                found[at] = (name, part if len(where) > 1 or name == NUMBER else "")
        return found

    def distinct(self, stretch: int) -> np.ndarray:
        """Distinct words and parts of words of a stretch, as numbers."""
        if stretch not in self._kept:
            ids = read_stretch(self._corpus, stretch, self._window).ids
            there = dict.fromkeys(name for pair in self.features(ids) for name in pair if name)
            self._kept[stretch] = np.unique([self._numbered(name) for name in there]).astype(int)
        return self._kept[stretch]

    def _numbered(self, name: str) -> int:
        if name not in self._number:
            self._number[name] = len(self.names)
            self.names.append(name)
        return self._number[name]

    def matrix(self, stretches: Sequence[int]) -> csr_array:
        """`[stretch, word]`: 1 where a stretch has a word."""
        rows = [self.distinct(int(stretch)) for stretch in stretches]
        column = np.concatenate([np.zeros(0, dtype=int), *rows])
        place = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return csr_array(
            (np.ones(len(column)), (place, column)), shape=(len(rows), max(len(self._number), 1))
        )


def word_scores(shown_EW: Any, other_EW: Any, prevalence: float, *, beta: float = 0.5) -> np.ndarray:
    """How well each word tells the stretches that show a concept: F-beta of "the stretch has the word", `[word]`.

    Args:
        shown_EW: Stretches that show the concept.
        other_EW: A draw of those that do not.
        prevalence: Share of all stretches that show it.
        beta: Weight of recall against precision.

    Returns:
        0 to 1; 0 for a word that does not beat the base rate. Rates are smoothed, so that a word of one stretch in few scores little.
    """
    num, rest = shown_EW.shape[0], other_EW.shape[0]
    width = max(shown_EW.shape[1], other_EW.shape[1])
    inside, outside = np.zeros(width), np.zeros(width)
    inside[: shown_EW.shape[1]] = np.asarray(shown_EW.sum(0)).ravel()
    outside[: other_EW.shape[1]] = np.asarray(other_EW.sum(0)).ravel()
    rate, false = inside / (num + 2.0), (outside + 0.5) / (rest + 1.0)
    hits, wrong, weight = prevalence * rate, (1 - prevalence) * false, beta * beta
    score = (1 + weight) * hits / np.maximum(weight * prevalence + hits + wrong, 1e-12)
    precision = hits / np.maximum(hits + wrong, 1e-12)
    return np.where((precision > prevalence) & (inside > 1), score, 0.0)


class WordLabel(NamedTuple):
    """A label made of words.

    Attributes:
        text: As shown.
        words: Context words with their F-score, best first; the first ones are in the label (`labelling`).
        acts_on: Words that carry the activation, with their share of it.
    """

    text: str
    words: tuple[tuple[str, float], ...]
    acts_on: tuple[tuple[str, float], ...]

    @property
    def keywords(self) -> dict[str, float]:
        """The words in the label itself, with their weight."""
        found = dict(labelling(self.words))
        for word, share in self.acts_on:
            found.setdefault(word, 0.5 * share)
        return found


NUM_WORDS = 4
NUM_ACTS_ON = 3


def acts_on(
    activation: dict[str, float], times: dict[str, int], part_of: dict[str, str]
) -> tuple[tuple[str, float], ...]:
    """The words, or parts of words, on which a concept acts: share of its activation, weighted by how reliably they carry it.

    Args:
        activation: Total activation on each word and on each part, over some stretches.
        times: How often each occurs there.
        part_of: For a part that occurs in one word only, that word (which then says more).
    """
    total = sum(value for name, value in activation.items() if not is_part(name))
    if total <= 0:
        return ()
    rate = {name: value / times[name] for name, value in activation.items()}
    top = max(rate.values())
    score = {
        name: activation[name] / total * (rate[name] / top) ** 0.5
        for name in activation
        if name not in part_of
        and activation[name] / total >= (0.15 if any(c.isalnum() for c in name) else 0.4)
    }
    best = sorted(score, key=lambda name: -score[name])
    return tuple((name, round(activation[name] / total, 4)) for name in best[:NUM_ACTS_ON])


def is_part(name: str) -> bool:
    """Whether a name is that of a part of a word (see `WordTable.features`)."""
    return (len(name) > 1 and (name[0] == "-") != (name[-1] == "-")) or name.isdigit()


def labelling(words: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The context words that make the label: the best, and at most three more that tell a quarter as well or better."""
    return [(word, score) for word, score in words[:NUM_WORDS] if score >= words[0][1] / 4]


def word_label(
    words: Sequence[tuple[str, float]], on: Sequence[tuple[str, float]], in_answers: float | None
) -> WordLabel:
    """Put a label together: context words, then what it acts on where that says more."""
    place = 0.5 if in_answers is None else in_answers
    text = make_label([word for word, _ in labelling(words)], place, num=NUM_WORDS)
    named = {word for word, _ in labelling(words)}
    new = [word for word, _ in on if word not in named]
    if new:
        base, where = text, ""
        if place >= PLACE_SHARE or place <= 1 - PLACE_SHARE:
            base, _, where = text.rpartition(" (")
            where = " (" + where
        text = f"{base}; on {', '.join(new)}{where}" if words else f"on {', '.join(new)}{where}"
    return WordLabel(text, tuple(words), tuple(on))
