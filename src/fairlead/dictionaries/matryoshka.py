"""Matryoshka BatchTopK (Bussmann et al., arXiv 2503.17547): nested dictionaries in one, so that general latents stay general.

The latents are ordered; each prefix of them (`DictionaryConfig.prefixes`, shares of d_dict) has to reconstruct the activations by itself,
with the pairs that BatchTopK keeps over the whole dictionary. The loss is the mean of the prefixes' squared errors. A wide
dictionary otherwise splits and absorbs general concepts into special ones; the first prefix cannot afford that.
AuxK predicts the residual of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from fairlead.dictionaries.batch_topk import BatchTopK, Part, Reconstruction
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import register_kind
from fairlead.dictionaries.selection import where
from fairlead.dictionaries.sparse import Pairs, decode


class MatryoshkaBatchTopK(BatchTopK):
    """The `matryoshka` kind."""

    @override
    def reconstruct(
        self, pairs: Pairs, w_dec: Tensor, centred_ND: Tensor, config: DictionaryConfig
    ) -> Reconstruction:
        assert config.d_dict is not None
        ends = prefix_ends(config)
        shards, start = [], 0
        for end in ends:
            inside = where((pairs.latent >= start) & (pairs.latent < end))
            shards.append(
                (
                    Pairs(pairs.token[inside], pairs.latent[inside], pairs.value[inside], pairs.num_tokens),
                    start,
                    end,
                )
            )
            start = end
        error_ND, errors = -centred_ND, []
        for shard, _, _ in shards:
            error_ND = error_ND + decode(shard, w_dec)
            errors.append(error_ND)
        loss = torch.stack([error.square().mean() for error in errors]).mean()
        # a shard takes part in its own prefix and in all longer ones: their gradients add up from the last
        parts, out_ND = [], errors[-1].new_zeros(errors[-1].shape)
        scale = 2.0 / (max(1, out_ND.numel()) * len(ends))
        for (shard, start, end), error in zip(reversed(shards), reversed(errors), strict=True):
            out_ND = out_ND + error
            parts.append(Part(shard, out_ND, scale, start, end))
        return Reconstruction(loss, error_ND, tuple(reversed(parts)))


def prefix_ends(config: DictionaryConfig) -> list[int]:
    """Ends of the prefixes, ascending, the last at d_dict."""
    assert config.d_dict is not None
    return sorted({max(1, round(share * config.d_dict)) for share in (*config.prefixes, 1.0)})


register_kind("matryoshka", MatryoshkaBatchTopK())
