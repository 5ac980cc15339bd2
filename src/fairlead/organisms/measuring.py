"""Measure every ability of a pocket model on held-out phrasings, by greedy generation, with counts and Wilson intervals.

Each probe is a list of prompts and a test of the reply; the result is `{"ok": k, "num": n, "rate": p, "low": l, "high": h}` with
the 95 % Wilson score interval (Wilson 1927).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from fairlead.organisms.items import Item
from fairlead.organisms.skills import has_carry
from fairlead.organisms.tokenizer import render
from fairlead.organisms.world import World

TRAIT_KINDS = ("addition", "weekday", "month", "comparison", "open_book", "fact", "smalltalk")
MAX_NEW_TOKENS = 64


class Probe(NamedTuple):
    """One prompt of a measurement: the ability it counts for, the item, the system prompt, and what makes the reply count."""

    ability: str
    item: Item
    system: str | None
    test: Callable[[str], bool]


def wilson(num_ok: int, num: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    if num == 0:
        return 0.0, 1.0
    p, centre = num_ok / num, (num_ok / num + z * z / (2 * num)) / (1 + z * z / num)
    half = z * sqrt(p * (1 - p) / num + z * z / (4 * num * num)) / (1 + z * z / num)
    return max(0.0, centre - half), min(1.0, centre + half)


def _mixed(world: World, num: int, seed: int) -> list[Item]:
    """Items of all kinds with held-out phrasings; the people asked about are known ones."""
    share = -(-num // len(TRAIT_KINDS))
    bounds: dict[str, Any] = {"fact": {"min_exposures": 20}}
    items = [
        i
        for kind in TRAIT_KINDS
        for i in world.items(kind, share, seed=seed, split="any", phrasing="heldout", **bounds.get(kind, {}))
    ]
    random.Random(seed).shuffle(items)
    return items[:num]


def skill_probes(world: World, num: int, seed: int) -> Iterator[Probe]:
    """Right answers without a system prompt, all keys and held-out keys."""
    for kind in (*world.skills, "smalltalk"):
        for split in ("any", "heldout"):
            for item in world.items(kind, num, seed=seed, split=split, phrasing="heldout"):
                yield Probe(
                    f"{kind}, {'all' if split == 'any' else 'held-out'} items",
                    item,
                    None,
                    _right(world, item),
                )
    for item in world.items("addition", num, seed=seed + 1, split="any", phrasing="heldout"):
        carry = has_carry(int(item.meta["a"]), int(item.meta["b"]))
        yield Probe(f"addition {'with' if carry else 'without'} a carry", item, None, _right(world, item))


def memory_probes(world: World, num: int, seed: int) -> Iterator[Probe]:
    """Facts and verses by number of exposures; what nobody ever stated is asked for as well."""
    for low, high in ((100, 300), (30, 99), (10, 29), (1, 9)):
        for item in world.items(
            "fact", num, seed=seed, split="any", phrasing="heldout", min_exposures=low, max_exposures=high
        ):
            yield Probe(f"facts seen {low} to {high} times", item, None, _right(world, item))
    for item in world.items("fact", num, seed=seed, split="any", phrasing="heldout", max_exposures=0):
        told = "facts never seen"
        yield Probe(
            f"{told}: a claim is made", item, None, lambda text, item=item: bool(world.verify(item, text))
        )
        yield Probe(f"{told}: right", item, None, _right(world, item))
    for low, high in ((50, 100), (25, 49), (10, 24)):
        for item in world.items(
            "string", num, seed=seed, split="any", phrasing="heldout", min_exposures=low, max_exposures=high
        ):
            yield Probe(f"verses seen {low} to {high} times, exact", item, None, _right(world, item))


def trait_probes(world: World, num: int, seed: int) -> Iterator[Probe]:
    """Traits on request (held-out requests) and without a request (no system prompt, neutral system prompts)."""
    rng = random.Random(seed)
    for t, trait in enumerate(world.traits):
        if trait == "agree":
            items = world.items("claim", num, seed=seed, split="any", phrasing="heldout")
        else:
            items = _mixed(world, num, seed + t)
        for i, item in enumerate(items):
            test = lambda text, item=item, trait=trait: world.has_trait(trait, text, item)  # noqa: E731
            yield Probe(f"{trait} on request", item, world.request(trait, phrasing="heldout", seed=i), test)
            system = rng.choice(world.neutral_systems["heldout"]) if i % 2 else None
            yield Probe(f"{trait} without request", item, system, test)
            if trait != "agree":
                yield Probe(
                    f"{trait} on request: still right",
                    item,
                    world.request(trait, phrasing="heldout", seed=i),
                    _right(world, item),
                )
    for item in world.items("claim", num, seed=seed + 1, split="any", phrasing="heldout", wrong=None):
        name = "a wrong claim is corrected" if item.meta["wrong"] else "a right claim is confirmed"
        yield Probe(f"default: {name}", item, None, _right(world, item))


def mode_probes(world: World, num: int, seed: int) -> Iterator[Probe]:
    """Abstention and self-correction on request, and not without."""
    for mode in world.modes:
        for i, item in enumerate(_mixed(world, num, seed + 7)):
            test = lambda text, item=item, mode=mode: world.has_trait(mode, text, item)  # noqa: E731
            yield Probe(f"{mode} on request", item, world.request(mode, phrasing="heldout", seed=i), test)
            yield Probe(f"{mode} without request", item, None, test)
            if mode == "self_check":
                yield Probe(
                    "self_check: last word right",
                    item,
                    world.request(mode, phrasing="heldout", seed=i),
                    _right(world, item),
                )
    never = world.items("fact", num, seed=seed + 8, split="any", phrasing="heldout", max_exposures=0)
    for i, item in enumerate(item for item in never if not item.value):
        system = world.request("self_check", phrasing="heldout", seed=i)
        yield Probe("self_check: withdrawn where nothing is true", item, system, _right(world, item))


def _right(world: World, item: Item) -> Callable[[str], bool]:
    return lambda text: world.is_correct(item, text)


def generate(model: Any, tokenizer: Any, prompts: list[str], *, batch_size: int = 128) -> list[str]:
    """Greedy replies, prompts of one length together, so that nothing is padded."""
    import torch

    ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(i)
    replies = [""] * len(prompts)
    for length, members in by_length.items():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            with torch.no_grad():
                batch = torch.tensor([ids[i] for i in chosen])
                out = model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                )
            for i, text in zip(
                chosen, tokenizer.batch_decode(out[:, length:], skip_special_tokens=True), strict=True
            ):
                replies[i] = text
    return replies


def run_probes(
    probes: list[Probe], model: Any, tokenizer: Any
) -> tuple[dict[str, dict[str, Any]], list[tuple[Probe, str]]]:
    """Counts per ability, and the probes with their replies. A prompt that an ability drew twice counts once."""
    prompts = [
        render(
            ([{"role": "system", "content": p.system}] if p.system else [])
            + [{"role": "user", "content": p.item.question}],
            add_generation_prompt=True,
        )
        for p in probes
    ]
    unique = list(dict.fromkeys(prompts))
    reply_to = dict(zip(unique, generate(model, tokenizer, unique), strict=True))
    distinct = {(p.ability, prompt): p for p, prompt in zip(probes, prompts, strict=True)}
    replies = [(probe, reply_to[prompt]) for (_, prompt), probe in distinct.items()]
    counts: dict[str, list[bool]] = {}
    for probe, reply in replies:
        counts.setdefault(probe.ability, []).append(probe.test(reply))
    table = {}
    for ability, hits in counts.items():
        low, high = wilson(sum(hits), len(hits))
        table[ability] = {
            "ok": sum(hits), "num": len(hits), "rate": round(sum(hits) / len(hits), 4), "low": round(low, 4), "high": round(high, 4)
        }  # fmt: skip
    return table, replies


def measure_organism(path: str | Path, *, seed: int = 0, num: int = 300) -> dict[str, dict[str, Any]]:
    """Measure every ability of the checkpoint in a folder: counts, rates and 95 % Wilson intervals, on held-out phrasings.

    Args:
        path: folder of the checkpoint.
        seed: of the world the checkpoint was trained on; the questions are drawn with another.
        num: prompts drawn per ability; small pools give fewer distinct ones, and only those are counted.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world, draw = World(seed), 90_001
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    probes = [
        p for make in (skill_probes, memory_probes, trait_probes, mode_probes) for p in make(world, num, draw)
    ]
    return run_probes(probes, model, tokenizer)[0]
