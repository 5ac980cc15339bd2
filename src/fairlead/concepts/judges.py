"""The judges that read: a language model with typed answers, and a person at the terminal.

Both see the same card of a concept: label, tokens, contexts with the strongest token marked. To the language model everything that
comes from data is quoted as data (`llm.quote_data`), and its answer is a record whose clause must exist and fit the
verdict; anything else is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from fairlead.core.errors import JudgeError
from fairlead.core.progress import track
from fairlead.core.records import Clause, Concept, Decision, Menu, Spec, TokenContext
from fairlead.llm import LanguageModel, quote_data

_TASK = (
    "You decide what a model should learn from a training set. You get the clauses of a specification (Keep and Avoid) "
    "and one concept: a group of internal features of the model, described by the tokens that set it apart and by texts in "
    "which it is active, with the strongest token between >> and <<. Decide which clause, if any, speaks about this concept: "
    "verdict keep or avoid with the id of that clause, or ignore with clause null when none does or you cannot tell. Give "
    "your confidence from 0 to 1 and one sentence of reason."
)


class LLMDecision(BaseModel):
    """What a language model must answer."""

    verdict: Literal["keep", "avoid", "ignore"]
    clause: str | None = Field(default=None, description="id of the clause, such as avoid.1; null for ignore")
    confidence: float = Field(ge=0, le=1)
    reason: str


def show_context(context: TokenContext) -> str:
    """A context as text with its strongest token marked."""
    if not context.scores or max(context.scores) <= 0:
        return "".join(context.tokens)
    best = max(range(len(context.scores)), key=lambda place: context.scores[place])
    return "".join(f">>{token}<<" if place == best else token for place, token in enumerate(context.tokens))


def judge_llm(
    menu: Menu | Sequence[Concept], spec: Spec, llm: LanguageModel, *, num_contexts: int = 5
) -> list[Decision]:
    """Ask a language model about each concept, one question each.

    Raises:
        LLMError: The endpoint failed or did not answer to the schema.
        JudgeError: The answer names a clause that does not exist or is of the other kind.
    """
    clauses = "\n\n".join(_clause_card(clause) for clause in spec.clauses)
    decisions = []
    for concept in track(_concepts(menu), "judge", unit="concepts"):
        question = f"{_TASK}\n\nClauses:\n\n{clauses}\n\nConcept {concept.id}:\n\n{_concept_card(concept, num_contexts)}"
        answer = llm.complete([{"role": "user", "content": question}], schema=LLMDecision, temperature=0.0)
        assert isinstance(answer, LLMDecision)
        clause = _checked_clause(answer, spec, concept, llm.name)
        decisions.append(
            Decision(
                concept=concept.id,
                label=concept.label,
                verdict=answer.verdict,
                clause=clause,
                margin=answer.confidence if answer.verdict != "ignore" else 0.0,
                confidence=answer.confidence,
                reason=answer.reason.strip() or "(the model gave no reason)",
                judge=f"llm:{llm.name}",
            )
        )
    return decisions


def judge_ask(
    menu: Menu | Sequence[Concept],
    spec: Spec,
    *,
    ask: Callable[[str], str] | None = None,
    show: Callable[[str], None] | None = None,
    num_contexts: int = 3,
) -> list[Decision]:
    """Let a person decide each concept at the terminal.

    Answers: a clause id (`avoid.1`), `keep` or `avoid` (where the spec has one such clause), `ignore` or an empty line, `quit` to ignore
    the rest; words after it are kept as the reason.

    Args:
        ask: Takes the prompt and returns the answer; None: standard input, prompt on standard error.
        show: Prints a card; None: standard error.

    Raises:
        JudgeError: The input ended.
    """
    ask, show = ask or _ask_terminal, show or _show_terminal
    concepts = _concepts(menu)
    decisions: list[Decision] = []
    stopped = False
    for number, concept in enumerate(concepts):
        if stopped:
            decisions.append(
                _asked(concept, "ignore", None, "not looked at: the person stopped before it", confidence=0.0)
            )
            continue
        card = _concept_text(concept, num_contexts)
        show(
            f"\n[{number + 1}/{len(concepts)}] {card}\nClauses: "
            + "; ".join(f"{c.id} ({c.text})" for c in spec.clauses)
        )
        while True:
            try:
                words = ask("clause id, keep, avoid, ignore or quit [ignore]: ").strip().split(maxsplit=1)
            except EOFError:
                raise JudgeError(
                    f"the input ended at concept {concept.id} ({number} of {len(concepts)} decided). Next: run it in a terminal, or use "
                    "--judge examples."
                ) from None
            choice, reason = (
                (words[0].lower() if words else "ignore"),
                (words[1] if len(words) > 1 else "a person decided"),
            )
            if choice in ("quit", "q"):
                stopped = True
                choice, reason = "ignore", "the person stopped here"
            if choice in ("ignore", "i"):
                decisions.append(_asked(concept, "ignore", None, reason))
                break
            found = _find_clause(choice, spec)
            if found is not None:
                decisions.append(_asked(concept, found.kind, found.id, reason))
                break
            show(
                f"'{choice}' is not understood: give one of {', '.join(c.id for c in spec.clauses)}, ignore or quit."
            )
    return decisions


def _concepts(menu: Menu | Sequence[Concept]) -> list[Concept]:
    return [line.concept for line in menu.lines] if isinstance(menu, Menu) else list(menu)


def _clause_card(clause: Clause) -> str:
    lines = [f"{clause.id} ({clause.kind}):", quote_data(clause.text, label="clause")]
    for example in clause.examples[:3]:
        lines.append(quote_data(f"{example.prompt or ''} -> {example.text}", label="example"))
    return "\n".join(lines)


def _concept_text(concept: Concept, num_contexts: int) -> str:
    lines = [
        f"{concept.id}: {concept.label}",
        "tokens: " + " | ".join(token.strip() for token in concept.tokens),
    ]
    lines += [f"  {show_context(context)!r}" for context in concept.examples[:num_contexts]]
    return "\n".join(lines)


def _concept_card(concept: Concept, num_contexts: int) -> str:
    parts = [quote_data(" | ".join(concept.tokens) or "(none)", label="tokens")]
    parts += [quote_data(show_context(context), label="text") for context in concept.examples[:num_contexts]]
    return "\n".join(parts)


def _checked_clause(answer: LLMDecision, spec: Spec, concept: Concept, name: str) -> str | None:
    if answer.verdict == "ignore":
        return None
    known = {clause.id: clause.kind for clause in spec.clauses}
    if answer.clause not in known or known[answer.clause] != answer.verdict:
        raise JudgeError(
            f"{name}: about concept {concept.id} it answered {answer.verdict} with clause {answer.clause!r}, which is no {answer.verdict} "
            f"clause of the spec ({', '.join(known)}). Next: use a more capable model, or --judge examples."
        )
    return answer.clause


def _find_clause(choice: str, spec: Spec) -> Clause | None:
    found = [clause for clause in spec.clauses if clause.id == choice or (clause.kind == choice)]
    return found[0] if len(found) == 1 or (found and found[0].id == choice) else None


def _asked(
    concept: Concept,
    verdict: Literal["keep", "avoid", "ignore"],
    clause: str | None,
    reason: str,
    *,
    confidence: float = 1.0,
) -> Decision:
    return Decision(
        concept=concept.id,
        label=concept.label,
        verdict=verdict,
        clause=clause,
        margin=0.0 if verdict == "ignore" else 1.0,
        confidence=confidence,
        reason=reason,
        judge="ask",
    )


def _ask_terminal(prompt: str) -> str:
    from rich.console import Console

    return Console(stderr=True).input(prompt)


def _show_terminal(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, highlight=False)
