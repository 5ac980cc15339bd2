"""BatchTopK sparse autoencoder (Bussmann et al., arXiv 2412.06410) with AuxK (Gao et al., arXiv 2406.04093).

Shape suffixes: N tokens, F latents, D d_model.

The batch keeps its N k largest positive pre-activations, so that easy tokens use fewer latents than hard ones. The loss is the
squared error per entry, plus `aux_weight` times the error of predicting the residual from the `k_aux` largest dead latents.
Gradients are written out by hand over the kept pairs (a test compares them with autograd): a dense backward would cost more
than the rest of the step together, and the dense pre-activations never exist (`selection`). The encoder lies in memory as one row a
latent, as the decoder does (`W_enc` is a transposed view of it), so that both get their gradient from the same products.

Departures from the papers: the pre-activations are rectified before the selection and AuxK uses the rectified pre-activations of
dead latents; decoder rows have unit norm and their gradient's parallel part is removed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import Params, StepResult, StepState, fold_scale, register_kind
from fairlead.dictionaries.selection import Encoder, batch_pairs, row_pairs, screening_dtype
from fairlead.dictionaries.sparse import Pairs, decode, gather_dot, smallest, transpose, transposed_product


def geometric_median(x_ND: Tensor, *, num_iterations: int = 30, tolerance: float = 1e-5) -> Tensor:
    """Weiszfeld's iteration for the point `[D]` with the least mean distance to the rows."""
    median = x_ND.mean(0)
    for _ in range(num_iterations):
        weight = 1.0 / (x_ND - median).norm(dim=-1).clamp_min(1e-6)
        following = (weight[:, None] * x_ND).sum(0) / weight.sum()
        moved = (following - median).norm()
        median = following
        if moved < tolerance * median.norm().clamp_min(1e-6):
            break
    return median


class Part(NamedTuple):
    """Pairs whose latents see the same error.

    Attributes:
        pairs: The pairs.
        out_ND: Gradient of the loss in the reconstruction that they take part in, up to `scale`.
        scale: What `out_ND` is to be multiplied with.
        start: First latent of the part.
        end: Latent after its last; the parts together hold every latent once, in order.
    """

    pairs: Pairs
    out_ND: Tensor
    scale: float
    start: int
    end: int


class Selected(NamedTuple):
    """The active pairs of a batch.

    Attributes:
        pairs: Sorted by token.
        least: What the inference threshold follows.
    """

    pairs: Pairs
    least: float | Tensor


class Reconstruction(NamedTuple):
    """What a batch's pairs reconstruct.

    Attributes:
        loss: Of the reconstruction.
        error_ND: Reconstruction by all pairs minus the centred activations.
        parts: The pairs by the error they see; the first part sees all of it.
    """

    loss: Tensor
    error_ND: Tensor
    parts: tuple[Part, ...]


class BatchTopK:
    """The `batch_topk` kind."""

    trains_together = True

    def select(self, encoder: Encoder, config: DictionaryConfig, state: StepState) -> Selected:
        """The batch's `N k` largest positive pre-activations; the inference threshold follows the smallest."""
        pairs = batch_pairs(encoder, encoder.centred_ND.shape[0] * config.k, together=state.together)
        return Selected(pairs, smallest(pairs.value))

    def reconstruct(
        self, pairs: Pairs, w_dec: Tensor, centred_ND: Tensor, config: DictionaryConfig
    ) -> Reconstruction:
        """Squared error per entry of the reconstruction, and its gradient."""
        error_ND = decode(pairs, w_dec).sub_(centred_ND)
        num = max(1, error_ND.numel())
        part = Part(pairs, error_ND, 2.0 / num, 0, w_dec.shape[0])
        return Reconstruction(sum_of_squares(error_ND) / num, error_ND, (part,))

    def start(self, x_ND: Tensor, config: DictionaryConfig, generator: torch.Generator) -> Params:
        """Random unit decoder rows, encoder = decoder transposed (times a number: `fit_start`), `b_dec` = geometric median."""
        assert config.d_dict is not None
        decoder = torch.randn(config.d_dict, x_ND.shape[1], generator=generator)
        decoder = decoder / decoder.norm(dim=-1, keepdim=True)
        params = {
            "W_enc": decoder.clone().T,
            "W_dec": decoder,
            "b_enc": torch.zeros(config.d_dict),
            "b_dec": geometric_median(x_ND.float().cpu()),
        }
        if config.fit_start:
            centred_ND = x_ND.float().cpu() - params["b_dec"]
            none_dead = torch.zeros(config.d_dict, dtype=torch.bool)
            encoder = Encoder(centred_ND, decoder, params["b_enc"])
            found_ND = decode(self.select(encoder, config, StepState(0.0, none_dead)).pairs, decoder)
            params["W_enc"] *= (found_ND * centred_ND).sum() / found_ND.square().sum().clamp_min(1e-12)
        return params

    def step(self, params: Params, x_ND: Tensor, config: DictionaryConfig, state: StepState) -> StepResult:
        """Loss and gradients of `mean((decode - x)^2) + aux_weight * mean((residual - decode_dead)^2)`."""
        assert config.d_dict is not None and config.k_aux is not None
        encoder = Encoder(
            x_ND - params["b_dec"],
            params["W_enc"].T.contiguous(),  # a view: see the head of the file
            params["b_enc"],
            screening_dtype(config.precision, x_ND.device),
        )
        centred_ND = encoder.centred_ND
        pairs, least = self.select(encoder, config, state)
        found = self.reconstruct(pairs, params["W_dec"], centred_ND, config)

        decoder_parts, encoder_parts, bias_parts, fired = [], [], [], []
        for part in found.parts:
            value_grad = gather_dot(part.pairs, part.out_ND, params["W_dec"]).mul_(part.scale)
            own = part.pairs._replace(latent=part.pairs.latent - part.start) if part.start else part.pairs
            layout = transpose(own, part.end - part.start)
            decoder_parts.append(transposed_product(layout, own.value * part.scale, part.out_ND))
            encoder_parts.append(transposed_product(layout, value_grad, centred_ND))
            bias_grad = value_grad.new_zeros(part.end - part.start)
            bias_parts.append(bias_grad.index_add_(0, own.latent, value_grad))
            fired.append(layout.start.diff() > 0)
        decoder_grad, encoder_grad, bias_grad = map(_joined, (decoder_parts, encoder_parts, bias_parts))
        whole = found.parts[0]
        grads = {
            "W_dec": decoder_grad,
            "W_enc": encoder_grad.T,
            "b_enc": bias_grad,
            "b_dec": whole.out_ND.sum(0) * whole.scale - bias_grad @ encoder.weight_FD,
        }
        aux = self._aux(params, encoder, found.error_ND, config, state.dead, grads)

        _drop_parallel(grads["W_dec"], params["W_dec"])
        return StepResult(
            loss=found.loss + aux,
            grads=grads,
            fired=_joined(fired),
            least=least,
            squared_error=sum_of_squares(found.error_ND),
            variance=sum_of_squares(centred_ND) - len(x_ND) * sum_of_squares(centred_ND.mean(0)),
            num_active=pairs.value.numel(),
        )

    def _aux(
        self,
        params: Params,
        encoder: Encoder,
        error_ND: Tensor,
        config: DictionaryConfig,
        dead: Tensor,
        grads: Params,
    ) -> Tensor | float:
        """Add AuxK's gradients to `grads` and return its weighted loss; the residual itself gets no gradient."""
        index = dead.nonzero().squeeze(-1)
        if config.aux_weight == 0.0 or index.numel() == 0:
            return 0.0
        assert config.k_aux is not None
        asleep = encoder.exact()._replace(weight_FD=encoder.weight_FD[index], bias_F=encoder.bias_F[index])
        if index.numel() > config.k_aux:
            kept = row_pairs(asleep, config.k_aux)
            acts = error_ND.new_zeros(error_ND.shape[0], index.numel())
            acts[kept.token, kept.latent] = kept.value
        else:
            acts = torch.addmm(asleep.bias_F, asleep.centred_ND, asleep.weight_FD.T).relu_()
        rows = params["W_dec"][index]
        miss_ND = torch.addmm(error_ND, acts, rows)  # predicted residual minus residual; residual = -error
        out_ND = miss_ND * (2.0 * config.aux_weight / max(1, miss_ND.numel()))
        acts_grad = (out_ND @ rows.T).mul_(acts > 0)
        bias_grad = acts_grad.sum(0)
        grads["W_dec"][index] += acts.T @ out_ND
        grads["W_enc"].T[index] += acts_grad.T @ encoder.centred_ND
        grads["b_enc"][index] += bias_grad
        grads["b_dec"] -= bias_grad @ asleep.weight_FD
        return config.aux_weight * miss_ND.square().mean()

    def constrain(self, params: Params) -> None:
        """Unit-norm decoder rows."""
        params["W_dec"] /= params["W_dec"].norm(dim=-1, keepdim=True).clamp_min(1e-8)

    def export(self, params: Params, threshold: float, scale: float) -> Params:
        """See `fold_scale`."""
        return fold_scale(params, threshold, scale)


def sum_of_squares(value: Tensor) -> Tensor:
    """Without a second array of the same size."""
    flat = value.reshape(-1)
    return flat @ flat


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _drop_parallel(grad_FD: Tensor, decoder_FD: Tensor) -> None:
    """Remove from each row of the gradient its part along the (unit) decoder row, in place."""
    grad_FD -= (grad_FD * decoder_FD).sum(-1, keepdim=True) * decoder_FD


register_kind("batch_topk", BatchTopK())
