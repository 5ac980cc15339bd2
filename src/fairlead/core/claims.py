"""Claims: spans of an answer that say something which can be true or not, and answers with their claims.

What probes learn from, guards act on and rewards count. A claim's place is in characters of the response; `TokenSpan` is a place in
a batch of activations.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from fairlead.core.config import Record

ClaimLabel = Literal["supported", "contradicted", "insufficient"]


class ClaimSpan(Record):
    """One claim: `response[start:end] == text`.

    Attributes:
        start: First character in the response.
        end: Character after the last.
        text: The characters between.
        label: What the verifier says; None where nobody asked it. "insufficient": there is no evidence either way.
        value: What is claimed, where the verifier can tell (the number, the name).
        score: Probability that the claim is not supported, from a probe; None where none has read it.
        note: The verifier's reason or evidence.
    """

    start: int
    end: int
    text: str
    label: ClaimLabel | None = None
    value: str = ""
    score: float | None = None
    note: str = ""

    @property
    def unsupported(self) -> bool | None:
        """Whether the claim is contradicted or without evidence; None where it has no label."""
        return None if self.label is None else self.label != "supported"


class ClaimedAnswer(Record):
    """An answer with its claims.

    Attributes:
        id: Its name in messages and tables.
        messages: The prompt: turns with `role` and `content`.
        response: The answer.
        claims: In the order of the response.
        entity: What the answer is about; splits keep an entity on one side, so that a probe cannot remember it.
        meta: What else is known (exposures, source, ...); JSON values only.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    response: str
    claims: tuple[ClaimSpan, ...] = ()
    entity: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_spans(self) -> ClaimedAnswer:
        for place, claim in enumerate(self.claims):
            if not 0 <= claim.start < claim.end <= len(self.response):
                raise ValueError(
                    f"claims[{place}]: characters {claim.start} to {claim.end} are not within the response's {len(self.response)}"
                )
            if self.response[claim.start : claim.end] != claim.text:
                raise ValueError(
                    f"claims[{place}].text is not what stands at characters {claim.start} to {claim.end} of the response"
                )
        return self


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (half open) of a row of a batch."""

    row: int
    start: int
    end: int
