"""The choice of evidence for a clause: make candidates, measure their gains on a sample of the data, take the best.

Candidates are prompts (chat models), steering vectors from the clause's examples (difference of means, or the directions of
fitted probes), and, where these gain little, an expert trained on avoided text. All are reported with their gain. The
placebo of a source is one of its kind that says nothing.
"""

from __future__ import annotations

from pydantic import Field

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError
from fairlead.core.nouns import Direction
from fairlead.core.progress import track
from fairlead.core.records import Clause
from fairlead.training.directions import (
    clause_directions,
    increments,
    random_like,
    readout_directions,
    residual_sites,
)
from fairlead.training.evidence import (
    Evidence,
    EvidenceChoice,
    Gain,
    Source,
    measure_gain,
    prompt_candidates,
    prompt_evidence,
    sample_places,
    steering_candidates,
    target_logprobs,
)
from fairlead.training.expert import train_expert
from fairlead.training.neutral_prompts import neutral_prompt_like
from fairlead.training.setup import Setup

DIRECTIONS = {"steering": clause_directions, "readout": readout_directions}
NUM_PLACEBO_ROWS = 256  # neutral rows of which the placebo's expert takes as many as the clause has examples


class EvidenceOptions(Config):
    """Settings of the choice.

    Attributes:
        evidence: The evidence, where it is chosen already (by a plan): it is used as it is, and nothing is compared.
        sources: Where evidence may come from; None: prompts for chat models, steering from the clause's examples,
            and an expert where these gain less than `enough`. "readout" (the directions of fitted probes) only where named.
        prompts: Further candidate prompts.
        coefficients: Of the candidates that steer.
        sample: Rows on which candidates are compared.
        min_gain: Nats per token below which a clause's evidence is not used.
        enough: Nats per token above which no expert is trained.
        expert_steps: Training steps of the expert.
        expert_lr: Learning rate of the expert.
        expert_data: File with avoided text for the expert; None for the clause's examples.
    """

    evidence: EvidenceChoice | None = None
    sources: tuple[Source, ...] | None = None
    prompts: tuple[str, ...] = ()
    coefficients: tuple[float, ...] = (0.5, 1.0, 2.0)
    sample: int = Field(default=48, ge=1)
    min_gain: float = 0.05
    enough: float = 0.3
    expert_steps: int = Field(default=60, ge=1)
    expert_lr: float = Field(default=5e-4, gt=0)
    expert_data: str | None = None


def evidence_gains(setup: Setup, clause: Clause, options: EvidenceOptions) -> list[Gain]:
    """The gains of all candidate sources on a sample of the data rows, in the order they were made; of the chosen one alone, if any.

    Raises:
        ConfigError: No source is possible for this clause and model.
    """
    picks = sample_places(setup, options.sample)
    if options.evidence is not None:
        return [measure_gain(setup, make_evidence(setup, clause, options.evidence), picks, clause=clause)]
    sources = options.sources or (("prompt", "steering") if setup.is_chat else ("steering",))
    made: list[Evidence] = []
    if "prompt" in sources:
        made += prompt_candidates([*options.prompts, *clause.requests], clause.text)
    kinds: tuple[Source, ...] = ("steering", "readout")
    for kind in kinds:
        if kind in sources and clause.examples:
            directions = DIRECTIONS[kind](setup, clause, residual_sites(setup.model))
            made += steering_candidates(directions, increments(directions), options.coefficients, kind=kind)
    plain, _ = Evidence("none", "none").encode(setup, picks)
    before = target_logprobs(setup, None, plain)
    gains = [
        measure_gain(setup, evidence, picks, before=before, clause=clause)
        for evidence in track(made, f"evidence for {clause.id}")
    ]
    needs = options.sources is None and max((g.gain for g in gains), default=0.0) < options.enough
    if "expert" in sources or (needs and (clause.examples or options.expert_data)):
        expert = train_expert(
            setup, clause, steps=options.expert_steps, lr=options.expert_lr, data=options.expert_data
        )
        gains.append(measure_gain(setup, expert, picks, before=before, clause=clause))
    if not gains:
        raise ConfigError(
            f"nothing elicits clause {clause.id} ('{clause.text}'). Next: give the clause examples or requests."
        )
    return gains


def make_evidence(setup: Setup, clause: Clause, choice: EvidenceChoice) -> Evidence:
    """The evidence that a choice stands for.

    Raises:
        ConfigError: The choice says too little.
        TrainingError: The clause has no example to make it of.
    """
    defaults = EvidenceOptions()
    if choice.kind == "expert":
        steps, lr = choice.steps or defaults.expert_steps, choice.lr or defaults.expert_lr
        return train_expert(setup, clause, steps=steps, lr=lr, data=choice.data)
    if choice.kind == "prompt" and choice.prompt is not None:
        return prompt_evidence(choice.prompt)
    if choice.kind == "prompt" or choice.layers is None or choice.coefficient is None:
        needed = "a prompt" if choice.kind == "prompt" else "layers and a coefficient"
        raise ConfigError(f"evidence: a choice of kind '{choice.kind}' needs {needed}. Next: add it.")
    directions = DIRECTIONS[choice.kind](setup, clause, residual_sites(setup.model))
    stacked = increments(directions)
    made = steering_candidates(directions, stacked, (choice.coefficient,), kind=choice.kind)
    return made[0] if choice.layers == "middle" else made[1]


def find_evidence(setup: Setup, clause: Clause, options: EvidenceOptions | None = None) -> Evidence | None:
    """The evidence that tells which rows carry a clause; None where none gains `min_gain`.

    It is the one that an earlier control chose (a placebo's: the real one in whose place it acts), else the plan's, else the best
    candidate.
    """
    known = setup.telling.get(clause.id) or setup.evidence.get(clause.id)
    if known is not None:
        return known
    planned = [
        choice
        for control in (setup.plan.controls if setup.plan is not None else ())
        if control.clause == clause.id and (choice := control.options.get("evidence")) is not None
    ]
    if planned:
        found = make_evidence(setup, clause, EvidenceChoice.make(planned[0]))
    else:
        options = options or EvidenceOptions()
        best = max(evidence_gains(setup, clause, options), key=lambda gain: gain.gain)
        if best.gain < options.min_gain:
            return None
        found = best.evidence
    setup.evidence[clause.id] = found
    return found


def placebo_evidence(setup: Setup, clause: Clause, real: Evidence, options: EvidenceOptions) -> Evidence:
    """Evidence of the same kind that says nothing: a neutral prompt, random vectors of equal norm, an expert on neutral rows."""
    if real.kind == "prompt":
        prompt = neutral_prompt_like(real.system or "", setup.model.tokenizer)
        return Evidence("prompt", f"placebo: {prompt}", system=prompt)
    if real.vectors:
        directions = {site: Direction(site, vector) for site, vector in real.vectors.items()}
        noise = random_like(directions, seed=setup.config.seed)
        vectors = {site: direction.vector for site, direction in noise.items()}
        return Evidence(real.kind, f"placebo: {real.label}", vectors=vectors)
    rows = setup.neutral_rows(NUM_PLACEBO_ROWS)
    return train_expert(
        setup,
        clause,
        steps=options.expert_steps,
        lr=options.expert_lr,
        data=options.expert_data,
        instead=rows,
    )
