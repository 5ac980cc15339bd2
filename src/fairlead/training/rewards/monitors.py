"""Looks at the student while it trains: the same questions each time, answered by sampling, read by all who can read.

Every look compares the frozen and the student scores of the same texts (they part where activations drift off the probe), lets the verifier
label the answers, fits a fresh probe on the student's activations, and measures KL, entropy, claims, abstentions and the loss on neutral
text. Nothing random of the training is drawn: a training with monitors takes the same steps as one without.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from fairlead.core.claims import ClaimSpan
from fairlead.core.config import Record
from fairlead.core.nouns import SpanReadout
from fairlead.core.stats import auroc
from fairlead.data import Encoded
from fairlead.data.template import encode_prompt
from fairlead.training.rewards.claims import Question, Splitter, Verifier
from fairlead.training.rewards.fresh import FreshProbe, entity_of
from fairlead.training.rewards.reading import Text, lay_out, read_claims, readout_on
from fairlead.training.rewards.table import has_abstained

if TYPE_CHECKING:
    from fairlead.models import Model

MONITORS_FILE = "monitors.jsonl"
_EXAMPLES = 24  # answers kept of a look, so that some that changed are among them


class Look(Record):
    """What was seen of the student after a step; None where it could not be measured.

    Attributes:
        step: Optimizer steps done.
        frozen_score: Mean P(unsupported) of its claims, read from the frozen copy.
        student_score: The same texts, read from the student itself.
        unsupported: Share of claims that the verifier does not support.
        wrong_answers: Share of answers with a claim that the verifier does not support.
        right_answers: Share of answers whose claims the verifier supports, all of them and at least one.
        frozen_auroc: How well the probe tells the verifier's labels on the frozen copy's reading of the student's text.
        student_auroc: The same on the student's own activations.
        fresh_auroc: Of a probe of the same kind fitted anew on the student's activations, on entities it has not seen.
        fresh_placebo: The same with labels dealt out anew among the entities: .5 but for chance.
        kl: Nats per token, student against start model, on its own texts.
        entropy: Nats per token of the student.
        claims: Per answer.
        abstained: Share of answers that say they do not know.
        neutral_loss: Nats per token on neutral text.
        examples: A few answers.
    """

    step: int
    frozen_score: float | None = None
    student_score: float | None = None
    unsupported: float | None = None
    wrong_answers: float | None = None
    right_answers: float | None = None
    frozen_auroc: float | None = None
    student_auroc: float | None = None
    fresh_auroc: float | None = None
    fresh_placebo: float | None = None
    kl: float
    entropy: float
    claims: float
    abstained: float
    neutral_loss: float | None = None
    examples: tuple[str, ...] = Field(default=())


class Drift(NamedTuple):
    """How far a student's own answers are from the start model: nats per token."""

    kl: float
    entropy: float


class Monitor:
    """Measures a student.

    Args:
        frozen: The start model.
        readout: The probe.
        questions: What to ask, the same each time.
        splitter: Finds claims.
        verifier: Labels them; None where there is none.
        spot_checks: Answers that the verifier labels.
        neutral: Neutral text.
        fresh: Fits a fresh probe; None for none.
        max_new_tokens: Longest answer.
        temperature: Of the answers.
        seed: Of the answers.
    """

    def __init__(
        self,
        frozen: Model,
        readout: SpanReadout,
        questions: Sequence[Question],
        *,
        splitter: Splitter,
        verifier: Verifier | None = None,
        spot_checks: int = 128,
        neutral: Sequence[Encoded] = (),
        fresh: FreshProbe | None = None,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.frozen, self.readout, self.questions = frozen, readout, tuple(questions)
        self.splitter, self.verifier, self.spot_checks = splitter, verifier, spot_checks
        self.neutral, self.fresh = tuple(neutral), fresh
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed

    @torch.no_grad()
    def look(self, student: Model, step: int) -> Look:
        """Ask the student and measure."""
        with torch.random.fork_rng():
            answers = student.generate(
                [q.messages for q in self.questions],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
            )
            texts = [
                Text(tuple(encode_prompt(q.messages, student.tokenizer)), a, tuple(self.splitter(q, a)))
                for q, a in zip(self.questions, answers, strict=True)
            ]
            scores = {
                name: [c.score for claims in read_claims(model, readout, texts) for c in claims]
                for name, model, readout in self._readers(student)
            }
            drift = measure_drift(student, self.frozen, texts)
            checked = self._verify(student, answers)
        return Look(
            step=step,
            frozen_score=_mean(scores["frozen"]),
            student_score=_mean(scores["student"]),
            kl=drift.kl,
            entropy=drift.entropy,
            claims=sum(len(text.claims) for text in texts) / len(texts),
            abstained=sum(has_abstained(answer) for answer in answers) / len(answers),
            neutral_loss=self._neutral_loss(student),
            examples=tuple(answers[:_EXAMPLES]),
            **checked,
        )

    def _verify(self, student: Model, answers: Sequence[str]) -> dict[str, float | None]:
        """What the verifier says of the first answers, and how well probes tell it."""
        if self.verifier is None or not self.spot_checks:
            return {}
        pairs = list(zip(self.questions, answers, strict=True))[: self.spot_checks]
        labelled = [tuple(self.verifier(question, answer)) for question, answer in pairs]
        texts = [
            Text(tuple(encode_prompt(q.messages, student.tokenizer)), a, claims)
            for (q, a), claims in zip(pairs, labelled, strict=True)
        ]
        truth = [bool(claim.unsupported) for claims in labelled for claim in claims]
        found: dict[str, float | None] = {
            "unsupported": _mean([float(value) for value in truth]),
            "wrong_answers": _mean([float(any(c.unsupported for c in claims)) for claims in labelled]),
            "right_answers": _mean(
                [float(bool(claims) and not any(c.unsupported for c in claims)) for claims in labelled]
            ),
        }
        for name, model, readout in self._readers(student):
            found[f"{name}_auroc"] = _separation(read_claims(model, readout, texts), truth)
        if self.fresh is not None and len(set(truth)) == 2:
            entities = [entity_of(question) for question, _ in pairs]
            found["fresh_auroc"], found["fresh_placebo"] = self.fresh(student, texts, truth, entities)
        return found

    def _readers(self, student: Model) -> tuple[tuple[str, Model, SpanReadout], ...]:
        """The probe on the frozen copy, and the same probe on the student."""
        return ("frozen", self.frozen, self.readout), ("student", student, readout_on(self.readout, student))

    def _neutral_loss(self, student: Model) -> float | None:
        if not self.neutral:
            return None
        logprobs = student.logprobs(self.neutral)
        kept = [lp[torch.tensor(item.loss_mask)] for lp, item in zip(logprobs, self.neutral, strict=True)]
        return -float(torch.cat(kept).mean())


def measure_drift(student: Model, start: Model, texts: Sequence[Text], *, batch_size: int = 64) -> Drift:
    """KL of the student to the start model and the student's entropy, over the tokens of its own answers."""
    kl = entropy = count = 0.0
    having = [text for text in texts if text.response]
    for first in range(0, len(having), batch_size):
        chunk = having[first : first + batch_size]
        batch, _ = lay_out(start, chunk)
        own, other = (model.forward(batch)[:, :-1].float().log_softmax(-1) for model in (student, start))
        mask = answer_mask(chunk, batch.attention_mask)[:, 1:].to(own.device)
        p = own.exp()
        kl += float(((p * (own - other)).sum(-1) * mask).sum())
        entropy += float((-(p * own).sum(-1) * mask).sum())
        count += float(mask.sum())
    return Drift(kl / max(count, 1), entropy / max(count, 1))


def answer_mask(texts: Sequence[Text], mask: Tensor) -> Float[Tensor, "batch seq"]:
    """1 on the tokens of the answers."""
    found = mask.clone().float()
    for row, text in enumerate(texts):
        found[row, : len(text.prompt_ids)] = 0
    return found


def read_looks(folder: Path) -> list[Look]:
    """The looks of a run folder; an unfinished last line is left out, a missing file gives none."""
    found: list[Look] = []
    if (folder / MONITORS_FILE).is_file():
        for line in (folder / MONITORS_FILE).read_text("utf-8").splitlines():
            try:
                found.append(Look.model_validate_json(line))
            except ValueError:
                break
    return found


def as_line(record: Record) -> str:
    """A record as a line of JSON."""
    return json.dumps(record.model_dump(mode="json"), separators=(",", ":")) + "\n"


def _separation(read: Sequence[Sequence[ClaimSpan]], truth: Sequence[bool]) -> float | None:
    scores = [claim.score or 0.0 for claims in read for claim in claims]
    sides = [
        [s for s, label in zip(scores, truth, strict=True) if label is wanted] for wanted in (True, False)
    ]
    return _number(auroc(*sides))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float) -> float | None:
    return None if value != value else float(value)
