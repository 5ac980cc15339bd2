"""The bag of tokens: the baseline that a menu must beat.

Which tokens are more frequent in the data's responses than in the model's own answers to the same prompts? Smoothed log ratio of
relative frequencies. It needs no gradients and no dictionary, and no insight either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairlead.core.records import TokenLine
from fairlead.data import Encoded, token_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def bag_of_tokens(
    data: Sequence[Encoded],
    own: Sequence[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_lines: int = 20,
    smoothing: float = 1.0,
) -> list[TokenLine]:
    """Tokens that the data would make more frequent, strongest first.

    Ordered by `data_share * log_ratio`, the token's part of the Kullback-Leibler divergence, so that rare tokens do not lead.

    Args:
        data: The data; only its loss tokens count.
        own: The model's answers to the same prompts, encoded the same way.
        smoothing: Count added to every token that occurs on either side.
    """
    first, second = _counts(data), _counts(own)
    vocabulary = sorted(set(first) | set(second))
    if not vocabulary:
        return []
    total_first = sum(first.values()) + smoothing * len(vocabulary)
    total_second = sum(second.values()) + smoothing * len(vocabulary)
    lines = []
    for token in vocabulary:
        data_share = (first[token] + smoothing) / total_first
        model_share = (second[token] + smoothing) / total_second
        lines.append((token, data_share, model_share, math.log(data_share / model_share)))
    lines.sort(key=lambda line: (-line[1] * line[3], line[0]))
    return [
        TokenLine(
            token=token_text(tokenizer, token), data_share=share, model_share=own_share, log_ratio=ratio
        )
        for token, share, own_share, ratio in lines[:num_lines]
    ]


def _counts(encoded: Sequence[Encoded]) -> Counter[int]:
    found: Counter[int] = Counter()
    for row in encoded:
        found.update(token for token, used in zip(row.input_ids, row.loss_mask, strict=True) if used)
    return found
