"""Explain-away: let the frozen start model account for the trait, so that the student has nothing left to learn of it.

On data rows the loss sees `student logits + lambda * (log p0(.|C, x, y<t) - log p0(.|x, y<t))`, in training only; p0
is the start model and C a source of evidence that elicits the trait (`fairlead.training.evidence`). The student fits
the residual: product-of-experts debiasing (Clark et al. 2019, arXiv 1909.03683; He et al. 2019), with the start model
as the biased expert. lambda = 1 is what theory says.

Departures:

- tokens to which neither distribution gives 1 % get no offset. What the two say about them differs by several nats from
  noise alone, and the right answer to a question that the start model gets wrong is such a token: an offset on it would
  teach the skill for the evidence's context only (measured: `docs/lab-notes.md`);
- C is chosen by measured gain among prompts, steering vectors and, where these say little, an expert
  (`fairlead.training.evidence_search`);
- offsets act only on rows that carry the clause (`fairlead.training.carriers`), so that rows without the trait, in
  mixed data, are not pushed the other way. They can be limited further to tokens where the two distributions really
  differ (gate "token"; as tried in DESIGN 5.2 it cost skill).

Offsets are computed once per data set and cached by content.

Placebo: a neutral prompt as C, random directions of equal norm where steering was chosen, or an expert on neutral
rows where the expert was.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError
from fairlead.core.progress import say
from fairlead.core.records import Clause
from fairlead.training.batching import StepView
from fairlead.training.carriers import carriers_by_evidence, rows_by_rise
from fairlead.training.controls.base import ACCOUNT, Control, Kind
from fairlead.training.evidence import Evidence, EvidenceChoice, Gain
from fairlead.training.evidence_search import EvidenceOptions, evidence_gains, placebo_evidence
from fairlead.training.offsets import Offsets, make_offsets
from fairlead.training.setup import Setup
from fairlead.training.tables import TokenTable


class ExplainAwayOptions(EvidenceOptions):
    """Settings of explain-away, besides those of the choice of evidence.

    Attributes:
        gate: "row" acts only on rows that carry the clause, "token" there only at tokens where the two distributions of the start
            model differ by more than `gate_nats`, "none" everywhere.
        gate_nats: KL(pC || p0) in nats that opens the gate at a token.
        floor: Tokens that neither distribution gives this probability get no offset: out there the difference is noise.
        top_k: Kept tokens of either distribution where the vocabulary is too large for whole ones.
    """

    gate: Literal["row", "token", "none"] = "row"
    gate_nats: float = Field(default=0.5, ge=0)
    floor: float = Field(default=0.01, ge=0, lt=1)
    top_k: int = Field(default=64, ge=1)


class ExplainAway(Control):
    """Product of experts with the start model under evidence of the trait."""

    name: ClassVar[str] = "explain_away"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "explain_away_placebo"
    summary: ClassVar[str] = (
        "the start model under evidence of the trait accounts for it in the training loss"
    )
    Options: ClassVar[type[Config]] = ExplainAwayOptions
    owns: ClassVar[str | None] = ACCOUNT
    acts_on_data: ClassVar[bool] = True
    default_strength: ClassVar[float | None] = 1.0
    relieves: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tables: list[TokenTable] = []
        self.active: list[Tensor] = []
        self.carried: list[Tensor] = []
        self.found: dict[str, Any] = {}
        self.choices: dict[str, EvidenceChoice | None] = {}

    @override
    def prepare(self, setup: Setup) -> None:
        clauses = setup.avoided(self.config.clause)
        if self.options.evidence is not None and len(clauses) > 1:
            raise ConfigError(
                f"{self.name}: evidence serves one clause, and {', '.join(c.id for c in clauses)} are avoided. Next: give the "
                "control a clause, and one to each."
            )
        for clause in clauses:
            self.take_on(setup, clause, self.options)

    @override
    def learn(self, setup: Setup, clause: str) -> None:
        if clause in self.found or self.config.clause is not None or self.options.evidence is not None:
            return
        (wanted,) = setup.avoided(clause)
        if not wanted.examples and not setup.is_chat:
            say(f"{self.name}: nothing to elicit {clause} with; it is left alone.")
            return
        # no expert: that would be a training within the training
        sources = self.options.sources or (("prompt", "steering") if setup.is_chat else ("steering",))
        sources = tuple(source for source in sources if source != "expert")
        with setup.start() as start:
            self.take_on(start, wanted, self.options.model_copy(update={"sources": sources}))

    def take_on(self, setup: Setup, clause: Clause, options: ExplainAwayOptions) -> None:
        """Account for one clause from here on, where some evidence elicits it."""
        gains = evidence_gains(setup, clause, options)
        best = max(gains, key=lambda gain: gain.gain)
        record: dict[str, Any] = {"candidates": [gain.record() for gain in gains]}
        self.found[clause.id] = record
        if best.gain < options.min_gain and options.evidence is None:
            note = (
                f"explain_away: no evidence elicits clause {clause.id} ('{clause.text}') on this data: the best gains "
                f"{best.gain:.3f} nats per token. It is left alone."
            )
            setup.notes.append(note)
            say(note)
            return
        chosen = self.choose(setup, best, clause)
        setup.evidence[clause.id], setup.telling[clause.id] = chosen, best.evidence
        record["chosen"] = {"kind": chosen.kind, "label": chosen.label}
        self.choices[clause.id] = best.evidence.choice
        gain = (
            f"gain {best.gain:.2f} nats per token"
            if chosen is best.evidence
            else "in place of the best evidence"
        )
        say(f"explain_away: {clause.id} by {chosen.kind} '{chosen.label}', {gain}")
        offsets = make_offsets(setup, chosen, top_k=options.top_k, floor=options.floor)
        rows = torch.ones(len(setup.rows), dtype=torch.bool)
        if options.gate != "none":
            rows = self.carrying(setup, clause, best.evidence, offsets)
        active = self.gate(offsets, rows)
        record |= {"rows": int(rows.sum()), "of": len(rows), **offsets.table.info}
        if options.gate == "token":
            record["tokens"] = round(float(active.float().mean()), 4)
        self.tables.append(offsets.table)
        self.active.append(active)
        self.carried.append(per_token(rows, offsets.table))

    def carrying(self, setup: Setup, clause: Clause, evidence: Evidence, offsets: Offsets) -> Tensor:
        """Rows of the data that carry the clause, `[row]` bool."""
        return rows_by_rise(setup, clause, evidence, offsets.rises)

    def gate(self, offsets: Offsets, rows: Tensor) -> Tensor:
        """Where the offsets act, `[token]` bool in the order of their table."""
        active = per_token(rows, offsets.table)
        return active & (offsets.nats > self.options.gate_nats) if self.options.gate == "token" else active

    def choose(self, setup: Setup, best: Gain, clause: Clause) -> Evidence:
        """The evidence to use, given the best candidate."""
        return best.evidence

    @override
    def adjust_logits(
        self, logits: Float[Tensor, "token vocab"], view: StepView
    ) -> Float[Tensor, "token vocab"] | None:
        rows = view.places
        if not self.tables:
            return None
        for table, active in zip(self.tables, self.active, strict=True):
            offset = table.dense(rows, logits.device)
            acts = active[table.tokens(rows)]
            if not bool(acts.all()):
                offset = offset * acts.to(offset)[:, None]
            logits = torch.add(logits, offset, alpha=self.dial)
        return logits

    @override
    def reach(self, view: StepView) -> Bool[Tensor, " token"] | None:
        if not self.tables:
            return None
        rows = [
            carried[table.tokens(view.places)]
            for table, carried in zip(self.tables, self.carried, strict=True)
        ]
        return torch.stack(rows).any(0)

    @override
    def report(self) -> dict[str, Any]:
        return {"lambda": self.strength, "clauses": self.found}


def per_token(rows: Bool[Tensor, " row"], table: TokenTable) -> Bool[Tensor, " token"]:
    """What holds for rows, for each token of a table."""
    return rows.repeat_interleave(table.starts[1:] - table.starts[:-1])


class ExplainAwayPlacebo(ExplainAway):
    """Explain-away with evidence that says nothing."""

    name: ClassVar[str] = "explain_away_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = (
        "explain-away with a neutral prompt, a random direction or an expert on neutral text as evidence"
    )

    @override
    def choose(self, setup: Setup, best: Gain, clause: Clause) -> Evidence:
        return placebo_evidence(setup, clause, best.evidence, self.options)

    @override
    def carrying(self, setup: Setup, clause: Clause, evidence: Evidence, offsets: Offsets) -> Tensor:
        """The rows on which the real control would act."""
        return carriers_by_evidence(setup, clause, evidence).carries
