"""Evidence for explain-away: what makes the frozen start model show the trait, and how well each source does.

A source C changes the start model's next-token distribution at the response tokens: a system prompt, a steering vector,
or an expert (a copy fine-tuned on the avoided text). Its *gain* is the mean rise of log p0(y) over the response tokens of the data,
counted over the rows that it explains, the others counting as zero: those whose summed rise is at least a third of what the clause's
own examples show (`TYPICAL`), so that a source that lifts everything a little does not win. The source with the highest gain is
taken; all candidates are reported.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fairlead.core.config import Config
from fairlead.core.errors import TrainingError
from fairlead.core.nouns import Direction
from fairlead.core.records import Clause
from fairlead.core.run import sha256_json
from fairlead.core.site import Site
from fairlead.data import Encoded, encode_aligned
from fairlead.models import site_hook
from fairlead.training.logits import iter_logprobs
from fairlead.training.setup import Setup, clause_rows

Source = Literal["prompt", "steering", "readout", "expert"]
TYPICAL = 1 / 3  # share of the examples' mean rise from which on a row is explained, and carries the clause


class EvidenceChoice(Config):
    """What makes one source of evidence again, on other rows or in another process; a plan keeps it.

    Attributes:
        kind: Where it comes from.
        prompt: The system prompt.
        layers: Where vectors are added: the "middle" layer or "all" of them by increments.
        coefficient: Of the vectors.
        steps: Training steps of an expert.
        lr: Its learning rate.
        data: File with its text; None for the clause's examples.
    """

    kind: Source
    prompt: str | None = None
    layers: Literal["middle", "all"] | None = None
    coefficient: float | None = None
    steps: int | None = None
    lr: float | None = None
    data: str | None = None


@dataclass
class Evidence:
    """One source.

    Attributes:
        kind: "prompt", "steering", "readout" or "expert".
        label: What it is, for the report.
        system: System prompt to put before the rows.
        vectors: Vectors `[d]` to add to the residual stream, per site.
        expert: Another model to ask.
        expert_id: What it was made of.
        unseen: Places of the clause's examples that the expert was not trained on.
        choice: What makes it again; None for a placebo.
    """

    kind: str
    label: str
    system: str | None = None
    vectors: dict[Site, Tensor] = field(default_factory=dict)
    expert: nn.Module | None = None
    expert_id: str = ""
    unseen: tuple[int, ...] = ()
    choice: EvidenceChoice | None = None

    def identity(self) -> list[Any]:
        """JSON value that decides its distributions."""
        vectors = {
            str(site): sha256_json([round(x, 6) for x in vector.tolist()])
            for site, vector in self.vectors.items()
        }
        return [self.kind, self.system, vectors, self.expert_id]

    def encode(self, setup: Setup, places: Sequence[int]) -> tuple[list[Encoded], list[Encoded]]:
        """Rows of the data without and with C, aligned token by token, with as many response tokens as the student sees.

        Raises:
            TrainingError: C makes a row longer than the model can take.
        """
        rows = [setup.rows[place] for place in places]
        columns = encode_aligned(rows, setup.model.tokenizer, systems=[None, self.system], max_length=None)
        rooms = [setup.encoded[place].num_loss_tokens for place in places]
        cut = [[cut_to(item, room) for item, room in zip(column, rooms, strict=True)] for column in columns]
        longest = max(map(len, cut[1]))
        if longest > setup.model.max_length:
            raise TrainingError(
                f"with the prompt '{self.system}' a row has {longest} tokens, more than the {setup.model.max_length} that "
                f"{setup.model.name} takes. Next: lower max_length or use shorter requests."
            )
        return cut[0], cut[1]

    @contextmanager
    def active(self, setup: Setup) -> Iterator[nn.Module]:
        """The module to ask, with C in place."""
        module = self.expert if self.expert is not None else setup.model.hf
        with ExitStack() as stack:
            for site, vector in self.vectors.items():
                moved = vector.to(setup.model.device)
                stack.enter_context(
                    site_hook(
                        module, site, lambda hidden, v=moved: hidden + v.to(hidden.dtype), when="no_grad"
                    )
                )
            yield module


@dataclass(frozen=True)
class Gain:
    """How well a source explains a sample of the data.

    Attributes:
        evidence: The source.
        gain: Nats per response token, over the rows it explains (others count 0).
        mean: The same without that rule: the plain mean rise.
        share: Share of rows that it explains.
    """

    evidence: Evidence
    gain: float
    mean: float
    share: float

    def record(self) -> dict[str, Any]:
        """JSON for the report."""
        return {
            "kind": self.evidence.kind,
            "label": self.evidence.label,
            "gain": round(self.gain, 4),
            "mean": round(self.mean, 4),
            "share": round(self.share, 4),
        }


def prompt_candidates(requests: Sequence[str], text: str) -> list[Evidence]:
    """The clause's own requests, its text, and simple templates around it."""
    bare = text.strip().rstrip(".")
    lowered = bare[:1].lower() + bare[1:]
    texts = [*requests, bare + ".", f"Your answers show this: {lowered}.", f"Always do this: {lowered}."]
    return [prompt_evidence(text) for text in dict.fromkeys(texts)]


def prompt_evidence(prompt: str) -> Evidence:
    """A system prompt as evidence."""
    return Evidence("prompt", prompt, system=prompt, choice=EvidenceChoice(kind="prompt", prompt=prompt))


def best_prompt(setup: Setup, clause: Clause, *, num: int = 48) -> Evidence:
    """The prompt that explains a sample of the data best, among the clause's requests and texts."""
    made = prompt_candidates(clause.requests, clause.text)
    picks = sample_places(setup, num)
    return max(
        (measure_gain(setup, evidence, picks, clause=clause) for evidence in made), key=lambda gain: gain.gain
    ).evidence


def sample_places(setup: Setup, num: int) -> list[int]:
    """Places of data rows on which evidence is compared: `num` of them, by the seed."""
    places = list(range(len(setup.rows)))
    return (
        places if len(places) <= num else random.Random(f"{setup.config.seed}:evidence").sample(places, num)
    )


def steering_candidates(
    per_layer: dict[Site, Direction],
    stacked: dict[Site, Direction],
    scales: Sequence[float],
    *,
    kind: Source = "steering",
) -> list[Evidence]:
    """One layer (the middle one) and all layers by increments, at several coefficients; `kind` says what the vectors are."""
    middle = sorted(per_layer, key=lambda site: site.layer or 0)[len(per_layer) // 2]
    made = []
    for scale in scales:
        about = {"kind": kind, "coefficient": scale}
        choice = EvidenceChoice.make(about, layers="middle")
        vectors = {middle: per_layer[middle].vector * scale}
        made.append(Evidence(kind, f"{middle}, coefficient {scale:g}", vectors=vectors, choice=choice))
        choice = EvidenceChoice.make(about, layers="all")
        vectors = {site: direction.vector * scale for site, direction in stacked.items()}
        made.append(Evidence(kind, f"all layers, coefficient {scale:g}", vectors=vectors, choice=choice))
    return made


def target_logprobs(setup: Setup, evidence: Evidence | None, encoded: Sequence[Encoded]) -> list[Tensor]:
    """Log-probability of each response token `[token]`, per row, under the start model with C (None: without)."""
    source = evidence or Evidence("none", "none")
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    with source.active(setup) as module:
        batches = iter_logprobs(module, encoded, pad_id=setup.pad_id, device=setup.model.device)
        for places, logprobs, tokens in batches:
            for place, values, targets in zip(places, logprobs, tokens, strict=True):
                found[place] = values.gather(1, targets[:, None])[:, 0].cpu()
    return found


def cut_to(item: Encoded, room: int) -> Encoded:
    """The row up to its loss token number `room`."""
    if item.num_loss_tokens <= room:
        return item
    seen = 0
    for position, wanted in enumerate(item.loss_mask):
        seen += wanted
        if seen == room:
            return Encoded(
                item.input_ids[: position + 1], item.loss_mask[: position + 1], item.index, item.row
            )
    raise AssertionError("unreachable: the row has more loss tokens than room")


def token_rises(setup: Setup, evidence: Evidence) -> list[Float[Tensor, " token"]]:
    """Per row the rise of log p0 at its response tokens under the evidence."""
    plain, with_c = evidence.encode(setup, range(len(setup.rows)))
    before = target_logprobs(setup, None, plain)
    after = target_logprobs(setup, evidence, with_c)
    return [(b - a).float() for a, b in zip(before, after, strict=True)]


def row_sums(rises: Sequence[Float[Tensor, " token"]]) -> Float[Tensor, " row"]:
    """Summed rise of each row."""
    return torch.stack([rise.sum() for rise in rises])


def typical_rise(setup: Setup, clause: Clause, evidence: Evidence) -> float | None:
    """A third of the mean rise of the clause's own examples (an expert's: of those it has not seen); None where they cannot tell."""
    shown, _ = clause_rows(clause, chat=setup.is_chat)
    if evidence.expert is not None:
        shown = [shown[place] for place in evidence.unseen]
    if not shown:
        return None
    examples = replace(setup, rows=shown, encoded=setup.encode(shown))
    mean = float(row_sums(token_rises(examples, evidence)).mean())
    return TYPICAL * mean if mean > 0 else None


def measure_gain(
    setup: Setup,
    evidence: Evidence,
    places: Sequence[int],
    *,
    before: Sequence[Tensor] | None = None,
    clause: Clause | None = None,
) -> Gain:
    """The gain of one source on some rows of the data.

    Args:
        setup: With the data.
        evidence: The source.
        places: Rows of the data.
        before: Their log-probabilities without it, where known.
        clause: Whose examples tell from which rise on a row is explained; from any rise where None.
    """
    level = (typical_rise(setup, clause, evidence) if clause is not None else None) or 0.0
    plain, with_c = evidence.encode(setup, places)
    before = target_logprobs(setup, None, plain) if before is None else before
    after = target_logprobs(setup, evidence, with_c)
    rises = [float((b - a).sum()) for a, b in zip(before, after, strict=True)]
    num = sum(len(values) for values in before)
    return Gain(
        evidence,
        gain=sum(rise for rise in rises if rise > level) / num,
        mean=sum(rises) / num,
        share=sum(rise > level for rise in rises) / len(rises),
    )
