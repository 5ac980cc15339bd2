"""What a concept does to the next token directly: its direction through the final norm and the unembedding.

Logit attribution (the logit lens on decoder rows, as in Bricken et al. 2023, "Towards monosemanticity"): the concept's unit direction is
added to hidden states at the end of the last block, and the change of the final norm's output, averaged over them, is multiplied with
the unembedding. The norm is differentiated by a small step at real hidden states instead of being replaced by its weights, so that any
norm will do. It leaves out what later layers make of the concept: measured effects are a matter of steering.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fairlead.concepts.entries import TokenEffect
from fairlead.core.site import Site
from fairlead.data import token_text

if TYPE_CHECKING:
    from fairlead.data import Batch
    from fairlead.models import Model

_WRITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "embed")
_STEP = 0.01  # of the hidden states' norm
_ROWS = 64


@torch.no_grad()
def logit_effects(
    model: Model, directions: Tensor, site: Site | str, batch: Batch, *, num: int = 8
) -> list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]]:
    """Tokens that each direction promotes and suppresses, strongest first, in standard deviations over the vocabulary.

    Args:
        model: The model.
        directions: `[concept, d_model]`, unit rows.
        site: Where the directions live; only sites that write to the residual stream have a direct effect on the logits.
        batch: Texts whose last hidden states the norm is differentiated at.
        num: Tokens kept on each side.

    Returns:
        Per direction (promoted, suppressed); empty where the site or the model (no unembedding) has none.
    """
    head = model.hf.get_output_embeddings()
    nothing: list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]] = [((), ())] * directions.shape[0]
    if head is None or Site.parse(site).kind not in _WRITES or directions.shape[1] != model.d_model:
        return nothing
    last = Site("resid_post", model.num_layers - 1)
    hidden = model.capture(batch, [last])[str(last)][batch.attention_mask.bool()]
    hidden = hidden[torch.linspace(0, hidden.shape[0] - 1, min(_ROWS, hidden.shape[0])).long()]
    norm = final_norm(model)
    step = _STEP * hidden.norm(dim=-1, keepdim=True)
    texts: dict[int, str] = {}

    def shown(values: Tensor, tokens: Tensor) -> tuple[TokenEffect, ...]:
        found = []
        for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
            texts.setdefault(token, token_text(model.tokenizer, token))
            found.append(TokenEffect(token=texts[token], value=round(value, 3)))
        return tuple(found)

    special = [token for token in model.tokenizer.all_special_ids if token < head.weight.shape[0]]
    effects = []
    for direction in directions.to(hidden):
        change = ((norm(hidden + step * direction) - norm(hidden - step * direction)) / (2 * step)).mean(0)
        logits = (head.weight @ change.to(head.weight)).float()
        logits = (logits - logits.mean()) / logits.std().clamp_min(1e-12)
        logits[special] = 0.0
        up, down = logits.topk(min(num, len(logits))), logits.topk(min(num, len(logits)), largest=False)
        effects.append((shown(up.values, up.indices), shown(down.values, down.indices)))
    return effects


def final_norm(model: Model) -> nn.Module:
    """The norm between the last block and the unembedding; the identity where there is none."""
    blocks = model.resolved.blocks
    for module in model.hf.modules():
        children = list(module.children())
        if any(child is blocks for child in children):
            after = children[children.index(blocks) + 1 :]
            for child in after:
                if "norm" in type(child).__name__.lower():
                    return child
    return nn.Identity()
