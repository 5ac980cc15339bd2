"""Explain-away: let the frozen start model account for the trait, so that the student has nothing left to learn of it.

On data rows the loss sees `student logits + lambda * (log p0(.|C, x, y<t) - log p0(.|x, y<t))`, in training only; p0
is the start model and C a source of evidence that elicits the trait (`fairlead.training.evidence`). The student fits
the residual: product-of-experts debiasing (Clark et al. 2019, arXiv 1909.03683; He et al. 2019), with the start model
as the biased expert. lambda = 1 is what theory says.

Departures:

- tokens to which neither distribution gives 1 % get no offset. What the two say about them differs by several nats from
  noise alone, and the right answer to a question that the start model gets wrong is such a token: an offset on it would
  teach the skill for the evidence's context only (measured: `docs/lab-notes.md`);
- C is chosen by measured gain among prompts, steering vectors and, where these say little, an expert;
- offsets act only on rows that C explains (its summed gain on the row is positive), so that rows without the trait, in
  mixed data, are not pushed the other way.

Offsets are computed once per data set and cached by content.

Placebo: a neutral prompt as C, random directions of equal norm where steering was chosen, or an expert on neutral
rows where the expert was.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError
from fairlead.core.progress import say, track
from fairlead.core.records import Clause
from fairlead.training.batching import StepView
from fairlead.training.controls.base import Control, Kind
from fairlead.training.controls.inoculation import neutral_prompt_like
from fairlead.training.directions import clause_directions, increments, random_like, residual_sites
from fairlead.training.evidence import (
    Evidence,
    Gain,
    measure_gain,
    prompt_candidates,
    sample_places,
    steering_candidates,
)
from fairlead.training.expert import train_expert
from fairlead.training.logits import iter_logprobs
from fairlead.training.neutral import neutral_rows
from fairlead.training.setup import Setup
from fairlead.training.tables import TableBuilder, TokenTable, cached, cut_tail, is_dense, lump_offsets

Source = Literal["prompt", "steering", "expert"]
NUM_PLACEBO_ROWS = 256  # neutral rows of which the placebo's expert takes as many as the clause has examples


class ExplainAwayOptions(Config):
    """Settings of explain-away.

    Attributes:
        sources: Where evidence may come from; None: prompts for chat models, steering from the clause's examples,
            and an expert where these gain less than `enough`.
        prompts: Further candidate prompts.
        coefficients: Of the steering candidates.
        sample: Rows on which candidates are compared.
        min_gain: Nats per token below which a clause's evidence is not used.
        enough: Nats per token above which no expert is trained.
        gate: "row" acts only on rows that C explains, "none" on all.
        floor: Tokens that neither distribution gives this probability get no offset: out there the difference is noise.
        top_k: Kept tokens of either distribution where the vocabulary is too large for whole ones.
        expert_steps: Training steps of the expert.
        expert_lr: Learning rate of the expert.
        expert_data: File with avoided text for the expert; None for the clause's examples.
    """

    sources: tuple[Source, ...] | None = None
    prompts: tuple[str, ...] = ()
    coefficients: tuple[float, ...] = (0.5, 1.0, 2.0)
    sample: int = Field(default=48, ge=1)
    min_gain: float = 0.05
    enough: float = 0.3
    gate: Literal["row", "none"] = "row"
    floor: float = Field(default=0.01, ge=0, lt=1)
    top_k: int = Field(default=64, ge=1)
    expert_steps: int = Field(default=60, ge=1)
    expert_lr: float = Field(default=5e-4, gt=0)
    expert_data: str | None = None


class ExplainAway(Control):
    """Product of experts with the start model under evidence of the trait."""

    name: ClassVar[str] = "explain_away"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "explain_away_placebo"
    summary: ClassVar[str] = (
        "the start model under evidence of the trait accounts for it in the training loss"
    )
    Options: ClassVar[type[Config]] = ExplainAwayOptions
    default_strength: ClassVar[float | None] = 1.0
    relieves: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tables: list[TokenTable] = []
        self.active: list[Tensor] = []
        self.found: dict[str, Any] = {}

    @override
    def prepare(self, setup: Setup) -> None:
        picks = sample_places(setup, self.options.sample)
        for clause in setup.avoided(self.config.clause):
            gains = self.candidates(setup, clause, picks)
            best = max(gains, key=lambda gain: gain.gain)
            record: dict[str, Any] = {"candidates": [gain.record() for gain in gains]}
            self.found[clause.id] = record
            if best.gain < self.options.min_gain:
                note = (
                    f"explain_away: no evidence elicits clause {clause.id} ('{clause.text}') on this data: the best gains "
                    f"{best.gain:.3f} nats per token. It is left alone."
                )
                setup.notes.append(note)
                say(note)
                continue
            chosen = self.choose(setup, best, clause)
            setup.evidence[clause.id] = chosen
            record["chosen"] = {"kind": chosen.kind, "label": chosen.label}
            gain = (
                f"gain {best.gain:.2f} nats per token"
                if chosen is best.evidence
                else "in place of the best evidence"
            )
            say(f"explain_away: {clause.id} by {chosen.kind} '{chosen.label}', {gain}")
            table, rises = offset_table(setup, chosen, top_k=self.options.top_k, floor=self.options.floor)
            active = rises > 0 if self.options.gate == "row" else torch.ones_like(rises, dtype=torch.bool)
            record |= {"rows": int(active.sum()), "of": len(active), **table.info}
            self.tables.append(table)
            self.active.append(active)

    def candidates(self, setup: Setup, clause: Clause, picks: list[int]) -> list[Gain]:
        """The gains of all candidate sources on the sampled rows.

        Raises:
            ConfigError: No source is possible for this clause and model.
        """
        options = self.options
        sources = options.sources or (("prompt", "steering") if setup.is_chat else ("steering",))
        made: list[Evidence] = []
        if "prompt" in sources:
            made += prompt_candidates([*options.prompts, *clause.requests], clause.text)
        if "steering" in sources and clause.examples:
            directions = clause_directions(setup, clause, residual_sites(setup.model))
            made += steering_candidates(directions, increments(directions), options.coefficients)
        gains = [
            measure_gain(setup, evidence, picks) for evidence in track(made, f"evidence for {clause.id}")
        ]
        needs = options.sources is None and max((g.gain for g in gains), default=0.0) < options.enough
        if "expert" in sources or (needs and (clause.examples or options.expert_data)):
            expert = train_expert(
                setup, clause, steps=options.expert_steps, lr=options.expert_lr, data=options.expert_data
            )
            gains.append(measure_gain(setup, expert, picks))
        if not gains:
            raise ConfigError(
                f"explain_away: nothing to elicit clause {clause.id} with. Next: give the clause examples or requests."
            )
        return gains

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
            if not bool(active[rows].all()):
                counts = table.starts[1:] - table.starts[:-1]
                weight = active[rows].float().repeat_interleave(counts[rows])
                offset = offset * weight.to(offset.device)[:, None]
            logits = torch.add(logits, offset, alpha=self.dial)
        return logits

    @override
    def report(self) -> dict[str, Any]:
        return {"lambda": self.strength, "clauses": self.found}


class ExplainAwayPlacebo(ExplainAway):
    """Explain-away with evidence that says nothing."""

    name: ClassVar[str] = "explain_away_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = (
        "explain-away with a neutral prompt, a random direction or an expert on neutral text as evidence"
    )

    @override
    def choose(self, setup: Setup, best: Gain, clause: Clause) -> Evidence:
        evidence = best.evidence
        if evidence.kind == "prompt":
            prompt = neutral_prompt_like(evidence.system or "", setup.model.tokenizer)
            return Evidence("prompt", f"placebo: {prompt}", system=prompt)
        if evidence.kind == "steering":
            from fairlead.core.nouns import Direction

            real = {site: Direction(site, vector) for site, vector in evidence.vectors.items()}
            noise = random_like(real, seed=setup.config.seed)
            return Evidence(
                "steering",
                f"placebo: {evidence.label}",
                vectors={site: d.vector for site, d in noise.items()},
            )
        options = self.options
        rows = neutral_rows(
            setup.model,
            setup.neutral,
            num=NUM_PLACEBO_ROWS,
            chat=setup.is_chat,
            seed=setup.config.seed,
            max_length=setup.max_length,
            cache=setup.cache,
        )
        return train_expert(
            setup,
            clause,
            steps=options.expert_steps,
            lr=options.expert_lr,
            data=options.expert_data,
            instead=rows,
        )


def offset_table(setup: Setup, evidence: Evidence, *, top_k: int, floor: float) -> tuple[TokenTable, Tensor]:
    """Offsets at the response tokens of all data rows, and the summed rise of log p0(y) per row `[row]`."""
    plain, with_c = evidence.encode(setup, range(len(setup.rows)))
    counts = [item.num_loss_tokens for item in plain]
    vocab = setup.num_logits  # type: ignore[union-attr]
    dense = is_dense(vocab, sum(counts))
    k = min(top_k, vocab // 2)

    def make() -> TokenTable:
        builder = TableBuilder(counts, vocab, top_k=None if dense else 2 * k + 1)
        rest_mass, worst, tail_mass = 0.0, 0.0, 0.0
        # both encodings are sorted by their own length: pair the rows by going through the plain order
        order = sorted(range(len(plain)), key=lambda place: len(plain[place]))
        blocks = [order[start : start + 64] for start in range(0, len(order), 64)]
        for block in track(blocks, "offsets", unit="batch"):
            before = _by_place(setup, None, plain, block)
            after = _by_place(setup, evidence, with_c, block)
            for place in block:
                without, targets = before[place]
                given, _ = after[place]
                rises[place] = float((given - without).gather(1, targets[:, None]).sum())
                given, mass = cut_tail(given, without, floor=floor)
                tail_mass += float(mass.sum())
                if dense:
                    builder.put(place, given - without)
                else:
                    ids, offsets, rest, mass = lump_offsets(given, without, targets, top_k=k)
                    rest_mass, worst = rest_mass + float(mass.sum()), max(worst, float(mass.max()))
                    builder.put(place, offsets, ids, rest)
        num = max(sum(counts), 1)
        table = builder.done(
            {
                "error_bound_mean": rest_mass / num,
                "error_bound_max": worst,
                "left_alone_mean": tail_mass / num,
            }
        )
        table.extra = torch.tensor(rises)
        return table

    rises = [0.0] * len(plain)
    identity = [
        "offsets",
        1,
        setup.model.fingerprint,
        evidence.identity(),
        None if dense else k,
        floor,
        [[item.input_ids, item.loss_mask] for item in plain],
    ]
    table = cached(setup.cache, identity, make)
    assert table.extra is not None
    return table, table.extra


def _by_place(setup: Setup, evidence: Evidence | None, encoded: list, block: list[int]) -> dict[int, tuple]:
    source = evidence or Evidence("none", "none")
    found = {}
    with source.active(setup) as module:
        picked = [encoded[place] for place in block]
        for places, logprobs, tokens in iter_logprobs(
            module, picked, pad_id=setup.pad_id, device=setup.model.device
        ):
            for place, values, targets in zip(places, logprobs, tokens, strict=True):
                found[block[place]] = (values, targets)
    return found
