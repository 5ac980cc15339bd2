"""The placebo of a catalogue: a dictionary of random directions that fires as often as the real one.

Each latent reads and writes one random unit direction; its threshold is set so that it acts on as large a share of tokens as a latent
of the real dictionary does. Random directions of a residual stream are not meaningless (the tail of any direction is made of the few
kinds of token with large activations), so a label has to beat theirs, not chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from fairlead.concepts.profiles import iter_hidden
from fairlead.data import Encoded
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model


@torch.no_grad()
def random_dictionary(
    model: Model,
    dictionary: Dictionary,
    encoded: Sequence[Encoded],
    *,
    num_latents: int | None = None,
    max_tokens: int = 20_000,
    seed: int = 0,
) -> Dictionary:
    """A random-direction dictionary at the same site, matched in density.

    Args:
        model: The model.
        dictionary: The real one.
        encoded: Texts on which densities are matched.
        num_latents: Of the random one; as many as the real one has where None.
        max_tokens: Tokens used for matching.
        seed: Of the directions.
    """
    parts, held = [], 0
    for _, hidden, used, _ in iter_hidden(model, dictionary, encoded[: max(64, max_tokens // 8)]):
        parts.append(hidden[used.to(hidden.device)].float().cpu())
        held += parts[-1].shape[0]
        if held >= max_tokens:
            break
    acts = torch.cat(parts)[:max_tokens]
    density = torch.cat(
        [
            (dictionary.strengths(dictionary.encode(part)) > 0).float().sum(0)[None].cpu()
            for part in acts.split(2048)
        ]
    ).sum(0)
    density = density / len(acts)
    density = density[density > 0]
    num = num_latents or dictionary.d_dict
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, acts.shape[1], generator=generator)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    share = (
        density[torch.randint(len(density), (num,), generator=generator)]
        if len(density)
        else torch.full((num,), 0.01)
    )
    centre = acts.mean(0)
    along = (acts - centre) @ rows.T
    level = np.clip(1 - share.numpy(), 0.0, 1.0)
    threshold = np.array([np.quantile(along[:, i].numpy(), level[i]) for i in range(num)])
    weights = {
        "W_enc": rows.T.contiguous(),
        "W_dec": rows,
        "b_enc": torch.zeros(num),
        "b_dec": centre,
        "threshold": torch.from_numpy(threshold).float().clamp_min(0.0),
    }
    found = Dictionary(
        weights, site=dictionary.site, model_fingerprint=model.fingerprint, model_name=model.name
    )
    return found.to(dictionary.decoder.device)
