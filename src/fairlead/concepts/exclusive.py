"""What only one of two models has: the exclusive latents of a crosscoder over both, tested by latent scaling.

Steps: 1. both models read the same texts; 2. latents whose decoder norm lies almost all on one model's side are candidates, those that
carry most there first; 3. latent scaling (`dictionaries.latent_scaling`, arXiv 2504.02922) says which of them are exclusive by the data and
which only look so; 4. each is shown by the tokens on which it acts most and its strongest texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fairlead.core.config import Record
from fairlead.core.errors import ConfigError
from fairlead.core.records import TokenContext
from fairlead.data import Encoded, token_text
from fairlead.dictionaries import Crosscoder, JointSource, Place, latent_scaling

if TYPE_CHECKING:
    from fairlead.models import Model

Side = Literal["before", "after"]
SIDES: tuple[Side, Side] = ("before", "after")
_TOKENS = 6


class ExclusiveLatent(Record):
    """A latent that looks as if one model alone had it.

    Attributes:
        latent: Of the crosscoder.
        side: The model that it seems to belong to.
        share: That model's share of the decoder's norm, .5 to 1.
        nu_error: Near 0: exclusive; near 1: the other model's error holds it too.
        nu_reconstruction: Near 0: exclusive; near 1: other latents carry it in the other model.
        exclusive: Whether both are small.
        num_active: Tokens on which it was active.
        tokens: On which it acts most in sum.
        contexts: Texts where it is strongest.
    """

    latent: int
    side: Side
    share: float
    nu_error: float
    nu_reconstruction: float
    exclusive: bool
    num_active: int
    tokens: tuple[str, ...]
    contexts: tuple[TokenContext, ...]


@torch.no_grad()
def exclusive_latents(
    crosscoder: Crosscoder,
    before: Model,
    after: Model,
    encoded: Sequence[Encoded],
    *,
    min_share: float = 0.6,
    num: int = 10,
    num_contexts: int = 3,
) -> list[ExclusiveLatent]:
    """Latents of each side (at most `num` each), exclusive ones first, then by how much they carry.

    Args:
        crosscoder: Over one site of both models, in this order.
        before: The first model.
        after: The second.
        encoded: Texts for both.
        min_share: Least share of the decoder's norm at one side to be a candidate; above .5. After fine-tuning few latents lie far off .5.
        num: Candidates a side.
        num_contexts: Texts shown of each.

    Raises:
        DictionaryError: The crosscoder is not over these two models.
        ConfigError: `min_share` or the texts are out of range.
    """
    if not 0.5 < min_share <= 1:
        raise ConfigError(f"min_share is {min_share}. Next: use a share above 0.5 and up to 1.")
    crosscoder.check_models([before, after])
    places = [Place(model, site) for model, site in zip((before, after), crosscoder.sites, strict=True)]
    source = JointSource(places, encoded)
    read = dict(
        source.iter_rows([row for row, length in enumerate(source.lengths) if length > 1], source.names)
    )
    if not read:
        raise ConfigError("no text has two tokens. Next: pass longer texts.")
    rows = sorted(read)
    acts = [torch.cat([read[row][name][1:] for row in rows]) for name in source.names]
    ids = torch.cat([torch.tensor(encoded[row].input_ids[1:]) for row in rows])
    codes = crosscoder.encode(crosscoder.join(acts))
    carried = codes.mean(0)[:, None] * crosscoder.norms()
    found = []
    for strong, side in enumerate(SIDES):
        fits = (crosscoder.relative_norms()[:, strong] >= min_share) & (codes > 0).any(0)
        latents = fits.nonzero()[:, 0]
        latents = latents[carried[latents, strong].argsort(descending=True)[:num]]
        if not len(latents):
            continue
        scaling = latent_scaling(crosscoder, acts, strong=strong, latents=latents)
        lines = [
            ExclusiveLatent(
                latent=latent,
                side=side,
                share=float(scaling.share[place]),
                nu_error=float(scaling.nu_error[place]),
                nu_reconstruction=float(scaling.nu_reconstruction[place]),
                exclusive=bool(scaling.exclusive()[place]),
                num_active=int(scaling.num_active[place]),
                tokens=_tokens(before, ids, codes[:, latent]),
                contexts=_contexts(before, encoded, rows, codes[:, latent], num_contexts),
            )
            for place, latent in enumerate(latents.tolist())
        ]
        found += sorted(lines, key=lambda line: not line.exclusive)
    return found


def _tokens(model: Model, ids: Tensor, acts: Tensor) -> tuple[str, ...]:
    kinds, place = ids.unique(return_inverse=True)
    total = torch.zeros(len(kinds)).index_add_(0, place, acts.cpu())
    best = total.argsort(descending=True)[:_TOKENS]
    return tuple(token_text(model.tokenizer, int(kinds[one])) for one in best if total[one] > 0)


def _contexts(
    model: Model, encoded: Sequence[Encoded], rows: Sequence[int], acts: Tensor, num: int
) -> tuple[TokenContext, ...]:
    parts = acts.split([len(encoded[row].input_ids) - 1 for row in rows])
    order = sorted(range(len(rows)), key=lambda place: -float(parts[place].max()))[:num]
    return tuple(
        TokenContext(
            tokens=tuple(token_text(model.tokenizer, token) for token in encoded[rows[place]].input_ids[1:]),
            scores=tuple(parts[place].tolist()),
            example=rows[place],
        )
        for place in order
        if float(parts[place].max()) > 0
    )
