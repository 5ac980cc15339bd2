"""What a probe learns from: stretches of text with a yes or no, whatever it is about.

Tasks turn answers with claims into examples; any other labelled text (sentiment, personal data, refusals) is made into examples by
`fairlead.probes.labelled`.

    classify   is this claim unsupported
    localise   is this token within a claim
    correct    is this correction right
    retract    is this withdrawal right
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.config import Record
from fairlead.core.errors import ConfigError

Task = Literal["classify", "localise", "correct", "retract"]
ROLES = "roles"  # key in `ClaimedAnswer.meta`: "claim", "correction" or "retraction" for each claim


class Stretch(Record):
    """Characters `start` to `end` of an answer with a label.

    Attributes:
        start: First character in the response.
        end: Character after the last.
        label: What the probe shall tell; True is the positive class.
    """

    start: int
    end: int
    label: bool


class Example(Record):
    """An answer (or a text without a prompt) with its labelled stretches.

    Attributes:
        id: Its name in messages and tables.
        messages: The prompt; empty for plain text.
        response: The text in which the stretches lie.
        stretches: In the order of the text.
        entity: Splits keep an entity on one side; the id where empty.
        meta: What else is known; baselines and tables read it.
        token_level: Each token inside a stretch is an example of its own (localise, and labels of tokens).
    """

    id: str
    messages: tuple[dict[str, str], ...] = ()
    response: str
    stretches: tuple[Stretch, ...]
    entity: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)
    token_level: bool = False

    @property
    def group(self) -> str:
        """What splits go by."""
        return self.entity or self.id


def examples_of(answers: Iterable[ClaimedAnswer], task: Task = "classify") -> list[Example]:
    """Examples of a task; answers without any are left out.

    Raises:
        ConfigError: Unknown task, or no example at all.
    """
    if task not in _TASKS:
        raise ConfigError(f"task is {task!r}; use one of {', '.join(_TASKS)}.")
    found = []
    for answer in answers:
        stretches = _TASKS[task](answer)
        if stretches:
            found.append(
                Example(
                    id=answer.id,
                    messages=answer.messages,
                    response=answer.response,
                    stretches=tuple(stretches),
                    entity=answer.entity,
                    meta=answer.meta,
                    token_level=task == "localise",
                )
            )
    if not found:
        raise ConfigError(
            f"no answer holds anything for the task {task!r}. Next: check labels and roles of the claims."
        )
    return found


def _roles(answer: ClaimedAnswer) -> Sequence[str]:
    return answer.meta.get(ROLES) or ["claim"] * len(answer.claims)


def _classify(answer: ClaimedAnswer) -> list[Stretch]:
    return [
        Stretch(start=c.start, end=c.end, label=bool(c.unsupported))
        for c, role in zip(answer.claims, _roles(answer), strict=True)
        if c.label is not None and role != "retraction"
    ]


def _localise(answer: ClaimedAnswer) -> list[Stretch]:
    """The response, cut where claims begin and end."""
    spans = [c for c, role in zip(answer.claims, _roles(answer), strict=True) if role != "retraction"]
    return list(cut(spans, len(answer.response)))


def cut(spans: Sequence[ClaimSpan | Stretch], length: int) -> Iterable[Stretch]:
    """A text cut where spans begin and end: what is in one is positive, what is in none negative."""
    at = 0
    for span in sorted(spans, key=lambda s: s.start):
        if span.start > at:
            yield Stretch(start=at, end=span.start, label=False)
        if span.end > at:
            yield Stretch(start=max(at, span.start), end=span.end, label=True)
        at = max(at, span.end)
    if at < length:
        yield Stretch(start=at, end=length, label=False)


def _of_role(role: str) -> Callable[[ClaimedAnswer], list[Stretch]]:
    def pick(answer: ClaimedAnswer) -> list[Stretch]:
        return [
            Stretch(start=c.start, end=c.end, label=c.label == "supported")
            for c, found in zip(answer.claims, _roles(answer), strict=True)
            if found == role and c.label is not None
        ]

    return pick


_TASKS: dict[str, Callable[[ClaimedAnswer], list[Stretch]]] = {
    "classify": _classify,
    "localise": _localise,
    "correct": _of_role("correction"),
    "retract": _of_role("retraction"),
}
