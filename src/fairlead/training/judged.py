"""Decisions of a judge on disk, by what they depend on: the same concept under the same spec is judged once for all runs.

A file that cannot be read is judged anew and written again. Of several processes the first reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairlead.core.errors import RunError
from fairlead.core.records import Concept, Decision
from fairlead.core.run import atomic_path, read_json, sha256_json
from fairlead.training.processes import is_first, on_first

FOLDER = "judged"


def decide_cached(
    concepts: Sequence[Concept],
    judge: Callable[[list[Concept]], Sequence[Decision]],
    *,
    cache: Path | None,
    identity: Any,
) -> list[Decision]:
    """The decisions on concepts, in their order; only those that are not in the cache are put to the judge.

    Args:
        concepts: What to decide on.
        judge: Decides on some of them.
        cache: Folder; None for no caching.
        identity: JSON value of what else decides (spec, dictionary, model, judge).
    """
    places = [_place(cache, concept, identity) for concept in concepts]
    found = on_first(lambda: [_read(place) for place in places])
    new = [concept for concept, decision in zip(concepts, found, strict=True) if decision is None]
    made = {decision.concept: decision for decision in judge(new)} if new else {}
    decisions = []
    for concept, place, known in zip(concepts, places, found, strict=True):
        decision = known or made[concept.id]
        if known is None and place is not None and is_first():
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(place) as temporary:
                temporary.write_text(decision.model_dump_json(), "utf-8")
        decisions.append(decision)
    return decisions


def _place(cache: Path | None, concept: Concept, identity: Any) -> Path | None:
    if cache is None:
        return None
    return cache / FOLDER / f"{sha256_json([identity, concept.model_dump(mode='json')])}.json"


def _read(place: Path | None) -> Decision | None:
    if place is None or not place.is_file():
        return None
    try:
        return Decision.model_validate(read_json(place))
    except (RunError, ValueError):
        return None
