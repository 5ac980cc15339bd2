"""What controls are given before a training: the frozen start model, the rows, the spec's clauses, the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.errors import TrainingError
from fairlead.core.records import Clause, Plan
from fairlead.data import Encoded, Row, encode, has_chat_template
from fairlead.training.config import TrainConfig
from fairlead.training.logits import pad_id_of
from fairlead.training.neutral import neutral_rows
from fairlead.training.student import as_start_model

if TYPE_CHECKING:
    from torch import Tensor

    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model
    from fairlead.training.controls.base import Control
    from fairlead.training.evidence import Evidence
    from fairlead.training.observe import PressureObserver

GENERIC_PROMPT = "Hello."  # for examples of a spec that come without a prompt, on chat models


@dataclass
class Setup:
    """Everything a control may use while it prepares; it may replace `encoded` (same rows, other context).

    Attributes:
        model: The start model, frozen. While the student trains, ask it inside `start()`: with LoRA it is the student.
        rows: The data rows that are trained on, in the order of `encoded`.
        encoded: Their tokens as the student will see them.
        config: Settings of the training.
        plan: Decisions and spec; None for a training without controls.
        neutral: Neutral rows given by the user; empty where none were.
        dictionary: The plan's dictionary, where there is one.
        cache: Folder for tables; None for no caching.
        notes: Remarks for the report.
        evidence: By clause, the evidence that an earlier control chose.
        telling: By clause, the evidence that tells which rows carry it, where another (a placebo's) is used.
        rises: By clause and evidence, per data row the rise of log p0 at its response tokens, `[token]`.
        carrying: By clause, its evidence and its rivals, which data rows carry it, `[row]`.
        controls: All controls of the training, prepared in this order.
        observer: Reads the pressure at every step; None where nothing is observed.
        move: Turns a dial for a control and records it: (step, dial, value, control's name).
        fingerprint: Identity of the start model, as it was before the training.
    """

    model: Model
    rows: list[Row]
    encoded: list[Encoded]
    config: TrainConfig
    plan: Plan | None = None
    neutral: Sequence[Row] = ()
    dictionary: Dictionary | None = None
    cache: Path | None = None
    notes: list[str] = field(default_factory=list)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    telling: dict[str, Evidence] = field(default_factory=dict)
    rises: dict[str, list[Tensor]] = field(default_factory=dict)
    carrying: dict[str, Tensor] = field(default_factory=dict)
    controls: Sequence[Control] = ()
    observer: PressureObserver | None = None
    move: Callable[[int, str, float, str], None] | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or self.model.fingerprint

    @contextmanager
    def start(self) -> Iterator[Setup]:
        """This setup with the start model as it was: whoever asks it while the student trains, asks it inside this block."""
        with as_start_model(self.model, self.fingerprint) as model:
            yield self if model is self.model else replace(self, model=model)

    @property
    def pad_id(self) -> int:
        """Token for padding."""
        return pad_id_of(self.model.tokenizer)

    @property
    def num_logits(self) -> int:
        """Size of the model's output distribution (the tokenizer's vocabulary may be smaller)."""
        head = self.model.hf.get_output_embeddings()
        if head is None:
            raise TrainingError(f"{self.model.name} has no language-modelling head to train.")
        return int(head.weight.shape[0])

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.config.max_length or self.model.max_length

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template and the data are chats."""
        return has_chat_template(self.model.tokenizer) and all(row.messages is not None for row in self.rows)

    def encode(self, rows: Sequence[Row], *, system: str | None = None) -> list[Encoded]:
        """Encode further rows as the data were encoded; long ones are cut."""
        return encode(
            list(rows), self.model.tokenizer, max_length=self.max_length, system=system, on_long="truncate"
        )

    def neutral_rows(self, num: int, *, own_answers: bool = True) -> list[Row]:
        """At most `num` neutral rows: the given ones, or generic ones (`training.neutral`)."""
        return neutral_rows(
            self.model,
            self.neutral,
            num=num,
            chat=self.is_chat,
            own_answers=own_answers,
            seed=self.config.seed,
            max_length=self.max_length,
            cache=self.cache,
        )

    def avoided(self, clause_id: str | None = None) -> list[Clause]:
        """The avoided clauses: the named one, else those that a decision names, else all of the spec.

        Raises:
            TrainingError: There is no plan, no such clause, or none that is avoided.
        """
        if self.plan is None:
            raise TrainingError("this control needs a plan with a spec. Next: pass plan=decide(menu, spec).")
        spec = self.plan.spec
        if clause_id is not None:
            try:
                return [spec.clause(clause_id)]
            except KeyError:
                known = ", ".join(clause.id for clause in spec.clauses)
                raise TrainingError(
                    f"the spec has no clause '{clause_id}'. Next: use one of {known}."
                ) from None
        named = {decision.clause for decision in self.plan.avoided()}
        clauses = [clause for clause in spec.of_kind("avoid") if clause.id in named]
        if not clauses:
            clauses = list(spec.of_kind("avoid"))
        if not clauses:
            raise TrainingError(
                "the spec avoids nothing. Next: add a clause under '## Avoid', or train plain."
            )
        return clauses


def example_row(text: str, prompt: str | None, *, chat: bool) -> Row:
    """An example of a spec as a row: a chat where it has a prompt or the model is a chat model, else plain text."""
    from fairlead.data import Message

    if prompt is None and not chat:
        return Row(text=text)
    return Row(messages=(Message("user", prompt or GENERIC_PROMPT), Message("assistant", text)))


def clause_rows(clause: Clause, *, chat: bool) -> tuple[list[Row], list[Row]]:
    """Rows that show a clause, and the counterparts ("instead") of those that have one."""
    shown = [example_row(e.text, e.prompt, chat=chat) for e in clause.examples]
    instead = [example_row(e.instead, e.prompt, chat=chat) for e in clause.examples if e.instead is not None]
    return shown, instead
