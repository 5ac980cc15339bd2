"""The `examples` judge: which clause's examples a concept fires on, without a language model.

For each concept and clause, two comparisons of the concept's mean activation in an answer:

- with the *counterparts*: the clause's examples against their `instead` versions (same prompt, so only the behaviour differs);
- with the *background*: the clause's examples against ordinary texts and the counterparts of other clauses.

Each gives a margin 2 AUROC - 1 in [-1, 1], times a shrinkage n / (n + 1) for the number of examples; the clause's margin is the smaller of
those it has. Counterparts thereby decide what an Avoid clause is about: a concept of the topic fires on both sides and gets
nothing. A concept goes to the clause with the largest margin if that exceeds `min_margin` and beats every clause of the other kind by
`tie`. An Avoid clause whose examples show no more than a trace of what the data shows (less than `TRACE` of the concept's mean in the
strongest tenth of the data's answers) does not get it: a flattering example has an exclamation mark, too, and is not about shouting.
Confidence: share of bootstrap resamples of all example sets in which the same verdict comes out, times the shrinkage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fairlead.concepts.profiles import TextActivations, text_activations
from fairlead.core.errors import JudgeError
from fairlead.core.records import Clause, Concept, Decision, Menu, Spec, Verdict
from fairlead.core.stats import auroc
from fairlead.data import encode, has_chat_template
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from fairlead.models import Model

MIN_MARGIN = 0.5
TIE = 0.15
TRACE = 1 / 3
NUM_RESAMPLES = 100


class ClauseSets(NamedTuple):
    """Where a clause's texts stand in one list of all texts.

    Attributes:
        clause: The clause.
        shown: Places of its examples.
        instead: Places of the counterparts (of those examples that have one).
        other: Places of the background: ordinary texts and the counterparts of other clauses.
        data: Places of the data's own rows.
    """

    clause: Clause
    shown: np.ndarray
    instead: np.ndarray
    other: np.ndarray
    data: np.ndarray


class ClauseMargin(NamedTuple):
    """How well a clause's examples tell a concept.

    Attributes:
        margin: The smaller of the next two.
        counterpart: Against the examples' counterparts.
        background: Against ordinary texts.
        share: Mean activation on the examples over that in the strongest tenth of the data's answers.
    """

    margin: float
    counterpart: float | None
    background: float | None
    share: float | None = None


def clause_margin(acts: TextActivations, concept: int, sets: ClauseSets) -> ClauseMargin:
    """Margin of one clause for the concept in a column; 0 where the clause has nothing to compare with."""
    shrink = len(sets.shown) / (len(sets.shown) + 1.0)

    def margin(column: np.ndarray, places: np.ndarray) -> float:
        return (2 * auroc(column[sets.shown], column[places]) - 1) * shrink

    response, whole = acts.response[:, concept], acts.whole[:, concept]
    counterpart = margin(response, sets.instead) if len(sets.instead) else None
    background = max(margin(response, sets.other), margin(whole, sets.other)) if len(sets.other) else None
    known = [value for value in (counterpart, background) if value is not None]
    share = None
    if len(sets.data):
        strongest = np.sort(response[sets.data])[-max(1, len(sets.data) // 10) :].mean()
        share = float(response[sets.shown].mean() / max(strongest, 1e-9))
    return ClauseMargin(min(known) if known else 0.0, counterpart, background, share)


def judge_examples(
    model: Model,
    dictionary: Dictionary,
    menu: Menu | Sequence[Concept],
    spec: Spec,
    *,
    background: Sequence[Any] = (),
    data: Sequence[Any] = (),
    min_margin: float = MIN_MARGIN,
    tie: float = TIE,
    max_length: int | None = None,
    seed: int = 0,
) -> list[Decision]:
    """Decide each concept of a menu by the examples of a spec.

    Args:
        background: Ordinary texts (rows, chats or strings) that show none of the clauses; without them only counterparts and
            the examples of other clauses are left to compare with, which is said in the reason.
        data: Rows of the data that the menu is of, to tell what the examples show from a trace of something else.
        min_margin: Below it a concept is ignored.
        tie: Least lead over the best clause of the other kind.
        max_length: Longer examples are cut; None: the model's limit.
        seed: Of the bootstrap.

    Raises:
        JudgeError: No clause has an example.
        DictionaryError: The dictionary was made for another model.
    """
    dictionary.check(model)
    concepts = [line.concept for line in menu.lines] if isinstance(menu, Menu) else list(menu)
    texts, sets = _collect(spec, background, data, chat=has_chat_template(model.tokenizer))
    if not sets:
        raise JudgeError(
            f"{spec.source or 'spec'}: no clause has an example, so the examples judge has nothing to go by. Next: add quoted "
            "examples to the clauses, or use --judge llm or --judge ask."
        )
    if not concepts:
        return []
    encoded = encode(texts, model.tokenizer, max_length=max_length or model.max_length, on_long="truncate")
    acts = text_activations(model, dictionary, concepts, encoded)
    rng = np.random.default_rng(seed)
    draws = [[_resample(one, rng) for one in sets] for _ in range(NUM_RESAMPLES)]
    return [
        _decide(concept, place, acts, sets, draws, bool(background), min_margin=min_margin, tie=tie)
        for place, concept in enumerate(concepts)
    ]


def _collect(
    spec: Spec, background: Sequence[Any], data: Sequence[Any], *, chat: bool = True
) -> tuple[list[Any], list[ClauseSets]]:
    texts: list[Any] = []

    def add(answer: str, prompt: str | None) -> int:
        if prompt is None and not chat:
            texts.append(answer)  # a model of plain text reads the example as it stands
        elif prompt is None:
            texts.append([{"role": "user", "content": ""}, {"role": "assistant", "content": answer}])
        else:
            texts.append([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
        return len(texts) - 1

    places: dict[str, tuple[list[int], list[int]]] = {}
    for clause in spec.clauses:
        shown = [add(example.text, example.prompt) for example in clause.examples]
        instead = [
            add(example.instead, example.prompt) for example in clause.examples if example.instead is not None
        ]
        places[clause.id] = (shown, instead)
    ordinary = list(range(len(texts), len(texts) + len(background)))
    texts.extend(background)
    rows = np.arange(len(texts), len(texts) + len(data))
    texts.extend(data)
    sets = []
    for clause in spec.clauses:
        shown, instead = places[clause.id]
        if not shown:
            continue
        # Without ordinary texts the other clauses' own examples stand in for them.
        other = list(ordinary)
        for name, (theirs, counterparts) in places.items():
            if name != clause.id:
                other += counterparts if ordinary and clause.kind == "avoid" else []
                other += theirs if not ordinary else []
        sets.append(
            ClauseSets(
                clause, np.array(shown), np.array(instead, dtype=int), np.array(other, dtype=int), rows
            )
        )
    return texts, sets


def _resample(sets: ClauseSets, rng: np.random.Generator) -> ClauseSets:
    def draw(places: np.ndarray) -> np.ndarray:
        return rng.choice(places, len(places)) if len(places) else places

    return sets._replace(shown=draw(sets.shown), instead=draw(sets.instead), other=draw(sets.other))


def _choose(
    margins: Sequence[ClauseMargin], sets: Sequence[ClauseSets], *, min_margin: float, tie: float
) -> tuple[Verdict, int, float, int | None]:
    """Verdict, place of the best clause, its lead, and the place of the best clause of the other kind."""
    values = [margin.margin for margin in margins]
    best = int(np.argmax(values))
    rivals = [place for place, one in enumerate(sets) if one.clause.kind != sets[best].clause.kind]
    rival = max(rivals, key=lambda place: values[place]) if rivals else None
    lead = values[best] - max(values[rival], 0.0) if rival is not None else values[best]
    if values[best] < min_margin or lead < tie or _is_trace(margins[best], sets[best]):
        return "ignore", best, lead, rival
    return sets[best].clause.kind, best, lead, rival


def _decide(
    concept: Concept,
    place: int,
    acts: TextActivations,
    sets: Sequence[ClauseSets],
    draws: Sequence[Sequence[ClauseSets]],
    has_background: bool,
    *,
    min_margin: float,
    tie: float,
) -> Decision:
    margins = [clause_margin(acts, place, one) for one in sets]
    verdict, best, lead, rival = _choose(margins, sets, min_margin=min_margin, tie=tie)
    agree = 0
    for draw in draws:
        other, where, _, _ = _choose(
            [clause_margin(acts, place, one) for one in draw], draw, min_margin=min_margin, tie=tie
        )
        agree += other == verdict and (verdict == "ignore" or where == best)
    num = len(sets[best].shown)
    confidence = agree / len(draws) * num / (num + 1.0)
    clause = sets[best].clause
    numbers = _numbers(margins[best], num, acts, place, sets[best])
    if not has_background:
        numbers += "; no ordinary texts were at hand, so the other clauses' examples stood in for them"
    if verdict != "ignore":
        reason = f"It fires on the examples of {clause.id} ('{_short(clause.text)}'): {numbers}."
    elif margins[best].margin < min_margin:
        reason = f"No clause's examples set it apart: the nearest is {clause.id}, {numbers}; {min_margin:.2f} is needed."
    elif lead >= tie:
        reason = (
            f"The examples of {clause.id} show a trace of it only: {margins[best].share or 0.0:.0%} of its mean in the strongest tenth of "
            f"the data's answers, {TRACE:.0%} is needed. Next: if it is meant, give the clause examples like the data's."
        )
    else:
        other = sets[rival].clause.id if rival is not None else "another clause"
        reason = (
            f"A tie between {clause.id} and {other}: margins {margins[best].margin:.2f} and {margins[best].margin - lead:.2f}, "
            f"a lead of {tie:.2f} is needed. Next: give the clauses examples that differ, or use --judge ask."
        )
    return Decision(
        concept=concept.id,
        label=concept.label,
        verdict=verdict,
        clause=clause.id if verdict != "ignore" else None,
        margin=round(margins[best].margin, 4),
        confidence=round(confidence, 4),
        reason=reason,
        judge="examples",
    )


def _is_trace(margin: ClauseMargin, sets: ClauseSets) -> bool:
    return sets.clause.kind == "avoid" and margin.share is not None and margin.share < TRACE


def _numbers(margin: ClauseMargin, num: int, acts: TextActivations, place: int, sets: ClauseSets) -> str:
    parts = [f"margin {margin.margin:.2f} over {num} example{'s' if num != 1 else ''}"]
    if margin.counterpart is not None:
        shown, instead = acts.response[sets.shown, place].mean(), acts.response[sets.instead, place].mean()
        parts.append(
            f"mean activation {shown:.2g} there against {instead:.2g} on the counterparts ({margin.counterpart:+.2f})"
        )
    if margin.background is not None:
        shown, other = acts.whole[sets.shown, place].mean(), acts.whole[sets.other, place].mean()
        parts.append(f"{shown:.2g} against {other:.2g} on other texts ({margin.background:+.2f})")
    return ", ".join(parts)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
