"""Which concepts caused an output: the output's log-probability, shared out to latents at the dictionary's site.

With h the value at the site, a_f the activations and d_f the decoder rows, F the log-probability (nats) of the chosen tokens:

- `gradient`: sum over tokens of a_f <dF/dh, d_f>: to first order what F loses when the latent's contribution is taken out;
- `integrated` (integrated gradients, arXiv 1703.01365): the gradient averaged over the straight path from h without any latent, that is
  b_dec and the reconstruction error, to h (Gauss-Legendre). The latents' parts add up to the difference of F between the two ends (`gap` is
  what the quadrature missed), and the error's part is F(b_dec + error) - F(b_dec), the `remainder`: all together F(h) - F(b_dec);
- `ablation`: F(h) - F(h without the concept), one pass per concept: the oracle, exact for one concept at a time but not additive.

The first token keeps its value throughout: dictionaries never see it. Of two answers, the difference is attributed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import ConfigError
from fairlead.core.records import Concept
from fairlead.data import Batch, Encoded
from fairlead.dictionaries import Dictionary
from fairlead.models import site_hook

if TYPE_CHECKING:
    from fairlead.models import Model

Method = Literal["gradient", "integrated", "ablation"]


class Cause(NamedTuple):
    """A concept's part in an output.

    Attributes:
        concept: The concept.
        value: Nats of log-probability that it adds (negative: that it costs).
        tokens: The same for each token of the text at which it acts (zeros for `ablation`, which takes all at once).
    """

    concept: Concept
    value: float
    tokens: tuple[float, ...]


class Attribution(NamedTuple):
    """An output shared out to concepts.

    Attributes:
        causes: Largest effect first, of either sign.
        output: Log-probability of the chosen tokens (or the difference of two answers), nats.
        baseline: The same at b_dec: nothing acts at the site, and no error (nan but for `integrated`).
        other: Part of latents that belong to none of the concepts.
        remainder: Part of what the dictionary does not reconstruct (for `gradient`, b_dec's included; nan for `ablation`).
        gap: Of `integrated`: output - baseline - all parts.
        method: How.
    """

    causes: list[Cause]
    output: float
    baseline: float
    other: float
    remainder: float
    gap: float
    method: str


def attribute(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    answer: Encoded,
    *,
    against: Encoded | None = None,
    tokens: Sequence[int] | None = None,
    method: Method = "integrated",
    steps: int = 16,
    batch_size: int = 16,
) -> Attribution:
    """Share out the log-probability of an answer to concepts.

    Args:
        model: A causal model.
        dictionary: Of it.
        concepts: Concepts of that dictionary; disjoint, or parts are counted more than once.
        answer: A text whose loss mask marks the answer.
        against: Another answer; the difference of the two log-probabilities is attributed.
        tokens: Positions in `answer.input_ids` of the predicted tokens that count; the whole answer where None.
        method: See the module.
        steps: Points on the path of `integrated`.
        batch_size: Passes at a time.

    Raises:
        DictionaryError: The dictionary was made for another model.
        ConfigError: A position that is no predicted token.
    """
    dictionary.check(model)
    first = _attribute(model, dictionary, concepts, answer, tokens, method, steps, batch_size)
    if against is None:
        return first
    second = _attribute(model, dictionary, concepts, against, None, method, steps, batch_size)
    values = {cause.concept.id: cause.value for cause in second.causes}
    causes = [one._replace(value=one.value - values[one.concept.id]) for one in first.causes]
    names = ("output", "baseline", "other", "remainder", "gap")
    rest = {name: getattr(first, name) - getattr(second, name) for name in names}
    return first._replace(causes=_sorted(causes), **rest)


def _attribute(
    model: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    answer: Encoded,
    tokens: Sequence[int] | None,
    method: Method,
    steps: int,
    batch_size: int,
) -> Attribution:
    target = _Target(model, dictionary, answer, tokens)
    if method == "ablation":
        return _ablation(target, dictionary, concepts, batch_size)
    nodes, weights = ([1.0], [1.0]) if method == "gradient" else _nodes(steps)
    hidden, bare = target.hidden, target.bare
    mean = torch.zeros_like(hidden)
    for start in range(0, len(nodes), batch_size):
        share = torch.tensor(nodes[start : start + batch_size], dtype=hidden.dtype, device=hidden.device)
        points = bare + share[:, None, None] * (hidden - bare)
        weight = torch.tensor(weights[start : start + batch_size], dtype=hidden.dtype, device=hidden.device)
        mean = mean + (weight[:, None, None] * target.gradient(points)).sum(0)
    acts = target.acts
    per_latent = acts * (mean.to(dictionary.decoder) @ dictionary.decoder.T)  # [seq, d_dict]
    causes, counted = [], 0.0
    for concept in concepts:
        each = per_latent[:, list(concept.latents)].sum(-1)
        causes.append(Cause(concept, float(each.sum()), tuple(each.tolist())))
        counted += float(each.sum())
    total = float(per_latent.sum())
    if method == "gradient":
        output, baseline, gap = float(target.value(hidden[None])[0]), float("nan"), float("nan")
        remainder = float((mean * bare)[1:].sum())
    else:
        output, without, baseline = target.value(torch.stack([hidden, bare, target.base])).tolist()
        remainder, gap = without - baseline, output - without - total
    return Attribution(_sorted(causes), output, baseline, total - counted, remainder, gap, method)


def _ablation(
    target: _Target, dictionary: Dictionary, concepts: Sequence[Concept], batch_size: int
) -> Attribution:
    output = float(target.value(target.hidden[None])[0])
    values: list[float] = []
    for start in range(0, len(concepts), batch_size):
        part = concepts[start : start + batch_size]
        points = [
            target.hidden
            - (target.acts[:, list(c.latents)] @ dictionary.decoder[list(c.latents)]).to(target.hidden)
            for c in part
        ]
        values += (output - target.value(torch.stack(points))).tolist()
    zeros = (0.0,) * len(target.hidden)
    causes = [Cause(concept, value, zeros) for concept, value in zip(concepts, values, strict=True)]
    nan = float("nan")
    return Attribution(_sorted(causes), output, nan, nan, nan, nan, "ablation")


class _Target:
    """The log-probability of chosen tokens of one text, as a function of the value at the site."""

    def __init__(
        self, model: Model, dictionary: Dictionary, answer: Encoded, tokens: Sequence[int] | None
    ) -> None:
        wanted = [place for place, predicted in enumerate(answer.loss_mask) if predicted]
        chosen = wanted if tokens is None else list(tokens)
        wrong = sorted(set(chosen) - set(wanted))
        if wrong or not chosen:
            raise ConfigError(
                f"tokens: {wrong[:3] or 'none'} are not predicted tokens of this answer, which has {wanted[:1]} to {wanted[-1:]}. Next: "
                "choose among these."
            )
        self.model, self.site = model, dictionary.site
        self.ids = torch.tensor([answer.input_ids])
        self.chosen = chosen
        batch = self._batch(1)
        with torch.no_grad():
            self.hidden = model.capture(batch, [self.site])[str(self.site)][0]
            self.acts = dictionary.encode(self.hidden)
        self.acts[0] = 0.0
        self.base = dictionary.weights["b_dec"].to(self.hidden).expand_as(self.hidden).clone()
        self.base[0] = self.hidden[0]
        self.bare = self.hidden - (self.acts @ dictionary.decoder).to(self.hidden)

    def _batch(self, num: int) -> Batch:
        ids = self.ids.expand(num, -1)
        ones = torch.ones_like(ids)
        return Batch(ids, ones, ones.bool(), torch.zeros(num, dtype=torch.long))

    def value(self, points: Tensor) -> Tensor:
        """`[point]` for values `[point, seq, d]` put in place of the site's."""
        with torch.no_grad():
            return self._run(points)

    def gradient(self, points: Tensor) -> Tensor:
        """Of each point's value with respect to it, `[point, seq, d]`."""
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._run(points).sum(), points)[0]

    def _run(self, points: Tensor) -> Tensor:
        with site_hook(self.model, self.site, lambda hidden: points):
            logits = self.model.forward(self._batch(len(points)))
        places = torch.tensor(self.chosen, device=logits.device)
        logprobs = logits[:, places - 1].float().log_softmax(-1)
        said = self.ids[0, self.chosen].to(logits.device)
        return logprobs.gather(-1, said.expand(len(points), -1)[..., None])[..., 0].sum(1)


def _nodes(steps: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre nodes and weights on 0 to 1."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


def _sorted(causes: list[Cause]) -> list[Cause]:
    return sorted(causes, key=lambda cause: -abs(cause.value))
