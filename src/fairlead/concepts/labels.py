"""Labels without a language model: the tokens that set a concept's texts apart.

A text shows the concept when its mean activation there exceeds half of the 95th percentile over texts. Each token type gets the
log-odds of its frequency in those texts against the others, with an informative Dirichlet prior in proportion to the whole (Monroe,
Colaresi and Quinn 2008), as a z-score, so that neither very frequent nor very rare tokens lead. A concept that acts almost
only in responses or only in prompts says so in its label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fairlead.core.stats import auroc

PLACE_SHARE = 0.85


def shows_concept(activation_E: np.ndarray) -> np.ndarray:
    """`[text]` bool: texts with more than half of the 95th percentile of the concept's mean activation.

    For concepts in less than 5 % of texts the percentile is that of the texts in which it acts at all.
    """
    bound = float(np.quantile(activation_E, 0.95))
    if bound <= 0 and (activation_E > 0).any():
        bound = float(np.quantile(activation_E[activation_E > 0], 0.5))
    return activation_E > max(0.5 * bound, 1e-9)


def contrast_tokens(first_V: np.ndarray, second_V: np.ndarray, *, prior: float = 100.0) -> np.ndarray:
    """z-score of each token type's log-odds, texts with the concept against texts without.

    Args:
        first_V: Occurrences in texts that show the concept.
        second_V: Occurrences in the other texts.
        prior: Strength of the prior in tokens.

    Returns:
        `[V]`; 0 where a token does not occur in the first.
    """
    both = first_V + second_V
    if first_V.sum() <= 0 or second_V.sum() <= 0:
        return np.zeros(len(both))
    alpha = prior * both / both.sum() + 1e-9
    odds = [np.log((v + alpha) / (v.sum() + prior - v - alpha + 1e-9)) for v in (first_V, second_V)]
    variance = 1.0 / (first_V + alpha) + 1.0 / (second_V + alpha)
    return np.where(first_V > 0, (odds[0] - odds[1]) / np.sqrt(variance), 0.0)


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
