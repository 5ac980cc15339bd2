"""From uptake to a menu: the ranked concepts of a data set.

Uptake says how strongly and in which direction the data pulls on a concept; it does not by itself say what is special about this data
(DESIGN 5.1: on addition answered in pirate speech the skill's latents take most of it, and a concept's signed parts cancel).
The order of the menu is therefore the *surprise* of a concept,

    surprise = sqrt(traffic) * log(presence / usual presence)

- traffic: the sum of |<dL/dh, d_f>| a_f over the concept's latents and all tokens, as a share of all traffic: how much of what gradient
  descent does goes through this concept, whatever its sign;
- presence: the concept's share of all activation on the data against that on the reference, over the whole text or over the
  responses, whichever ratio is larger: a skill shows in prompts and answers, a trait in answers only.

A concept that is everywhere (log 0) or that the gradient does not touch (traffic 0) is no news. Nor is one that comes along with
another: where companions are known (concepts/companions.py) the menu is made line by line, and what the lines above bring with them
counts as usual. The next line is, of the most surprising, the one with the largest surprise plus `EXPLAINS` times what it takes off
the others' surprise: a trait that brings a habit with it comes before the habit. For others a line counts at most as much as for
itself: a broad concept that is hardly news explains a little of everything. The square root (traffic times the squared log gives
the same order) was chosen on one early snapshot of the pocket model: with traffic itself, small changes of a broad concept came
before the skill where the trait takes most of the gradient. The form is empirical; benchmarks/menu_pairs.py measures it beside raw
uptake, excess over the reference and the bag of tokens. Uptake, share, interval and stability are reported for every line as DESIGN
defines them. References: `usual` (generic data; tells skill and trait) or `self` (the same prompts answered by the model itself;
tells traits, but is blind to a skill that both show). Without a reference lines are ordered by absolute uptake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fairlead.core.errors import ConfigError
from fairlead.core.records import Concept, Menu, MenuLine, TokenContext, TokenLine
from fairlead.gradients.uptake import Uptake

Ranking = Literal["surprise", "uptake", "excess"]
Companions = Callable[[int, np.ndarray], np.ndarray]
"""Of a concept and its presence `[2]` (whole texts, responses): the extra presence of all concepts that it explains, `[2, concept]`."""

EXPLAINS = 0.5  # what a line counts for in others' surprise; .4 to .7 give the same order on the pocket world
EXPLAINING_LINES = 60  # lines whose companions are taken off those below
CANDIDATES, LEAST = (
    12,
    0.25,
)  # of how many the next line is chosen, and their least part of the largest surprise
FLOOR = (
    3e-4  # added to shares of activation: a concept absent from the reference is not infinitely surprising
)


class Scores(NamedTuple):
    """Numbers of each concept, `[concept]` each.

    Attributes:
        uptake: Summed over the group.
        traffic: Share of all absolute contributions.
        ratio: Log of presence over usual presence, the larger of whole text and response; 0 without a reference.
        surprise: `sqrt(traffic) * ratio`.
        reference: Uptake on the reference; 0 without one.
        presence: `[2, concept]` share of all activation on the data, over whole texts and over responses.
        usual: The same on the reference; that of the data without one.
    """

    uptake: np.ndarray
    traffic: np.ndarray
    ratio: np.ndarray
    surprise: np.ndarray
    reference: np.ndarray
    presence: np.ndarray
    usual: np.ndarray


class Ranked(NamedTuple):
    """The order of a menu.

    Attributes:
        order: `[concept]` indices, best first.
        surprise: `[concept]` surprise of each concept, by its own index; with companions: given the lines above it.
    """

    order: np.ndarray
    surprise: np.ndarray


def score_concepts(uptake: Uptake, concepts: Sequence[Concept], reference: Uptake | None) -> Scores:
    """Uptake, traffic, presence and surprise of groups of latents."""

    def grouped(values_F: Tensor) -> np.ndarray:
        return np.array([float(values_F[list(concept.latents)].sum()) for concept in concepts])

    def share(values_F: Tensor) -> np.ndarray:
        return grouped(values_F / values_F.sum().clamp_min(1e-30))

    def presence(of: Uptake) -> np.ndarray:
        return np.stack([share(of.act_F), share(of.act_response_F)])

    traffic, present = share(uptake.mass_F), presence(uptake)
    if reference is None:
        zero = np.zeros(len(concepts))
        return Scores(grouped(uptake.per_latent), traffic, zero, zero, zero, present, present)
    if reference.sum_F.shape != uptake.sum_F.shape:
        raise ConfigError(
            "data and reference were measured with different dictionaries. Next: measure both with one."
        )
    usual = presence(reference)
    ratio = _ratio(present, usual)
    surprise = np.sqrt(traffic) * ratio
    usual_uptake = grouped(reference.per_latent)
    return Scores(grouped(uptake.per_latent), traffic, ratio, surprise, usual_uptake, present, usual)


def _ratio(presence: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Log of presence over usual presence, the larger of whole text and response."""
    return np.log((presence + FLOOR) / (usual + FLOOR)).max(0)


def rank(scores: Scores, ranking: Ranking = "surprise", *, companions: Companions | None = None) -> Ranked:
    """The order of the concepts, best first.

    Args:
        ranking: "surprise" (those that are no more present than usual come after, by absolute uptake, as do all lines without a
            reference), "uptake" (signed) or "excess" (uptake minus the reference's).
        companions: Which concepts come along with which; for "surprise": a line counts for what the lines above do not bring.
    """
    if ranking == "uptake":
        return Ranked(np.argsort(-scores.uptake, kind="stable"), scores.surprise)
    if ranking == "excess":
        return Ranked(np.argsort(-(scores.uptake - scores.reference), kind="stable"), scores.surprise)
    if ranking != "surprise":
        raise ConfigError(f"ranking is {ranking!r}; use 'surprise', 'uptake' or 'excess'.")
    lines, surprise = ([], scores.surprise) if companions is None else _line_by_line(scores, companions)
    rest = np.lexsort((-np.abs(scores.uptake), -np.maximum(surprise, 0.0)))
    order = np.array([*lines, *(place for place in rest.tolist() if place not in set(lines))], dtype=int)
    return Ranked(order, surprise)


def _line_by_line(scores: Scores, companions: Companions) -> tuple[list[int], np.ndarray]:
    """The first lines, and the surprise of every concept given the lines above it."""
    surprise, expected, lines = scores.surprise, scores.usual, []
    while len(lines) < min(EXPLAINING_LINES, len(surprise)):
        below = surprise.copy()
        below[lines] = -np.inf
        near = [place for place in np.argsort(-below)[:CANDIDATES] if below[place] >= LEAST * below.max()]
        if below.max() <= 0:
            break
        gains = []
        for line in near:
            left = _surprise(scores, _with_line(expected, line, scores, companions))
            taken = (surprise - left.clip(min=0)).clip(min=0)
            explained = EXPLAINS * taken[[other for other in near if other != line]].sum()
            gains.append(surprise[line] + min(explained, surprise[line]))
        lines.append(int(near[int(np.argmax(gains))]))
        expected = _with_line(expected, lines[-1], scores, companions)
        placed = np.isin(np.arange(len(surprise)), lines)
        surprise = np.where(placed, surprise, _surprise(scores, expected))
    return lines, surprise


def _with_line(expected: np.ndarray, line: int, scores: Scores, companions: Companions) -> np.ndarray:
    """What presence is expected, `[2, concept]`, once a line stands on the menu."""
    return np.maximum(expected, scores.usual + companions(line, scores.presence[:, line]))


def _surprise(scores: Scores, expected: np.ndarray) -> np.ndarray:
    return np.sqrt(scores.traffic) * _ratio(scores.presence, expected)


def build_menu(
    uptake: Uptake,
    concepts: Sequence[Concept],
    reference: Uptake | None,
    *,
    model: str = "",
    model_fingerprint: str = "",
    data: str = "",
    data_sha256: str = "",
    site: str = "",
    dictionary: str = "",
    dictionary_sha256: str = "",
    reference_name: str = "",
    baseline: Sequence[TokenLine] = (),
    notes: Sequence[str] = (),
    ranking: Ranking = "surprise",
    companions: Companions | None = None,
    max_lines: int = 60,
    contexts: Callable[[Concept, Sequence[int]], tuple[TokenContext, ...]] | None = None,
    num_contexts: int = 3,
    contexts_for: int = 12,
) -> Menu:
    """The menu of a data set.

    Args:
        uptake: `measure_uptake` on the data, best with the same `concepts`.
        concepts: Groups of latents, each latent in one group at most.
        reference: `measure_uptake` on the reference data, with the same dictionary.
        ranking: Order of the lines.
        companions: Which concepts come along with which, measured on other texts than the data (see `rank`).
        max_lines: Lines kept; shares refer to all concepts.
        contexts: Makes token contexts of examples for a concept (see `tokens.token_contexts`).
        num_contexts: Examples a line.
        contexts_for: Lines that get examples.
        model, model_fingerprint, data, data_sha256, site, dictionary, dictionary_sha256, reference_name, baseline, notes: Copied
            into the record.
    """
    if not concepts:
        raise ConfigError("a menu needs at least one concept. Next: build concepts first.")
    scores = score_concepts(uptake, concepts, reference)
    positive = float(scores.uptake[scores.uptake > 0].sum()) or 1.0
    lines = []
    ranked = rank(scores, ranking, companions=companions)
    for place, index in enumerate(ranked.order[:max_lines]):
        concept = concepts[index]
        low, high = torch.quantile(
            uptake.resampled(concept.latents), torch.tensor([0.025, 0.975], dtype=torch.float64)
        ).tolist()
        units = uptake.unit_index(concept.latents)
        examples: tuple[TokenContext, ...] = ()
        if contexts is not None and place < contexts_for:
            examples = contexts(
                concept, [row for row, _ in uptake.examples_of(concept.latents, num_contexts)]
            )
        lines.append(
            MenuLine(
                concept=concept,
                uptake=float(scores.uptake[index]),
                interval=(low, high),
                share=float(scores.uptake[index]) / positive,
                reference=float(scores.reference[index]),
                surprise=float(ranked.surprise[index]),
                stability=max(0.5, uptake.stability(concept.latents)),
                num_examples=int(uptake.carried_U[units].max()) if units else 0,
                fires=min(1.0, float(uptake.fires_U[units].max()) / max(uptake.num_examples, 1))
                if units
                else 0.0,
                top_examples=examples,
            )
        )
    return Menu(
        model=model,
        model_fingerprint=model_fingerprint,
        data=data,
        data_sha256=data_sha256,
        site=site,
        dictionary=dictionary,
        dictionary_sha256=dictionary_sha256,
        num_examples=uptake.num_examples,
        num_tokens=uptake.num_tokens,
        loss=uptake.loss,
        remainder=min(1.0, max(0.0, uptake.remainder)),
        remainder_chance=uptake.chance_remainder,
        lines=tuple(lines),
        baseline=tuple(baseline),
        reference=reference_name if reference is not None else "",
        notes=tuple(notes),
    )


def example_lines(
    uptake: Uptake, concepts: Sequence[Concept], menu: Menu, *, num: int
) -> list[dict[str, Any]]:
    """The strongest lines of the menu for each example (JSON records); uptake and loss per loss token of the example."""
    shown = {line.concept.id for line in menu.lines}
    records = []
    for place, index in enumerate(uptake.table_index.tolist()):
        tokens = max(float(uptake.example_tokens[place]), 1.0)
        lines = [
            {"concept": concepts[unit].id, "uptake": value / tokens}
            for unit, value in zip(
                uptake.table_unit[place].tolist(), uptake.table_value[place].tolist(), strict=True
            )
            if unit < len(concepts) and concepts[unit].id in shown
        ]
        records.append(
            {
                "example": index,
                "loss": float(uptake.example_loss[place]) / tokens,
                "lines": lines[:num],
            }
        )
    return records
