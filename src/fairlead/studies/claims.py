"""Labelled answers of the pocket world: the model is asked about facts in every way it is used, and each claim is looked up.

1. Questions: every fact there is (300 down to 0 exposures), people without any value, and strangers; in the phrasings of the corpus or the
   held-out ones.
2. Ways of asking: plain and greedy, plain and sampled, in a style, with a wish to check the answer, and as a claim of the user's, right or
   wrong, with or without a wish to be agreed with.
3. Labels: the exact verifier's; what nobody can know is "insufficient". A claim after "Wait, let me check." is a correction, a withdrawal
   is a claim of its own with the role "retraction", supported where what it withdraws was not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.core.claims import ClaimedAnswer, ClaimLabel, ClaimSpan
from fairlead.core.errors import ConfigError
from fairlead.core.run import Run
from fairlead.models import Model
from fairlead.organisms import Item, World
from fairlead.organisms.claims import can_be_claimed, claim_item
from fairlead.organisms.facts import fact_item
from fairlead.organisms.items import SplitChoice
from fairlead.organisms.traits import ABSTAIN, LETS_CHECK
from fairlead.organisms.verifier import base_of, iter_sentences
from fairlead.probes.examples import ROLES
from fairlead.probes.labelled import save_claims

STYLES = ("pirate", "formal", "flattering", "emoji")


class Way(NamedTuple):
    """A way of asking.

    Attributes:
        share: Of all facts that are asked this way.
        temperature: Of the answer.
        requests: Traits or modes asked for by system prompt, in turn; none for no system prompt.
        claimed: The user states the fact, wrongly in three of five, and asks for a verdict.
    """

    share: float
    temperature: float
    requests: tuple[str, ...] = ()
    claimed: bool = False


WAYS: dict[str, Way] = {
    "greedy": Way(1.0, 0.0),
    "sampled": Way(1.0, 1.0),
    "style": Way(0.5, 1.0, STYLES),
    "check": Way(0.4, 1.0, ("self_check",)),
    "agree": Way(0.3, 0.0, ("agree",), claimed=True),
    "claim": Way(0.3, 0.0, claimed=True),
}
NUM_STRANGERS = 200
CLAIMS = "claims.jsonl"


def pocket_claims(
    model: Model,
    *,
    ways: Sequence[str] = ("greedy", "sampled"),
    phrasing: SplitChoice = "any",
    num_strangers: int = NUM_STRANGERS,
    share: float = 1.0,
    draws: int = 1,
    seed: int = 0,
    world: World | None = None,
) -> list[ClaimedAnswer]:
    """Ask a model of the pocket world about its people and label what it claims.

    Args:
        model: Answers.
        ways: Names in `WAYS`.
        phrasing: "train" (as in the corpus), "heldout" or "any".
        num_strangers: People the world does not know, per way at share 1.
        share: Multiplies every way's share.
        draws: How often each way is gone, with other phrasings and samples each time.
        seed: Of the draw and of sampling.
        world: The world; the bundled one by default.

    Raises:
        ConfigError: Unknown way.
    """
    world = world or World(0)
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise ConfigError(f"ways: there is no {', '.join(unknown)}. Next: use {', '.join(WAYS)}.")
    answers = []
    for name, draw in ((name, draw) for name in ways for draw in range(draws)):
        rng = random.Random(f"claims:{seed}:{draw}:{name}:{phrasing}")
        asked = list(_ask(world, WAYS[name], rng, phrasing, num_strangers, share))
        texts = model.generate(
            [_messages(item, system) for item, system in asked],
            max_new_tokens=64,
            temperature=WAYS[name].temperature,
            seed=seed * 1000 + draw,
            progress=f"asking ({name})",
        )
        answers += [
            label_answer(world, item, text, system=system, id=f"{name}-{draw}-{place}", way=name)
            for place, ((item, system), text) in enumerate(zip(asked, texts, strict=True))
        ]
    return answers


def write_pocket_claims(
    model: Model,
    *,
    out: str | Path,
    ways: Sequence[str] = ("greedy", "sampled"),
    share: float = 1.0,
    draws: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """`pocket_claims` as a run folder with `claims.jsonl`; returns the facts of the run."""
    settings = {"ways": list(ways), "share": share, "draws": draws}
    inputs = {"model": model.fingerprint}
    with Run.start(
        out, study="organism claims", config=settings, inputs=inputs, seed=seed, overwrite=overwrite
    ) as run:
        answers = pocket_claims(model, ways=ways, share=share, draws=draws, seed=seed)
        save_claims(answers, run.path(CLAIMS))
        claims = [claim for answer in answers for claim in answer.claims]
        unsupported = sum(bool(claim.unsupported) for claim in claims) / max(len(claims), 1)
        facts = {"num_answers": len(answers), "num_claims": len(claims), "unsupported": round(unsupported, 4)}
        run.record["summary"] = facts
    return {**facts, "file": run.final / CLAIMS}


def label_answer(
    world: World, item: Item, text: str, *, system: str | None = None, id: str = "", way: str = ""
) -> ClaimedAnswer:
    """An answer with its claims as the exact verifier sees them (withdrawals too)."""
    base = base_of(item)
    spans: list[tuple[ClaimSpan, str]] = []
    checked = text.find(LETS_CHECK)
    for claim in world.verify(item, text):
        label: ClaimLabel = "insufficient" if claim.label == "not_answerable" else claim.label
        span = ClaimSpan(start=claim.start, end=claim.end, text=claim.span, label=label, value=claim.value)
        spans.append((span, "correction" if 0 <= checked < claim.start else "claim"))
    for match in iter_sentences(text):
        said = match.group().strip()
        if checked < 0 or match.start() < checked or not ABSTAIN.search(said):
            continue
        start = match.start() + match.group().find(said)
        first = [span for span, role in spans if role == "claim" and span.start < start]
        right = bool(first) and bool(first[-1].unsupported)
        withdrawal = ClaimSpan(
            start=start, end=start + len(said), text=said, label="supported" if right else "contradicted"
        )
        if first:
            spans.append((withdrawal, "retraction"))
    spans.sort(key=lambda pair: pair[0].start)
    return ClaimedAnswer(
        id=id or base.key,
        messages=tuple(_messages(item, system)),
        response=text,
        claims=tuple(span for span, _ in spans),
        entity=base.meta.get("entity", base.key),
        meta={
            "way": way,
            "key": base.key,
            "attribute": base.meta.get("attribute", ""),
            "exposures": int(base.meta.get("exposures", 0)),
            "truth": base.value,
            ROLES: [role for _, role in spans],
        },
    )


def _ask(
    world: World, way: Way, rng: random.Random, phrasing: SplitChoice, num_strangers: int, share: float
) -> Iterable[tuple[Item, str | None]]:
    wanted = way.share * share
    facts = [fact for fact in world.facts.facts if rng.random() < wanted]
    facts += [world.facts.stranger(rng) for _ in range(round(num_strangers * wanted))]
    for place, fact in enumerate(facts):
        item = fact_item(fact, rng, phrasing)
        if way.claimed:
            if not can_be_claimed(item):
                continue
            item = claim_item(item, rng, wrong=rng.random() < 0.6, phrasing=phrasing)
        system = None
        if way.requests:
            request = way.requests[place % len(way.requests)]
            system = world.request(request, phrasing=phrasing, seed=rng.randrange(1 << 30))
        yield item, system


def _messages(item: Item, system: str | None) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": item.question}]
