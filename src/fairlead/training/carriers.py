"""Which data rows, and which tokens of them, carry an avoided clause: measured on the start model, before any training.

Two sources. *Evidence*: the rise of log p0(token) under what elicits the clause (`fairlead.training.evidence`), summed over the row. A row
carries the clause where its rise is at least a third of what the clause's own examples show (`TYPICAL`). Where several clauses are
avoided, every token counts for the one that explains it best: text in one manner is a little more likely under a request for
any other manner, too. Explain-away acts on rows by the same rule. Where there is no example to measure by, or too few to
keep some from an expert, a row carries the clause where its rise is positive. *Dictionary*: the
activation, at the response tokens, of the concepts that the plan avoids for this clause; a row carries it where its mean
activation exceeds what 95 % of neutral rows show.

The first asks what the start model would say if it were asked for the trait, the second what it sees in the text. Evidence needs
one forward pass over the data with it and one without, a dictionary one over the data and one over the neutral rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fairlead.core.errors import TrainingError
from fairlead.core.records import Clause, Concept
from fairlead.core.run import sha256_json
from fairlead.data import Encoded, Row, iter_batches
from fairlead.training.evidence import Evidence, row_sums, token_rises, typical_rise
from fairlead.training.evidence_search import find_evidence
from fairlead.training.setup import Setup

CarrierSource = Literal["evidence", "dictionary"]
TOKEN_NATS = 0.5  # rise of log p0 beyond which a token carries the clause; noise stays well below it
NUM_NEUTRAL_ROWS = 256
USUAL = 0.95  # share of neutral rows (tokens) that show no more than what is usual


class Carriers(NamedTuple):
    """Who carries a clause.

    Attributes:
        scores: Per data row, `[row]`: nats (evidence) or mean activation (dictionary).
        carries: Per data row, `[row]`.
        tokens: Per data row the scores of its response tokens, `[token]`: those that the student's loss sees, in order.
        usual: Token score that is not unusual; tokens of carrying rows above it carry the clause.
    """

    scores: Float[Tensor, " row"]
    carries: Bool[Tensor, " row"]
    tokens: list[Float[Tensor, " token"]]
    usual: float

    def carrying_tokens(self, threshold: float | None = None) -> list[Bool[Tensor, " token"]]:
        """Per data row, which of its response tokens carry the clause: in carrying rows, those that score above `threshold`."""
        limit = self.usual if threshold is None else threshold
        return [(scores > limit) & carries for scores, carries in zip(self.tokens, self.carries, strict=True)]


def find_carriers(setup: Setup, clause: Clause, *, source: CarrierSource = "evidence") -> Carriers:
    """The data rows and tokens that carry a clause.

    Raises:
        TrainingError: No evidence elicits the clause on this data, or the plan avoids no concept for it, or there is no dictionary.
    """
    if source == "dictionary":
        return carriers_by_dictionary(setup, clause)
    evidence = find_evidence(setup, clause)
    if evidence is None:
        raise TrainingError(
            f"no evidence elicits clause {clause.id} ('{clause.text}') on this data, so that nothing tells which rows carry it. "
            "Next: give the clause requests or examples of it, or use source='dictionary'."
        )
    return carriers_by_evidence(setup, clause, evidence)


def carriers_by_evidence(setup: Setup, clause: Clause, evidence: Evidence) -> Carriers:
    """Carriers by the rise of the start model's log-probabilities under evidence of the clause."""
    tokens = token_rises(setup, evidence)
    scores = row_sums(tokens)
    return Carriers(scores, rows_by_rise(setup, clause, evidence, scores), tokens, TOKEN_NATS)


def rows_by_rise(
    setup: Setup, clause: Clause, evidence: Evidence, rises: Float[Tensor, " row"] | None = None
) -> Bool[Tensor, " row"]:
    """Which data rows carry a clause; `rises` are their summed rises under its evidence, where known. Found once for a setup."""
    rivals = [
        (other, found)
        for other in setup.avoided()
        if other.id != clause.id and (found := find_evidence(setup, other)) is not None
    ]
    key = sha256_json([[one.id, found.identity()] for one, found in [(clause, evidence), *rivals]])
    if key not in setup.carrying:
        level = typical_rise(setup, clause, evidence)
        scores = _scores(setup, clause, evidence, rivals, rises)
        setup.carrying[key] = scores > 0 if level is None else scores >= level
    return setup.carrying[key]


def rows_with_any(setup: Setup, clauses: Sequence[Clause]) -> Bool[Tensor, " row"] | None:
    """Which data rows carry one of the clauses; None where no evidence tells for any."""
    known = [(clause, found) for clause in clauses if (found := find_evidence(setup, clause)) is not None]
    if not known:
        return None
    return torch.stack([rows_by_rise(setup, clause, evidence) for clause, evidence in known]).any(0)


def carry_any(setup: Setup, rows: Sequence[Row]) -> Bool[Tensor, " row"]:
    """Which of some rows (not the data's) carry an avoided clause: those clauses that evidence and examples tell by now."""
    probed = replace(setup, rows=list(rows), encoded=setup.encode(rows), rises={}, carrying={})
    known = [(clause, setup.evidence[clause.id]) for clause in setup.avoided() if clause.id in setup.evidence]
    found = torch.zeros(len(rows), dtype=torch.bool)
    for clause, evidence in known:
        level = typical_rise(probed, clause, evidence)
        if level is not None:
            rivals = [(other, theirs) for other, theirs in known if other.id != clause.id]
            found |= _scores(probed, clause, evidence, rivals) >= level
    return found


def _scores(
    setup: Setup,
    clause: Clause,
    evidence: Evidence,
    rivals: Sequence[tuple[Clause, Evidence]],
    rises: Float[Tensor, " row"] | None = None,
) -> Float[Tensor, " row"]:
    """Summed rises per row; where there are rivals, of the tokens that the clause explains best."""
    if rivals:
        mine = _known_rises(setup, clause, evidence)
        return contested_rises(mine, [_known_rises(setup, *rival) for rival in rivals])
    return row_sums(_known_rises(setup, clause, evidence)) if rises is None else rises


def contested_rises(
    mine: Sequence[Float[Tensor, " token"]], others: Sequence[Sequence[Float[Tensor, " token"]]]
) -> Float[Tensor, " row"]:
    """Summed rises per row where every token counts for the clause that explains it best; falls count for all."""
    sums = []
    for place, rises in enumerate(mine):
        best = torch.stack([other[place] for other in others]).amax(0)
        sums.append(torch.where(rises >= best, rises, rises.clamp(max=0)).sum())
    return torch.stack(sums)


def _known_rises(setup: Setup, clause: Clause, evidence: Evidence) -> list[Float[Tensor, " token"]]:
    key = sha256_json([clause.id, evidence.identity()])
    if key not in setup.rises:
        setup.rises[key] = token_rises(setup, evidence)
    return setup.rises[key]


def carriers_by_dictionary(setup: Setup, clause: Clause) -> Carriers:
    """Carriers by the activation of the concepts that the plan avoids for the clause.

    Raises:
        TrainingError: There is no dictionary, or the plan avoids no concept for the clause.
    """
    if setup.dictionary is None or setup.plan is None:
        raise TrainingError(
            "carriers by a dictionary need a plan that names one, and its folder. Next: use source='evidence'."
        )
    setup.dictionary.check(setup.model)
    avoided = {decision.concept for decision in setup.plan.avoided() if decision.clause == clause.id}
    concepts = [concept for concept in setup.plan.concepts if concept.id in avoided and concept.latents]
    if not concepts:
        raise TrainingError(
            f"the plan avoids no concept for clause {clause.id} ('{clause.text}'). Next: use source='evidence'."
        )
    neutral = setup.neutral_rows(NUM_NEUTRAL_ROWS)
    usual = activations_at_responses(setup, concepts, setup.encode(neutral))
    plain, _ = Evidence("none", "none").encode(setup, range(len(setup.rows)))  # no control's system prompt
    tokens = activations_at_responses(setup, concepts, plain)
    scores = torch.stack([acts.mean() for acts in tokens])
    row_limit = torch.stack([acts.mean() for acts in usual if len(acts)]).quantile(USUAL)
    token_limit = torch.cat(usual)[:1_000_000].quantile(USUAL)
    return Carriers(scores, scores > row_limit, tokens, float(token_limit))


@torch.no_grad()
def activations_at_responses(
    setup: Setup, concepts: list[Concept], encoded: list[Encoded]
) -> list[Float[Tensor, " token"]]:
    """Per row the summed activation of concepts at its response tokens, under the start model."""
    dictionary = setup.dictionary
    assert dictionary is not None
    latents = sorted({latent for concept in concepts for latent in concept.latents})
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    placed = [replace(item, index=place) for place, item in enumerate(encoded)]
    for batch in iter_batches(placed, batch_size=64, pad_id=setup.pad_id):
        hidden = setup.model.capture(batch, [dictionary.site])[str(dictionary.site)]
        acts = dictionary.encode_latents(hidden.float(), latents).sum(-1).cpu()
        for place, values, wanted in zip(batch.index.tolist(), acts, batch.loss_mask.cpu(), strict=True):
            found[place] = values[wanted].float()
    return found
