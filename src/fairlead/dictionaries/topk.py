"""TopK sparse autoencoder (Gao et al., arXiv 2406.04093): every token keeps its own k largest positive pre-activations.

All else is as in BatchTopK. The exported threshold is the one that keeps k latents a token on average, so that the file
reads as the other kinds' do; a token at inference has about k active latents, not exactly k.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from fairlead.dictionaries.batch_topk import BatchTopK
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import StepState, register_kind
from fairlead.dictionaries.sparse import Pairs, batch_topk


class TopK(BatchTopK):
    """The `topk` kind."""

    @override
    def select(self, pre_NF: Tensor, config: DictionaryConfig, state: StepState) -> Pairs:
        value, latent = pre_NF.topk(config.k, dim=-1)
        token, rank = (value > 0).nonzero(as_tuple=True)
        return Pairs(token, latent[token, rank], value[token, rank], pre_NF.shape[0])

    @override
    def least(self, pairs: Pairs, pre_NF: Tensor) -> float:
        return super().least(batch_topk(pre_NF, pairs.value.numel()), pre_NF) if pairs.value.numel() else 0.0


register_kind("topk", TopK())
