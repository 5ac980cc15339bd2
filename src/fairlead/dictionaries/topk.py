"""TopK sparse autoencoder (Gao et al., arXiv 2406.04093): every token keeps its own k largest positive pre-activations.

All else is as in BatchTopK. The exported threshold is the one that keeps k latents a token on average, so that the file
reads as the other kinds' do; a token at inference has about k active latents, not exactly k.
"""

from __future__ import annotations

from typing_extensions import override

from fairlead.dictionaries.batch_topk import BatchTopK, Selected
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import StepState, register_kind
from fairlead.dictionaries.selection import Encoder, row_pairs, sampled_cut

_CUT_TOKENS = 256


class TopK(BatchTopK):
    """The `topk` kind."""

    @override
    def select(self, encoder: Encoder, config: DictionaryConfig, state: StepState) -> Selected:
        """Every token's k largest; the threshold follows the cut that keeps as many pairs over (a part of) the batch."""
        pairs = row_pairs(encoder, config.k)
        per_token = pairs.value.numel() / max(1, pairs.num_tokens)
        return Selected(pairs, sampled_cut(encoder, per_token, num_tokens=_CUT_TOKENS))


register_kind("topk", TopK())
