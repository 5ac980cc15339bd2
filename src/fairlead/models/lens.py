"""The model's own reading of its last residual stream: final norm and unembedding, as a function of activations.

Nothing here runs the model: `Lens` turns activations captured after the last block into the next-token distribution that the model
itself forms of them. Which token stands at a position is read back from the `embed` site, so that surprisal needs no token ids.

Where a decoding loop has the logits of its own pass at hand, `confidence_of_passes` reads the same numbers from them: a second unembedding
would cost a fifth of a pass where the vocabulary is large.

Departure from the logit lens of earlier layers: only the last residual stream is read, where the reading is exact; the constructor
compares it with the model's own logits and refuses heads that do more (soft caps, scaled logits).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from fairlead.core.errors import ModelError
from fairlead.core.site import Site
from fairlead.models.families import backbone_of

if TYPE_CHECKING:
    from fairlead.models.model import Model

NORM_NAMES = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "ln_out", "final_norm")
CONFIDENCE = "confidence"  # key of `[batch, seq, 4]` confidence (the fields of `Confidence`) beside activations by site
_TOLERANCE = 1e-2  # nats, of log-probabilities in float32


class Confidence(NamedTuple):
    """How sure the model is, token by token, in nats; all `[batch, seq]`.

    Attributes:
        entropy: Of the next-token distribution at the position.
        top: Minus the log-probability of the most probable next token.
        gap: Log-probability of the most probable less that of the second.
        surprisal: Minus the log-probability of the token that stands there, given those before; 0 at position 0.
    """

    entropy: Tensor
    top: Tensor
    gap: Tensor
    surprisal: Tensor


class Lens:
    """Final norm and unembedding of a causal model.

    Attributes:
        site: Where activations are read: the residual stream after the last block.

    Raises:
        ModelError: The head is not a norm and an unembedding.
    """

    def __init__(self, model: Model) -> None:
        self.site = Site("resid_post", model.num_layers - 1)
        norm = _final_norm(model)
        head = model.hf.get_output_embeddings()
        if not model.is_causal or head is None or norm is None:
            raise ModelError(f"{model.name}: has no final norm and unembedding to read next tokens with.")
        self._norm: nn.Module = norm
        self._head: nn.Module = head
        self._frozen = [
            {name: p.detach() for name, p in module.named_parameters()} for module in (self._norm, self._head)
        ]
        table = model.hf.get_input_embeddings().weight.detach()  # type: ignore[union-attr]
        generator = torch.Generator().manual_seed(0)
        self._mark = torch.randn(table.shape[1], generator=generator, dtype=torch.float32).to(table.device)
        marks = table.float() @ self._mark
        self._sorted, self._ids = marks.sort()
        self._confirm(model)

    def logprobs(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... vocab"]:
        """Next-token log-probabilities at activations of `site`."""
        norm, head = self._frozen
        normed = functional_call(self._norm, norm, (hidden.to(next(iter(head.values()))),))
        return functional_call(self._head, head, (normed,)).float().log_softmax(-1)

    def tokens(self, embedded: Float[Tensor, "... d"]) -> Int[Tensor, "..."]:
        """Token ids of activations at `embed` (by a random projection, which sets all rows of the table apart)."""
        marks = embedded.detach().float() @ self._mark.to(embedded.device)
        table = self._sorted.to(marks.device)
        right = torch.searchsorted(table, marks.contiguous()).clamp(1, len(table) - 1)
        nearer = (marks - table[right - 1]).abs() < (table[right] - marks).abs()
        return self._ids.to(marks.device)[torch.where(nearer, right - 1, right)]

    def confidence(
        self, embedded: Float[Tensor, "batch seq d"], hidden: Float[Tensor, "batch seq d"]
    ) -> Confidence:
        """Confidence of the model from activations at `embed` and at `site`."""
        logprobs = self.logprobs(hidden)
        told = logprobs[:, :-1].gather(-1, self.tokens(embedded)[:, 1:, None])[..., 0]
        surprisal = torch.nn.functional.pad(-told, (1, 0))
        return Confidence(*_shape_of(logprobs), surprisal)

    @torch.no_grad()
    def _confirm(self, model: Model) -> None:
        num = min(32, self._ids.numel())
        ids = torch.linspace(0, self._ids.numel() - 1, num).long()[None]
        inputs = _Inputs(ids, torch.ones_like(ids))
        was_training = model.hf.training
        model.hf.eval()
        try:
            found = model.capture(inputs, ["embed", self.site], stop_early=False)
            wanted = model.forward(inputs).float().log_softmax(-1)
        finally:
            model.hf.train(was_training)
        error = float((self.logprobs(found[str(self.site)]) - wanted).abs().max())
        allowed = _TOLERANCE if model.dtype == torch.float32 else 0.3
        if error > allowed or not torch.equal(self.tokens(found["embed"]).cpu(), ids):
            raise ModelError(
                f"{model.name}: its logits are not final norm and unembedding alone (off by {error:.3g} nats), or its embeddings are "
                "changed before the first block. Next: read activations only (confidence=False)."
            )


def confidence_of_passes(
    logprobs: Float[Tensor, "pass row vocab"],
    before: Float[Tensor, "row vocab"] | None = None,
    tokens: Int[Tensor, "pass row"] | None = None,
) -> Float[Tensor, "pass row 4"]:
    """Confidence at the newest token of each row, from passes that have just read it, one after the other.

    Args:
        logprobs: That the passes gave; the second pass read tokens that were chosen from the first one's, and so on.
        before: Those from which the first pass's tokens were chosen; None gives surprisals of 0.
        tokens: The tokens that were read.
    """
    entropy, top, gap = _shape_of(logprobs)
    surprisal = torch.zeros_like(top)
    if before is not None and tokens is not None:
        surprisal[0] = -before.gather(-1, tokens[0, :, None])[:, 0]
        surprisal[1:] = -logprobs[:-1].gather(-1, tokens[1:, :, None])[..., 0]
    return torch.stack([entropy, top, gap, surprisal], dim=-1)


def _shape_of(logprobs: Float[Tensor, "... vocab"]) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, top and gap of next-token distributions."""
    best = logprobs.topk(2, dim=-1).values
    entropy = -(logprobs.softmax(-1) * logprobs).sum(-1)  # softmax is twice as fast as exp
    return entropy, -best[..., 0], best[..., 0] - best[..., 1]


class _Inputs(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor


def _final_norm(model: Model) -> nn.Module | None:
    backbone = backbone_of(model.hf)
    for holder in (backbone, getattr(backbone, "decoder", None)):
        for name in NORM_NAMES:
            found = getattr(holder, name, None)
            if isinstance(found, nn.Module):
                return found
    return None
