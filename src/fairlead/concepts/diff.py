"""What changed between two models: concepts, read by one dictionary in both, and the difference amplified in the logits.

- *Texts*: the same texts go through both models; per concept the difference of its mean activation in a text, with a bootstrap interval
  over texts, a sign-flip permutation p-value (the null: a text's difference is as likely to have the other sign) and its correction for
  the number of concepts (Benjamini and Hochberg 1995).
- *Difference read through the dictionary*: the mean over tokens of `h_after - h_before` at the site, projected on every concept's unit
  direction. Encoding each model passes over what stays below a threshold in both; this does not, and it also sees what shrinks.
- *Own answers*: both models answer the same prompts; both sets of answers are read by the first model, so that the difference is in what
  is said, not in how it is represented.
- *Amplified* (METHODS, "Auditing"): answers with logits `after + alpha (after - before)`: behaviour that training made a little more
  likely becomes frequent. Answers and the concepts in them are given by alpha.

The dictionary is the first model's. What only one of them has, a dictionary trained on both can name: `exclusive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from fairlead.concepts.contrast import false_discovery, measure_texts
from fairlead.concepts.harvest import concept_directions
from fairlead.concepts.profiles import iter_hidden
from fairlead.core.errors import ConfigError, ModelError
from fairlead.core.records import Concept
from fairlead.core.stats import bootstrap
from fairlead.data import Encoded, Message, Row, encode
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

ALPHAS = (0.3, 1.0, 3.0, 10.0)


class Change(NamedTuple):
    """One concept, before and after. Lists are in the order of |effect| x sqrt(share of all change) x |log(after / before)|.

    Attributes:
        concept: The concept.
        before: Mean activation.
        after: The same.
        change: Mean over texts of after - before.
        low: Lower end of the 95 % bootstrap interval of `change`.
        high: Upper end.
        effect: `change` over the root mean square of a text's difference, -1 to 1 (0 where nothing differs).
        p: Sign-flip permutation p-value, two-sided.
        q: Corrected for the number of concepts.
    """

    concept: Concept
    before: float
    after: float
    change: float
    low: float
    high: float
    effect: float
    p: float
    q: float


class Along(NamedTuple):
    """How far the activations moved along one concept's direction. Lists are in the order of |along|.

    Attributes:
        concept: The concept.
        along: Mean over texts of the projection of `h_after - h_before`, in units of the activations.
        cosine: Of the mean difference and the direction.
        low: Lower end of the 95 % bootstrap interval of `along`.
        high: Upper end.
        p: Sign-flip permutation p-value, two-sided.
        q: Corrected for the number of concepts.
    """

    concept: Concept
    along: float
    cosine: float
    low: float
    high: float
    p: float
    q: float


class Moved(NamedTuple):
    """What the mean difference of activations looks like through the dictionary.

    Attributes:
        concepts: Furthest first.
        norm: Length of the mean difference.
        relative: That length over the first model's mean norm.
        chance: Cosine that 95 % of random directions stay below.
    """

    concepts: list[Along]
    norm: float
    relative: float
    chance: float


class Amplified(NamedTuple):
    """Answers at one amplification.

    Attributes:
        alpha: Factor.
        answers: To the prompts, in order.
        changes: Of concepts in these answers against the first model's own, read by the first model.
    """

    alpha: float
    answers: list[str]
    changes: list[Change]


def check_pair(before: Model, after: Model) -> None:
    """Confirm that two models can be compared: same width, same tokens.

    Raises:
        ModelError: They cannot.
    """
    if before.d_model != after.d_model or before.num_layers != after.num_layers:
        raise ModelError(
            f"{before.name} has {before.num_layers} layers of width {before.d_model}, {after.name} {after.num_layers} of {after.d_model}: "
            "only models of one architecture can be compared. Next: compare a model with one that was trained from it."
        )
    if before.tokenizer.get_vocab() != after.tokenizer.get_vocab():
        raise ModelError(
            f"{before.name} and {after.name} have different tokens. Next: compare models with one tokenizer."
        )


def diff_texts(
    before: Model,
    after: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    encoded: Sequence[Encoded],
    *,
    tokens: Literal["all", "answer"] = "all",
    num_permutations: int = 2000,
    seed: int = 0,
) -> list[Change]:
    """Concepts by how much the models differ on the same texts, largest effect first.

    Raises:
        ModelError: The models cannot be compared.
        DictionaryError: The dictionary is not the first model's.
        ConfigError: Fewer than 6 texts.
    """
    dictionary.check(before)
    check_pair(before, after)
    values = [measure_texts(model, dictionary, concepts, encoded, tokens=tokens) for model in (before, after)]
    return paired_changes(concepts, *values, num_permutations=num_permutations, seed=seed)


@torch.no_grad()
def diff_activations(
    before: Model,
    after: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    encoded: Sequence[Encoded],
    *,
    num_permutations: int = 2000,
    num_intervals: int = 50,
    batch_size: int = 64,
    seed: int = 0,
) -> Moved:
    """The mean of `h_after - h_before` on the same texts, read through the dictionary's decoder.

    A text counts once, by the mean over its tokens but the first.

    Raises:
        ModelError: The models cannot be compared.
        DictionaryError: The dictionary is not the first model's.
        ConfigError: Fewer than 6 texts.
    """
    dictionary.check(before)
    check_pair(before, after)
    _check_enough(len(encoded))
    moved_ED = torch.zeros(len(encoded), before.d_model, dtype=torch.float64)
    length = torch.zeros(len(encoded), dtype=torch.float64)
    site = str(dictionary.site)
    for batch, hidden, used, _ in iter_hidden(before, dictionary, encoded, batch_size=batch_size):
        mask = used.to(hidden.device)[..., None]
        num = mask.sum(1).clamp_min(1)
        other = after.capture(batch, [site])[site].to(hidden.device)
        moved_ED[batch.index] = (((other.float() - hidden.float()) * mask).sum(1) / num).double().cpu()
        length[batch.index] = (
            ((hidden.float().norm(dim=-1, keepdim=True) * mask).sum(1) / num)[:, 0].double().cpu()
        )
    rows_CD = concept_directions(dictionary.decoder.cpu(), [one.latents for one in concepts]).double()
    along = (moved_ED @ rows_CD.T).numpy()
    mean = moved_ED.mean(0)
    norm = float(mean.norm())
    p = _flipped(along, num_permutations, np.random.default_rng(seed))
    q = false_discovery(p)
    draws = torch.randn(4000, len(mean), generator=torch.Generator().manual_seed(seed)).double()
    chance = (draws @ mean).abs() / draws.norm(dim=1) / max(norm, 1e-12)
    found = []
    for rank, place in enumerate(np.argsort(-np.abs(along.mean(0)), kind="stable")):
        value = float(along[:, place].mean())
        ends = (float("nan"), float("nan"))
        if rank < num_intervals:
            interval = bootstrap(along[:, place], seed=seed)
            ends = (interval.low, interval.high)
        cosine = value / max(norm, 1e-12)
        found.append(Along(concepts[place], value, cosine, *ends, float(p[place]), float(q[place])))
    relative = norm / max(float(length.mean()), 1e-12)
    return Moved(found, norm, relative, float(chance.quantile(0.95)))


def diff_answers(
    before: Model,
    after: Model,
    dictionary: Dictionary,
    concepts: Sequence[Concept],
    prompts: Sequence[Any],
    *,
    alphas: Sequence[float] = (),
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    num_permutations: int = 2000,
    seed: int = 0,
) -> list[Amplified]:
    """Own answers of both models, and amplified ones, held against the first model's own.

    Args:
        before: The first model, which reads all answers.
        after: The second.
        dictionary: Of the first.
        concepts: Of that dictionary.
        prompts: Strings or message lists.
        alphas: Amplifications to sample besides the second model's own answers (alpha 0, which is always given first).
        max_new_tokens: Longest answer.
        temperature: Of sampling; 0 for the most probable answer.
        num_permutations: For p-values.
        seed: Of sampling and shuffles.

    Raises:
        ModelError: The models cannot be compared.
        DictionaryError: The dictionary is not the first model's.
    """
    dictionary.check(before)
    check_pair(before, after)
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    own = before.generate(prompts, **settings)
    base = measure_texts(before, dictionary, concepts, _texts(before, prompts, own), tokens="answer")
    found = []
    for alpha in (0.0, *alphas):
        answers = after.generate(prompts, against=(before, alpha) if alpha else None, **settings)
        values = measure_texts(
            before, dictionary, concepts, _texts(before, prompts, answers), tokens="answer"
        )
        changes = paired_changes(concepts, base, values, num_permutations=num_permutations, seed=seed)
        found.append(Amplified(alpha, answers, changes))
    return found


def paired_changes(
    concepts: Sequence[Concept],
    before: np.ndarray,
    after: np.ndarray,
    *,
    num_permutations: int = 2000,
    num_intervals: int = 50,
    seed: int = 0,
) -> list[Change]:
    """Changes from activations `[text, concept]` of the same texts; intervals for the first `num_intervals`."""
    _check_enough(len(before))
    difference = after - before
    spread = np.sqrt((difference**2).mean(0))
    mean = difference.mean(0)
    effect = np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 1e-12)
    rng = np.random.default_rng(seed)
    p = _flipped(difference, num_permutations, rng)
    q = false_discovery(p)
    floor = max(0.01 * float(before.mean()), 1e-12)
    ratio = np.log((after.mean(0) + floor) / (before.mean(0) + floor))
    share = np.sqrt(np.abs(mean) / max(np.abs(mean).sum(), 1e-12))
    strength = np.abs(effect) * share * np.abs(ratio)  # sure, large, and unlike before
    changes = []
    for rank, place in enumerate(np.argsort(-strength, kind="stable")):
        ends = (float("nan"), float("nan"))
        if rank < num_intervals:
            interval = bootstrap(difference[:, place], seed=seed)
            ends = (interval.low, interval.high)
        changes.append(
            Change(
                concepts[place],
                float(before[:, place].mean()),
                float(after[:, place].mean()),
                float(mean[place]),
                *ends,
                float(effect[place]),
                float(p[place]),
                float(q[place]),
            )
        )
    return changes


def _check_enough(num: int) -> None:
    if num < 6:
        raise ConfigError(f"{num} texts are too few to tell a change from chance. Next: pass 6 or more.")


def _flipped(difference_EC: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Sign-flip p-values `[concept]` of the mean of differences `[text, concept]`."""
    texts = len(difference_EC)
    hits = np.ones(difference_EC.shape[1])
    for start in range(0, num, 500):
        signs = rng.choice((-1.0, 1.0), size=(min(500, num - start), texts))
        hits += (np.abs(signs @ difference_EC) >= np.abs(difference_EC.sum(0)) - 1e-9 * texts).sum(0)
    return hits / (num + 1)


def _texts(model: Model, prompts: Sequence[Any], answers: Sequence[str]) -> list[Encoded]:
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        given = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        turns = [one if isinstance(one, Message) else Message(one["role"], one["content"]) for one in given]
        rows.append(Row(messages=(*turns, Message("assistant", answer.strip() or "."))))
    return encode(rows, model.tokenizer, max_length=model.max_length, on_long="truncate")
