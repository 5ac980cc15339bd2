"""Labels without a language model: the words that set a concept's texts apart.

A text shows the concept when its mean activation there exceeds half of the 95th percentile over texts. Words are ranked
by how well "the text has this word" detects such texts (F-beta that favours precision): a word that only these texts have beats
one that all texts have. Tokens are put together to words first, and all numbers count as one word. A concept that acts almost
only in responses or only in prompts says so in its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from fairlead.core.stats import auroc

PLACE_SHARE = 0.85
NUMBER = "number"


def shows_concept(activation_E: np.ndarray) -> np.ndarray:
    """`[text]` bool: texts with more than half of the 95th percentile of the concept's mean activation.

    For concepts in less than 5 % of texts the percentile is that of the texts in which it acts at all.
    """
    bound = float(np.quantile(activation_E, 0.95))
    if bound <= 0 and (activation_E > 0).any():
        bound = float(np.quantile(activation_E[activation_E > 0], 0.5))
    return activation_E > max(0.5 * bound, 1e-9)


def split_words(ids: Sequence[int], pieces: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Words of a text with their places: tokens are joined where neither a space nor another class of character parts them.

    Args:
        ids: Token ids (only their number matters).
        pieces: The tokens as text; a leading space begins a word.

    Returns:
        Words without spaces, lower case, in order; a number of whatever value is `NUMBER`.
    """
    words: list[tuple[str, tuple[int, ...]]] = []
    text, places = "", []
    for place, piece in enumerate(pieces[: len(ids)]):
        bare = piece.strip()
        joins = bool(text) and bool(bare) and piece[:1] == bare[:1] and _class(text[-1]) == _class(bare[0])
        if text and not joins:
            words.append((text, tuple(places)))
            text, places = "", []
        if bare:
            text, places = text + bare, [*places, place]
        if text and piece[-1:].isspace():
            words.append((text, tuple(places)))
            text, places = "", []
    if text:
        words.append((text, tuple(places)))
    return [(NUMBER if word.isdigit() else word.casefold(), where) for word, where in words]


def stem(word: str) -> str:
    """A word without its English endings, so that 'flattering' and 'flatter' meet; short words stay as they are."""
    for ending in ("ingly", "ation", "ings", "ing", "edly", "ed", "ies", "es", "ery", "ly", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _class(character: str) -> str:
    if character.isdigit():
        return "digit"
    return "letter" if character.isalpha() or character == "'" else "sign"


def detect_words(counts_EV: csr_array, shows_E: np.ndarray, *, beta: float = 0.5) -> np.ndarray:
    """How well each word tells which texts show the concept: F-beta of "the text has the word".

    A beta below one asks for precision: a word that only these texts have beats one that all texts have.

    Args:
        counts_EV: Occurrences `[text, word]`.
        shows_E: Texts that show the concept.
        beta: Weight of recall against precision.

    Returns:
        `[word]` from 0 to 1; 0 where no text shows the concept. A word that does not beat the base rate gets 0.
    """
    has: Any = (counts_EV > 0).astype(np.float64)  # scipy types a comparison as bool
    num_texts, num_shown = has.shape[0], float(shows_E.sum())
    both = np.asarray(has.T @ shows_E.astype(np.float64)).ravel()
    total = np.asarray(has.sum(0)).ravel()
    if num_shown == 0:
        return np.zeros(has.shape[1])
    precision = both / np.maximum(total, 1.0)
    weight = beta * beta
    score = (1 + weight) * both / np.maximum(weight * num_shown + total, 1.0)
    return np.where(precision > num_shown / num_texts, score, 0.0)


def make_label(tokens: Sequence[str], response_share: float, *, num: int = 4) -> str:
    """A short label of the strongest distinct words; single characters only where there is nothing else."""
    seen: list[str] = []
    for wordy in (True, False):
        for token in tokens:
            word = token.strip()
            if not word or (len(word) > 1 and any(character.isalnum() for character in word)) is not wordy:
                continue
            if word.casefold() not in {other.casefold() for other in seen}:
                seen.append(word)
        if seen:
            break
    text = ", ".join(seen[:num]) or "(no token stands out)"
    if response_share >= PLACE_SHARE:
        return f"{text} (in answers)"
    return f"{text} (in prompts)" if response_share <= 1 - PLACE_SHARE else text


def score_label(
    ids: Sequence[Sequence[int]], activation_E: np.ndarray, chosen: Sequence[int]
) -> float | None:
    """How well the label's tokens tell on held-out texts where the concept acts: AUROC of their share in the text.

    Args:
        ids: Token ids of each text.
        activation_E: The concept's mean activation in each text.
        chosen: Token types of the label.

    Returns:
        None where all or no texts are positive.
    """
    positive = shows_concept(activation_E)
    if positive.all() or not positive.any():
        return None
    wanted = set(chosen)
    share = np.array([sum(token in wanted for token in row) / max(len(row), 1) for row in ids])
    return auroc(share[positive], share[~positive])
