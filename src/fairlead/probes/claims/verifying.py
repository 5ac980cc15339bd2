"""Verifiers: what says whether a claim is supported.

A verifier labels the claims of an answer and counts what that cost. Three of them: an exact table, a language model that reads retrieved
evidence (two passes, asked in other words with the evidence in another order, must agree, else the label is "insufficient"), and people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, Field

from fairlead.core.claims import ClaimedAnswer, ClaimLabel, ClaimSpan
from fairlead.core.errors import DataError
from fairlead.llm import LanguageModel, quote_data
from fairlead.probes.claims.cost import Cost
from fairlead.probes.claims.retrieval import Evidence, Passage
from fairlead.probes.labelled import CLAIM_LABELS

_TASKS = (
    "You check a claim against passages, and against nothing else: what you know yourself does not count. Answer 'supported' if the "
    "passages state the claim or it follows from them, 'contradicted' if they state something that cannot be true together with it, and "
    "'insufficient' in all other cases. The answer in which the claim stands is given so that you see what it is about.",
    "Somebody made the claim below in an answer. Try to refute it with the passages, which are all that is known: first look for what they "
    "say about the same thing. Where they say something else than the claim, the label is 'contradicted'. Only where they leave no doubt "
    "that it is true is it 'supported'. Where they do not settle it, even if it sounds likely, it is 'insufficient'.",
)


class Verifier(Protocol):
    """Labels claims."""

    cost: Cost

    def verify(self, answer: ClaimedAnswer) -> ClaimedAnswer:
        """The answer with every claim labelled."""
        ...


class TableVerifier:
    """Looks claims up in a table of statements; what is not in it is insufficient."""

    def __init__(self, table: Mapping[str, ClaimLabel]) -> None:
        self.cost = Cost()
        self._table = {normal(claim): label for claim, label in table.items()}

    @classmethod
    def read(cls, path: str | Path) -> TableVerifier:
        """Read JSONL with `claim` and `label` on each line.

        Raises:
            DataError: Missing file or a broken line.
        """
        table: dict[str, ClaimLabel] = {}
        for number, record in _lines(Path(path)):
            if not isinstance(record.get("claim"), str):
                raise DataError("must be a text.", source=str(path), line=number, field="claim")
            table[record["claim"]] = _label(record, Path(path), number)
        return cls(table)

    def verify(self, answer: ClaimedAnswer) -> ClaimedAnswer:
        """The answer with every claim labelled."""

        def look_up(claim: ClaimSpan) -> ClaimSpan:
            self.cost.claims += 1
            return claim.model_copy(update={"label": self._table.get(normal(claim.text), "insufficient")})

        return answer.model_copy(update={"claims": tuple(map(look_up, answer.claims))})


class CheckAnswer(BaseModel):
    """What a language model must answer about a claim."""

    label: ClaimLabel
    passage: int | None = Field(default=None, description="number of the passage that decides")
    reason: str = Field(default="", description="at most twenty words")


class EvidenceVerifier:
    """Has a language model hold each claim against the nearest passages, twice.

    The second pass asks in other words and sees the passages in reverse order: at temperature 0 the same prompt would only agree with
    itself. Labels that differ make the claim insufficient, and so does a claim for which no passage was found (without any call).
    """

    def __init__(
        self, llm: LanguageModel, evidence: Evidence, *, num_passages: int = 5, num_passes: int = 2
    ) -> None:
        self.cost = Cost()
        self._llm, self._evidence = llm, evidence
        self._num_passages, self._num_passes = num_passages, num_passes

    def verify(self, answer: ClaimedAnswer) -> ClaimedAnswer:
        """The answer with every claim labelled.

        Raises:
            LLMError: The endpoint failed, or did not answer to the schema.
        """
        return answer.model_copy(update={"claims": tuple(self._check(answer, c) for c in answer.claims)})

    def _check(self, answer: ClaimedAnswer, claim: ClaimSpan) -> ClaimSpan:
        self.cost.claims += 1
        found = self._evidence.find(f"{answer.entity} {claim.text}", num=self._num_passages)
        if not found:
            return claim.model_copy(update={"label": "insufficient", "note": "no passage found"})
        verdicts = [self._ask(answer, claim, found, turn) for turn in range(self._num_passes)]
        labels = {verdict.label for verdict in verdicts}
        if len(labels) > 1:
            self.cost.disagreements += 1
            return claim.model_copy(
                update={"label": "insufficient", "note": f"passes disagree: {', '.join(sorted(labels))}"}
            )
        first = verdicts[0]
        chosen = first.passage if first.passage is not None and 1 <= first.passage <= len(found) else None
        source = f"{found[chosen - 1].source}: " if chosen else ""
        return claim.model_copy(update={"label": first.label, "note": f"{source}{first.reason}"[:400]})

    def _ask(
        self, answer: ClaimedAnswer, claim: ClaimSpan, passages: Sequence[Passage], turn: int
    ) -> CheckAnswer:
        task, passages = _TASKS[turn % len(_TASKS)], passages[:: -1 if turn % 2 else 1]
        parts = [task, quote_data(answer.response, label="answer", max_chars=4000)]
        parts.append(quote_data(claim.text, label="claim", max_chars=1000))
        parts += [quote_data(p.text, label=f"passage {n}") for n, p in enumerate(passages, 1)]
        prompt = "\n\n".join(parts)
        return self.cost.ask(self._llm, prompt, CheckAnswer)


class HumanVerifier:
    """Asks a person at the terminal, claim by claim; an empty answer leaves a claim without a label."""

    KEYS: Mapping[str, ClaimLabel | None] = {
        "s": "supported",
        "c": "contradicted",
        "i": "insufficient",
        "": None,
    }

    def __init__(self, read: Callable[[str], str] = input) -> None:
        self.cost = Cost()
        self._read = read

    def verify(self, answer: ClaimedAnswer) -> ClaimedAnswer:
        """The answer with the person's labels."""
        return answer.model_copy(update={"claims": tuple(self._ask(answer, c) for c in answer.claims)})

    def _ask(self, answer: ClaimedAnswer, claim: ClaimSpan) -> ClaimSpan:
        self.cost.claims += 1
        asked = answer.messages[-1]["content"] if answer.messages else ""
        question = f"\n{asked}\n{answer.response}\n> {claim.text}\n[s]upported, [c]ontradicted, [i]nsufficient, Enter to leave open: "
        while (key := self._read(question).strip().lower()[:1]) not in self.KEYS:
            question = "s, c, i or Enter: "
        return claim.model_copy(update={"label": self.KEYS[key]})


def write_sheet(answers: Sequence[ClaimedAnswer], path: str | Path) -> int:
    """Write a JSONL sheet with one line a claim, `label` to be filled in; returns the number of lines."""
    lines = [
        {
            "answer": answer.id,
            "claim": place,
            "prompt": answer.messages[-1]["content"] if answer.messages else "",
            "response": answer.response,
            "text": claim.text,
            "label": claim.label or "",
        }
        for answer in answers
        for place, claim in enumerate(answer.claims)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(path).write_text(text, "utf-8")
    return len(lines)


def read_sheet(answers: Sequence[ClaimedAnswer], path: str | Path) -> list[ClaimedAnswer]:
    """The answers with the labels of a sheet; lines whose label is empty leave a claim as it was.

    Raises:
        DataError: A broken line, an unknown label, or a line about a claim that is not there.
    """
    path = Path(path)
    labels: dict[tuple[str, int], ClaimLabel] = {}
    known = {(a.id, place): c.text for a in answers for place, c in enumerate(a.claims)}
    for number, record in _lines(path):
        key = (str(record.get("answer")), record.get("claim"))
        if known.get(key) != record.get("text"):  # type: ignore[arg-type]
            raise DataError(
                "is not a claim of these answers. Next: fill in only the labels of the sheet.",
                source=str(path),
                line=number,
                field="claim",
            )
        if record.get("label"):
            labels[key] = _label(record, path, number)  # type: ignore[index]
    return [
        answer.model_copy(
            update={
                "claims": tuple(
                    claim.model_copy(update={"label": labels.get((answer.id, place), claim.label)})
                    for place, claim in enumerate(answer.claims)
                )
            }
        )
        for answer in answers
    ]


def normal(text: str) -> str:
    """A claim without case, outer punctuation and runs of white space."""
    return re.sub(r"\s+", " ", text).strip(" \t\n.,;:!?\"'").casefold()


def _lines(path: Path) -> list[tuple[int, dict]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}). Next: check the path.", source=str(path)) from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON ({error}).", source=str(path), line=number) from error
        if not isinstance(record, dict):
            raise DataError("must be a JSON object.", source=str(path), line=number)
        found.append((number, record))
    return found


def _label(record: dict, path: Path, line: int) -> ClaimLabel:
    label = record.get("label")
    if label not in CLAIM_LABELS:
        raise DataError(
            f"is {label!r}; use one of {', '.join(CLAIM_LABELS)}.", source=str(path), line=line, field="label"
        )
    return label
