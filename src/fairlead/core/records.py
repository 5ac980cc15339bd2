"""The records that travel along the main path: concepts, menu, spec, decisions.

They are plain JSON data (frozen pydantic models), so that the CLI, Python, the web pages and
agents see the same thing. Tensors never live here. Large per-example tables stand beside a menu as
`.safetensors` in its run folder.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fairlead.core.config import Record

Verdict = Literal["keep", "avoid", "ignore"]


class TokenContext(Record):
    """A stretch of text with one score per token (for highlighting)."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    example: int | None = None  # index in the data set, where it comes from one


class Concept(Record):
    """A labelled group of dictionary latents at a site, with evidence.

    `latents` are indices into the dictionary; `examples` show where the group fires.
    """

    id: str  # "c12": stable within one dictionary
    label: str
    site: str
    latents: tuple[int, ...]
    tokens: tuple[str, ...] = ()  # tokens that set it apart, strongest first
    examples: tuple[TokenContext, ...] = ()
    density: float = 0.0  # share of tokens on which any latent of the group fires
    label_score: float | None = None  # detection AUROC of the label's evidence on held-out text


class MenuLine(Record):
    """One concept on the menu.

    Attributes:
        uptake: Mean over loss tokens of -<dL/dh, d_f> a_f(h), summed over the group (DESIGN 5.1).
        interval: 95 % bootstrap interval of `uptake` over examples.
        share: Part of the sum of positive uptake over all concepts, 0 to 1 (negative lines: < 0).
        reference: The concept's usual uptake (on the reference data), same units.
        surprise: How unusual the data's pull on the concept is: sqrt(share of the gradient's traffic through it) times the log
            of its presence over its usual presence, what the lines above bring with them counted as usual (gradients/menu.py).
            The order of the menu.
        stability: Share of random split halves in which the sign agrees, 0.5 to 1.
        num_examples: Examples of the data set that carry the concept.
        fires: Share of examples on which the concept is active in the response.
        rehearsed: Change of its mean activation on the model's own answers to the data's prompts after a few steps of plain
            fine-tuning on a copy; None where that was not tried.
        rehearsed_elsewhere: The same on usual texts.
    """

    concept: Concept
    uptake: float
    interval: tuple[float, float]
    share: float
    reference: float = 0.0
    surprise: float = 0.0
    stability: float
    num_examples: int
    fires: float
    rehearsed: float | None = None
    rehearsed_elsewhere: float | None = None
    top_examples: tuple[TokenContext, ...] = ()


class TokenLine(Record):
    """One line of the bag-of-tokens baseline: how much a token's frequency would rise."""

    token: str
    data_share: float  # frequency in the data's responses
    model_share: float  # frequency in the model's own responses to the same prompts
    log_ratio: float


class Menu(Record):
    """What a data set would teach a model: the ranked concepts, and what they leave out."""

    format: Literal["fairlead.menu"] = "fairlead.menu"
    version: Literal[1] = 1
    model: str
    model_fingerprint: str
    data: str
    data_sha256: str
    site: str
    dictionary: str  # path or id of the dictionary
    dictionary_sha256: str
    num_examples: int
    num_tokens: int  # loss tokens seen
    loss: float  # mean loss per token, nats
    remainder: float  # share of the squared gradient outside the dictionary's span, 0 to 1
    remainder_chance: float | None = None  # what a random subspace of the same dimensions would leave outside
    lines: tuple[MenuLine, ...]  # best first
    baseline: tuple[TokenLine, ...] = ()
    reference: str = ""  # which reference was used
    rehearsal: int = 0  # steps that were tried on a copy
    notes: tuple[str, ...] = ()


class SpecExample(Record):
    """One example of a clause.

    `text` shows the clause (an answer); `prompt` is the question it answers, where given; `instead`
    is the counterpart: the same answer as it should be (for Avoid clauses).
    """

    text: str
    prompt: str | None = None
    instead: str | None = None
    line: int = 0


class Clause(Record):
    """One bullet of a spec."""

    id: str  # "keep.1", "avoid.2"
    kind: Literal["keep", "avoid"]
    text: str
    line: int
    examples: tuple[SpecExample, ...] = ()
    requests: tuple[str, ...] = ()  # prompts that ask for this behaviour (evidence, recoverability)
    check: str | None = None  # regular expression (Python, `re.search`) that recognises it in an answer


class Spec(Record):
    """What the model should learn and what not."""

    format: Literal["fairlead.spec"] = "fairlead.spec"
    version: Literal[1] = 1
    title: str = ""
    source: str = ""
    sha256: str = ""
    clauses: tuple[Clause, ...]

    def of_kind(self, kind: Literal["keep", "avoid"]) -> tuple[Clause, ...]:
        """The clauses of one kind, in order."""
        return tuple(clause for clause in self.clauses if clause.kind == kind)

    def clause(self, clause_id: str) -> Clause:
        """The clause with this id.

        Raises:
            KeyError: No such clause.
        """
        for clause in self.clauses:
            if clause.id == clause_id:
                return clause
        raise KeyError(clause_id)


class Decision(Record):
    """What becomes of one concept, who decided and why."""

    concept: str  # Concept.id
    label: str
    verdict: Verdict
    clause: str | None  # Clause.id
    margin: float  # judge's own scale; 0 = undecided
    confidence: float  # 0 to 1, calibrated where the judge can
    reason: str
    judge: str  # "examples", "llm:MODEL", "ask"


class PlannedControl(Record):
    """A control that the plan chose, with what was measured for the choice."""

    name: str
    clause: str | None = None  # Clause.id; None where it serves the whole training
    strength: float | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    reason: str
    measured: dict[str, float] = Field(default_factory=dict)


class Plan(Record):
    """Decisions plus what training needs to act on them."""

    format: Literal["fairlead.plan"] = "fairlead.plan"
    version: Literal[1] = 1
    spec: Spec
    decisions: tuple[Decision, ...]
    menu_path: str | None = None  # folder of the preview run
    dictionary: str | None = None
    site: str | None = None
    notes: tuple[str, ...] = ()
    concepts: tuple[Concept, ...] = ()  # the concepts of the decisions that are not "ignore"
    uptakes: dict[str, float] = Field(default_factory=dict)  # their uptake on the menu, by Concept.id
    controls: tuple[PlannedControl, ...] = ()  # what the "auto" recipe uses; empty where none were chosen yet

    def avoided(self) -> tuple[Decision, ...]:
        """The decisions that say avoid."""
        return tuple(d for d in self.decisions if d.verdict == "avoid")

    def kept(self) -> tuple[Decision, ...]:
        """The decisions that say keep."""
        return tuple(d for d in self.decisions if d.verdict == "keep")
