"""The judge in the loop: concepts that nobody has decided on and that the data begin to push are put to the judge while training.

The menu before the training is that of the start model; what the data push changes as the student learns. Every so often the
uptake of *all* concepts of the dictionary is read from a few training batches (the observer's own activations and gradients: two
products of the dictionary's size on those steps, none on the others). Undecided concepts with a share of the positive uptake
above `share` go to the judge: the spec's examples, or a language model. What it decides holds for the rest of the run: an avoided concept
is observed and counts for the feedback controller from then on, and the other controls learn of its clause (`Control.learn`):
explain-away takes it on where no concept had named it before, weights by the dictionary are measured again. Every concept is judged
once, every decision is recorded with its step, and cached on disk by concept and spec (`fairlead.training.judged`).

Placebo: as many undecided concepts, drawn at random whatever is pushed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from fairlead.concepts import judge_examples, judge_llm
from fairlead.core.config import Config
from fairlead.core.errors import TrainingError
from fairlead.core.progress import say
from fairlead.core.records import Concept, Decision, Plan
from fairlead.core.run import read_json
from fairlead.llm import connect
from fairlead.training import processes
from fairlead.training.controls.base import Control, Kind
from fairlead.training.judged import decide_cached
from fairlead.training.setup import Setup

CONCEPTS_FILE = "concepts.json"
NUM_BACKGROUND = 96


class JudgeOptions(Config):
    """Settings.

    Attributes:
        every: Steps between two looks; 1 looks at every step.
        llm: A language model as the judge ("openai:MODEL", "scripted:FILE.json"); the spec's examples where None.
        base_url: The language model's endpoint.
        gather: Steps before a look from which the uptake is read.
        share: Share of the positive uptake from which on a concept is put to the judge.
        most: Concepts a look.
        concepts: File with the dictionary's concepts; the plan's preview where None.
    """

    every: int = Field(default=50, ge=1)
    llm: str | None = None
    base_url: str | None = None
    gather: int = Field(default=4, ge=1)
    share: float = Field(default=0.03, gt=0, le=1)
    most: int = Field(default=5, ge=1)
    concepts: str | None = None


class Judge(Control):
    """Puts new concepts to the judge while training."""

    name: ClassVar[str] = "judge"
    kind: ClassVar[Kind] = "shapes"
    placebo: ClassVar[str | None] = "judge_placebo"
    summary: ClassVar[str] = "puts concepts that appear during the training to the judge"
    Options: ClassVar[type[Config]] = JudgeOptions

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.decisions: list[tuple[int, Decision]] = []
        self.sums: Tensor | None = None

    @override
    def prepare(self, setup: Setup) -> None:
        if setup.plan is None or setup.observer is None or setup.dictionary is None:
            raise TrainingError(
                "the judge in the loop reads what is observed, and this training observes nothing. Next: give a plan that "
                "avoids a concept, with its dictionary, and leave observe on."
            )
        self.setup = setup
        self.concepts = {concept.id: concept for concept in self._read_concepts(setup.plan)}
        self.background = setup.neutral_rows(NUM_BACKGROUND, own_answers=False)
        setup.observer.listeners.append(self.listen)

    def _read_concepts(self, plan: Plan) -> list[Concept]:
        given = self.options.concepts
        path = Path(given) if given is not None else Path(plan.menu_path or ".") / CONCEPTS_FILE
        if not path.is_file():
            raise TrainingError(
                f"{path}: the dictionary's concepts are not there. Next: keep the folder of the preview, or name the file "
                "(option concepts)."
            )
        return [Concept.model_validate(record) for record in read_json(path)]

    def listen(self, step: int, hidden: Tensor, grad: Tensor) -> None:
        """Add a batch to the uptake of all latents, on the steps before a look."""
        left = -(step + 1) % self.options.every  # steps from this one's end to the next look
        if left >= self.options.gather:
            return
        dictionary = self.setup.dictionary
        assert dictionary is not None
        acts = dictionary.encode(hidden)
        pull = grad.to(acts) @ dictionary.decoder.to(acts).T
        found = -(acts * pull).sum(0).double().cpu()
        self.sums = found if self.sums is None else self.sums + found

    @override
    def before_step(self, step: int, student: nn.Module) -> None:
        if step == 0 or step % self.options.every:
            return
        gathered = [sums for sums in processes.gather(self.sums) if sums is not None]
        self.sums = None
        if not gathered:
            return
        chosen = self.choose(torch.stack(gathered).sum(0), step)
        if not chosen:
            return
        setup = self.setup
        assert setup.plan is not None and setup.dictionary is not None
        identity = [
            setup.plan.spec.model_dump(mode="json"),
            setup.dictionary.sha256,
            setup.fingerprint,
            self.options.llm,
            [row.as_record() for row in self.background],
            setup.config.seed,
        ]
        made = decide_cached(chosen, self.ask, cache=setup.cache, identity=identity)
        for decision in made:
            said = decision.model_copy(update={"reason": f"after step {step}: {decision.reason}"})
            self.decisions.append((step, said))
            self.take(said)
            if decision.verdict == "avoid":
                say(f"judge: {decision.label} is to be avoided ({decision.clause}), after step {step}")

    def ask(self, concepts: list[Concept]) -> list[Decision]:
        """What the judge says."""
        setup = self.setup
        assert setup.plan is not None and setup.dictionary is not None
        spec, name = setup.plan.spec, self.options.llm
        if name is not None:
            llm = connect(name, base_url=self.options.base_url)
            return processes.on_first(lambda: judge_llm(concepts, spec, llm))
        with setup.start() as start:
            return judge_examples(
                start.model,
                setup.dictionary,
                concepts,
                spec,
                background=self.background,
                seed=setup.config.seed,
            )

    def choose(self, sums_F: Tensor, step: int) -> list[Concept]:
        """Undecided concepts that the data push, the strongest first."""
        pushes = {key: float(sums_F[list(c.latents)].sum()) for key, c in self.concepts.items()}
        positive = sum(push for push in pushes.values() if push > 0)
        new = [
            key for key in self.undecided() if positive > 0 and pushes[key] / positive >= self.options.share
        ]
        ranked = sorted(new, key=lambda key: -pushes[key])[: self.options.most]
        return [self.concepts[key] for key in ranked]

    def undecided(self) -> list[str]:
        """Ids of the concepts that nobody has decided on."""
        assert self.setup.plan is not None
        decided = {decision.concept for decision in self.setup.plan.decisions}
        return [key for key in self.concepts if key not in decided]

    def take(self, decision: Decision) -> None:
        """Let a decision hold from here on."""
        setup, concept = self.setup, self.concepts[decision.concept]
        assert setup.plan is not None and setup.observer is not None
        update: dict[str, Any] = {"decisions": (*setup.plan.decisions, decision)}
        if decision.verdict != "ignore":
            update["concepts"] = (*setup.plan.concepts, concept)
            setup.observer.watch(concept, kept=decision.verdict == "keep")
        setup.plan = setup.plan.model_copy(update=update)
        if decision.verdict == "avoid":
            assert decision.clause is not None
            for control in setup.controls:
                control.learn(setup, decision.clause)

    @override
    def state(self) -> dict[str, Any]:
        return {
            "decisions": [[step, decision.model_dump(mode="json")] for step, decision in self.decisions],
            "sums": None if self.sums is None else self.sums.tolist(),
        }

    @override
    def restore(self, state: dict[str, Any]) -> None:
        self.decisions = [(step, Decision.model_validate(record)) for step, record in state["decisions"]]
        for _, decision in self.decisions:
            self.take(decision)
        self.sums = None if state["sums"] is None else torch.tensor(state["sums"], dtype=torch.float64)

    @override
    def report(self) -> dict[str, Any]:
        return {
            "decisions": [
                {"step": step, **decision.model_dump(mode="json")} for step, decision in self.decisions
            ]
        }


class JudgePlacebo(Judge):
    """As many undecided concepts, drawn at random."""

    name: ClassVar[str] = "judge_placebo"
    placebo: ClassVar[str | None] = None
    summary: ClassVar[str] = "puts concepts drawn at random to the judge"

    @override
    def choose(self, sums_F: Tensor, step: int) -> list[Concept]:
        num = len(super().choose(sums_F, step))
        rng = random.Random(f"{self.setup.config.seed}:{self.name}:{step}")
        return [self.concepts[key] for key in rng.sample(sorted(self.undecided()), num)]
