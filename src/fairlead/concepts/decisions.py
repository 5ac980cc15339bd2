"""Where a request changes what a model says, and through which latents: the contrast behind AutoSteer.

The same answers are read twice, once after a prompt with the request and once without. Tokens and positions of the answers are the same,
so that whatever differs is the request. Three places matter, and a mean over all tokens of the answers blurs them:

- the *start*: the prompt's last token, where the answer's first is decided;
- *decisions* later on: positions where the two next-token distributions part (symmetric Kullback-Leibler divergence), such as the end
  of a sentence after which emoji follow. They are told from other positions by gates, latents that act there, found greedily by the
  divergence they cover;
- the *prompt* itself, where latents read the request.

Differences of activations are kept for the latents in which they are largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fairlead.concepts.edits import At, Condition
from fairlead.data import Encoded, check_aligned, collate
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

MAX_DIVERGENCE = 6.0  # nats; one position counts no more than this
MIN_DIVERGENCE = 2.0  # nats; below it a position is no decision
MIN_MASS = 0.05  # a gate must cover this share of the divergence
_MIN_POSITIONS = 5
_CANDIDATES = 60
_QUANTILES = (0.0, 0.25, 0.5, 0.75)
_MAX_CELLS = 60_000_000  # activations kept of later positions


class Matched(NamedTuple):
    """Activations of the same answers with and without the request.

    Attributes:
        asked_prompt: `[text, d_dict]` strongest activation over the prompt's tokens, its last left out.
        plain_prompt: The same without the request.
        asked_start: `[text, d_dict]` at the prompt's last token.
        plain_start: The same without.
        asked_later: `[position, d_dict]` at the answers' tokens.
        plain_later: The same without.
        divergence: `[position]` nats, at most `MAX_DIVERGENCE`.
    """

    asked_prompt: Tensor
    plain_prompt: Tensor
    asked_start: Tensor
    plain_start: Tensor
    asked_later: Tensor
    plain_later: Tensor
    divergence: Tensor


class Part(NamedTuple):
    """One group of latents to edit at one kind of place, as a contrast found it.

    Attributes:
        name: "start", "later", "decision 1", ..., or "prompt".
        at: Where.
        latents: By size of the difference.
        weights: Mean activation with the request minus without.
        when: Gate, for decisions.
        share: Part of the later divergence that a decision's gate covers.
    """

    name: str
    at: At
    latents: tuple[int, ...]
    weights: tuple[float, ...]
    when: tuple[Condition, ...] = ()
    share: float = 0.0


class _Reading(NamedTuple):
    prompt: Tensor
    start: Tensor
    later: Tensor
    logprobs: Tensor


@torch.no_grad()
def read_matched(
    model: Model,
    dictionary: Dictionary,
    asked: Sequence[Encoded],
    plain: Sequence[Encoded],
    *,
    batch_size: int = 16,
) -> Matched:
    """Read the same answers under both prompts.

    Args:
        model: A causal model.
        dictionary: Of it.
        asked: Answers after prompts with the request.
        plain: The same answers, in the same order, after prompts without.
        batch_size: Texts at a time.

    Raises:
        DataError: An answer is not the same on both sides; names the row.
    """
    columns: list[list[Tensor]] = [[] for _ in Matched._fields]
    budget = _MAX_CELLS // dictionary.d_dict
    for start in range(0, len(asked), batch_size):
        sides = (asked[start : start + batch_size], plain[start : start + batch_size])
        for first, other in zip(*sides, strict=True):
            check_aligned(first, other)
        with_it, without = (_read(model, dictionary, side) for side in sides)
        gap = (with_it.logprobs - without.logprobs) * (with_it.logprobs.exp() - without.logprobs.exp())
        values = (
            *(with_it.prompt, without.prompt, with_it.start, without.start),
            *(with_it.later, without.later, gap.sum(-1).clamp(0.0, MAX_DIVERGENCE)),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value.float().cpu())
        if sum(len(part) for part in columns[-1]) > budget:
            break
    return Matched(*(torch.cat(column) for column in columns))


def find_parts(
    matched: Matched, *, turn_on: bool, num_latents: int = 64, num_gates: int = 3, num_prompt: int = 32
) -> list[Part]:
    """What to edit to make the model act as if asked (`turn_on`), or as if not.

    Args:
        matched: From `read_matched`.
        turn_on: The gates are latents of the run that will be steered: the one without the request, or the one with it.
        num_latents: Kept per part.
        num_gates: Decisions told apart at most.
        num_prompt: Latents of the request itself (used for turning off).

    Returns:
        The parts "start", "decision 1" to "decision N", "later" (all other tokens), and "prompt".
    """
    parts = [_part("start", "start", (matched.asked_start - matched.plain_start).mean(0), num_latents)]
    difference = matched.asked_later - matched.plain_later
    own = matched.plain_later if turn_on else matched.asked_later
    free = torch.ones(len(own), dtype=torch.bool)
    before: tuple[Condition, ...] = ()
    total = float(matched.divergence.sum())
    for number in range(1, num_gates + 1):
        gate = _find_gate(own, matched.divergence, free)
        if gate is None:
            break
        latent, threshold, chosen = gate
        share = float(matched.divergence[chosen].sum()) / max(total, 1e-12)
        if share < MIN_MASS:
            break
        weight = matched.divergence[chosen]
        mean = (weight[:, None] * difference[chosen]).sum(0) / weight.sum()
        condition = Condition(latents=(latent,), threshold=threshold, label=f"latent {latent}")
        parts.append(
            _part(f"decision {number}", "later", mean, num_latents, (condition, *before), share=share)
        )
        before = (*before, condition.model_copy(update={"above": False}))
        free &= ~chosen
    if len(difference):
        rest = difference[free] if bool(free.any()) else difference
        parts.append(_part("later", "later", rest.mean(0), num_latents, before))
    asked = (matched.asked_prompt.mean(0) - matched.plain_prompt.mean(0)).clamp_min(0.0)
    parts.append(_part("prompt", "prompt", asked, num_prompt))
    return [part for part in parts if part.latents]


def request_gate(matched: Matched, *, num: int = 4) -> tuple[Condition, float] | None:
    """The latents that tell whether a prompt holds the request, as a condition over the prompt.

    Latents are added in order of their mean difference over the spread, as long as the sum tells the two better.

    Returns:
        The condition and the share of prompts, of both kinds on average, that it sorts rightly; None where no latent helps.
    """
    asked, plain = matched.asked_prompt, matched.plain_prompt
    score = (asked.mean(0) - plain.mean(0)) / (asked.std(0) + plain.std(0)).clamp_min(1e-6)
    order = score.topk(min(4 * num, len(score))).indices
    order = [int(latent) for latent in order if score[latent] > 0]
    chosen: list[int] = []
    best, threshold = 0.5, 0.0
    for latent in order:
        if len(chosen) == num:
            break
        trial = [*chosen, latent]
        right, bound = _split(asked[:, trial].sum(1), plain[:, trial].sum(1))
        if right > best + 1e-6:
            chosen, best, threshold = trial, right, bound
    if not chosen:
        return None
    condition = Condition(
        latents=tuple(chosen), threshold=round(threshold, 4), over="prompt", label="the request"
    )
    return condition, best


def _split(positive: Tensor, negative: Tensor) -> tuple[float, float]:
    """Best balanced accuracy of a threshold and the threshold, midway in its gap."""
    values = torch.cat([positive, negative]).unique()
    if len(values) == 1:
        return 0.5, float(values[0])
    bounds = (values[1:] + values[:-1]) / 2
    right = ((positive[:, None] > bounds).float().mean(0) + (negative[:, None] <= bounds).float().mean(0)) / 2
    top = (right >= right.max() - 1e-9).nonzero()[:, 0].tolist()
    place = max(top, key=lambda at: float(values[at + 1] - values[at]))
    return float(right[place]), float(bounds[place])


def _find_gate(own: Tensor, divergence: Tensor, free: Tensor) -> tuple[int, float, Tensor] | None:
    """Latent and threshold whose positions hold the most divergence above `MIN_DIVERGENCE` each."""
    excess = (divergence - MIN_DIVERGENCE) * free
    on = (own > 0) & free[:, None]
    count = on.sum(0)
    worth = torch.where(count >= _MIN_POSITIONS, (on * divergence[:, None]).sum(0), torch.zeros(()))
    pure = torch.where(count >= _MIN_POSITIONS, (on * excess[:, None]).sum(0), torch.full((), -1e9))
    num = min(_CANDIDATES, own.shape[1])
    candidates = dict.fromkeys([*worth.topk(num).indices.tolist(), *pure.topk(num).indices.tolist()])
    best: tuple[float, int, float, Tensor] | None = None
    for latent in candidates:
        acts = own[:, latent]
        active = acts[on[:, latent]]
        if len(active) < _MIN_POSITIONS:
            continue
        for quantile in _QUANTILES:
            threshold = round(float(active.quantile(quantile)), 4) if quantile else 0.0
            chosen = free & (acts > threshold)
            gain = float(excess[chosen].sum())
            if int(chosen.sum()) >= _MIN_POSITIONS and gain > 0 and (best is None or gain > best[0]):
                best = (gain, latent, threshold, chosen)
    return None if best is None else (best[1], best[2], best[3])


def _part(
    name: str, at: At, mean: Tensor, num: int, when: tuple[Condition, ...] = (), *, share: float = 0.0
) -> Part:
    order = mean.abs().topk(min(num, len(mean))).indices.tolist()
    order = [latent for latent in order if abs(float(mean[latent])) > 1e-6]
    return Part(name, at, tuple(order), tuple(round(float(mean[f]), 4) for f in order), when, share)


def _read(model: Model, dictionary: Dictionary, texts: Sequence[Encoded]) -> _Reading:
    """Latents and next-token log-probabilities at the positions that predict the answers, text by text."""
    batch = collate(list(texts), pad_id=model.pad_id)
    hidden = model.capture(batch, [dictionary.site])[str(dictionary.site)]
    logprobs = model.forward(batch).float().log_softmax(-1)
    prompts, starts, later, said = [], [], [], []
    for row, text in enumerate(texts):
        first = int(text.loss_mask.index(True))
        places = [place - 1 for place, wanted in enumerate(text.loss_mask) if wanted and place > first]
        acts = dictionary.encode(hidden[row, : len(text)])
        before = acts[1 : max(first - 1, 1)]
        prompts.append(before.amax(0) if len(before) else torch.zeros_like(acts[0]))
        starts.append(acts[first - 1])
        later.append(acts[places])
        said.append(logprobs[row, places])
    return _Reading(torch.stack(prompts), torch.stack(starts), torch.cat(later), torch.cat(said))
