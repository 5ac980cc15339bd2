"""Does AutoSteer turn a trait on, and off where it is requested? All six traits, on held-out questions, beside placebos.

For each seed a dictionary, for each trait one AutoSteer from its description alone (no paraphrase, no checker: the effect that it
calibrates on is its own readout of the contrast). The edits are then judged by the world's checkers on questions that AutoSteer did not
see, phrased in ways that the model did not see; for "off", with held-out phrasings of the request. Placebos: random latents with random
weights whose directions have the same norms at the same places and conditions, and a random concept's latents at the same strength.

    python -m benchmarks.steering --seeds 3 --out runs/steering --publish steering
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.summary import cell, write_table
from fairlead.concepts import (
    EditSet,
    apply_edits,
    autosteer,
    build_concepts,
    edited_logprobs,
    mean_loss,
    random_edits,
)
from fairlead.core.progress import say
from fairlead.core.records import Concept
from fairlead.core.run import read_json, write_json
from fairlead.data import Encoded, Message, Row, encode
from fairlead.dictionaries import Dictionary, DictionaryConfig, load_dictionary, train_dictionary
from fairlead.models import Model, load_model
from fairlead.organisms import Item, World
from fairlead.studies.preview_texts import chats

COLUMNS = (
    ("on", "turned on"),
    ("on_request", "on request (ceiling)"),
    ("on_random", "random directions"),
    ("on_concept", "random concept"),
    ("on_right", "right answers: steered / on request"),
    ("on_loss", "loss of the answers, on request: steered / own"),
    ("dressed_loss", "loss on requested answers: steered / on request"),
    ("off", "turned off"),
    ("off_random", "random directions (off)"),
    ("off_right", "right answers: steered / plain"),
    ("neutral", "neutral loss, off edits"),
    ("neutral_on", "neutral loss, on edits (plain answers are no longer given)"),
)
KINDS = ("addition", "weekday", "month", "comparison", "open_book", "fact", "smalltalk")


def questions(world: World, trait: str, num: int, seed: int) -> list[Item]:
    """Held-out phrasings of questions of all kinds; wrong claims for the trait of agreeing."""
    if trait == "agree":
        return world.items("claim", num, seed=seed, split="any", phrasing="heldout")
    share = -(-num // len(KINDS))
    found = []
    for kind in KINDS:
        bounds: dict[str, Any] = {"min_exposures": 20} if kind == "fact" else {}
        found += world.items(kind, share, seed=seed, split="any", phrasing="heldout", **bounds)
    random.Random(seed).shuffle(found)
    return found[:num]


def dictionary_of(model: Model, world: World, seed: int, folder: Path, site: str) -> Dictionary:
    """Trained on the world's corpus, or loaded where that was done before."""
    if folder.is_dir():
        return load_dictionary(folder)
    texts = chats(list(world.corpus(6000, seed=1000 + seed)), "the pocket world's corpus")
    return train_dictionary(model, texts, site=site, config=DictionaryConfig.make(seed=seed), out=folder)


class Judge:
    """Answers of the model to test questions, and what the world says of them."""

    def __init__(
        self, model: Model, dictionary: Dictionary, world: World, trait: str, items: list[Item]
    ) -> None:
        self.model, self.dictionary, self.world, self.trait, self.items = (
            model,
            dictionary,
            world,
            trait,
            items,
        )
        self.plain = [[Message("user", item.question)] for item in items]
        self.asked = [
            [Message("system", world.request(trait, phrasing="heldout", seed=place)), *chat]
            for place, chat in enumerate(self.plain)
        ]

    def answer(self, prompts: list[list[Message]], edits: EditSet | None = None) -> list[str]:
        """With or without edits."""
        if edits is None:
            return self.model.generate(prompts, max_new_tokens=48)
        with apply_edits(self.model, self.dictionary, edits) as session:
            return self.model.generate(prompts, max_new_tokens=48, follower=session)

    def shows(self, answers: list[str]) -> float:
        """Share with the trait."""
        return _mean(self.world.has_trait(self.trait, a, i) for a, i in zip(answers, self.items, strict=True))

    def right(self, answers: list[str]) -> float:
        """Share that is right."""
        return _mean(self.world.is_correct(i, a) for a, i in zip(answers, self.items, strict=True))

    def encoded(self, prompts: list[list[Message]], answers: list[str]) -> list[Encoded]:
        """Prompts with answers."""
        rows = [
            Row(messages=(*chat, Message("assistant", text.strip() or ".")))
            for chat, text in zip(prompts, answers, strict=True)
        ]
        return encode(rows, self.model.tokenizer, max_length=self.model.max_length, on_long="truncate")

    def loss(self, prompts: list[list[Message]], answers: list[str], edits: EditSet | None = None) -> float:
        """Nats per answer token."""
        texts = self.encoded(prompts, answers)
        if edits is None:
            return mean_loss(self.model.logprobs(texts), texts)
        return mean_loss(edited_logprobs(self.model, self.dictionary, edits, texts), texts)


def _mean(values: Any) -> float:
    kept = [float(value) for value in values]
    return sum(kept) / len(kept)


def random_concept(edits: EditSet, concepts: list[Concept], dictionary: Dictionary, *, seed: int) -> EditSet:
    """A random concept's latents in equal parts, at the norm of each edit and under its conditions."""
    rng, decoder, made = random.Random(seed), dictionary.decoder.float(), []
    for edit in edits.edits:
        latents = rng.choice(concepts).latents
        changes: dict[str, Any] = {"latents": latents}
        if edit.weights:
            norm = (torch.tensor(edit.weights) @ decoder[list(edit.latents)]).norm()
            changes["weights"] = (float(norm / decoder[list(latents)].sum(0).norm()),) * len(latents)
        made.append(edit.model_copy(update=changes))
    return edits.model_copy(update={"edits": tuple(made)})


def measure_trait(
    model: Model,
    dictionary: Dictionary,
    concepts: list[Concept],
    world: World,
    trait: str,
    seed: int,
    out: Path,
) -> dict[str, float]:
    """One trait with one dictionary."""
    description = world.trait(trait).train[0]
    prompts = [item.question for item in questions(world, trait, 64, 11 + seed)]
    judge = Judge(model, dictionary, world, trait, questions(world, trait, 70, 21 + seed))
    found = {}
    for direction in ("on", "off"):
        found[direction] = autosteer(model, dictionary, description, prompts, direction=direction)
        found[direction].edits.save(out / f"{trait}-{direction}.edits.json")
        write_json(
            out / f"{trait}-{direction}.steering.json", found[direction].report.model_dump(mode="json")
        )
    on, off = found["on"].edits, found["off"].edits
    plain, asked = judge.answer(judge.plain), judge.answer(judge.asked)
    steered, stopped = judge.answer(judge.plain, on), judge.answer(judge.asked, off)
    neutral = encode(
        chats(world.neutral(200, seed=90 + seed), "neutral"), model.tokenizer, max_length=model.max_length
    )
    before = mean_loss(model.logprobs(neutral), neutral)
    placebo = {
        "on_random": judge.shows(judge.answer(judge.plain, random_edits(on, dictionary, seed=seed))),
        "on_concept": judge.shows(
            judge.answer(judge.plain, random_concept(on, concepts, dictionary, seed=seed))
        ),
        "off_random": 1.0 - judge.shows(judge.answer(judge.asked, random_edits(off, dictionary, seed=seed))),
    }
    return {
        "on": judge.shows(steered),
        "on_plain": judge.shows(plain),
        "on_request": judge.shows(asked),
        "on_right": judge.right(steered),
        "asked_right": judge.right(asked),
        "on_loss": judge.loss(judge.asked, steered),
        "asked_loss": judge.loss(judge.asked, asked),
        "dressed_loss": judge.loss(judge.plain, asked, on),
        "off": 1.0 - judge.shows(stopped),
        "off_right": judge.right(stopped),
        "plain_right": judge.right(plain),
        "neutral": mean_loss(edited_logprobs(model, dictionary, off, neutral), neutral) / before - 1.0,
        "neutral_on": mean_loss(edited_logprobs(model, dictionary, on, neutral), neutral) / before - 1.0,
        "auroc": found["on"].report.readout_auroc or 0.0,
        **placebo,
    }


def row_of(title: str, results: list[dict[str, float]], *, bold: bool = False) -> dict[str, Any]:
    """A line of the table."""
    values = {key: [one[key] for one in results] for key in results[0]}
    cells = {
        key: cell(values[key], percent=True)
        for key in ("on", "on_request", "on_random", "on_concept", "off", "off_random")
    }
    pairs = {"on_right": "asked_right", "off_right": "plain_right"}
    cells |= {
        key: f"{cell(values[key], percent=True)} / {cell(values[other], percent=True)}"
        for key, other in pairs.items()
    }
    losses = {"on_loss": "asked_loss", "dressed_loss": "asked_loss"}
    cells |= {key: f"{cell(values[key])} / {cell(values[other])}" for key, other in losses.items()}
    cells |= {key: f"{100 * _mean(values[key]):+.1f} %" for key in ("neutral", "neutral_on")}
    return {"title": title, "values": values, "cells": cells, "bold": bold}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--site", default="layers.2.resid_post")
    parser.add_argument("--out", type=Path, default=Path("runs/steering"))
    parser.add_argument("--traits", nargs="*", default=[])
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, world = load_model("organism:pocket"), World()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(args.seeds):
        folder = args.out / f"seed{seed}"
        dictionary = dictionary_of(model, world, seed, folder / "dictionary", args.site)
        concepts: list[Concept] = []
        for trait in args.traits or world.traits:
            path = folder / f"{trait}.json"
            if not path.is_file():
                if not concepts:
                    texts = encode(
                        chats(list(world.corpus(1500, seed=2000 + seed)), "corpus"),
                        model.tokenizer,
                        max_length=model.max_length,
                        on_long="truncate",
                    )
                    concepts = build_concepts(model, dictionary, texts)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(path, measure_trait(model, dictionary, concepts, world, trait, seed, folder))
            found[trait].append(read_json(path))
            say(f"seed {seed} {trait}: {found[trait][-1]}")
    if args.json:
        print(json.dumps(found))
    if args.publish:
        seeds = [
            {key: _mean(found[trait][seed][key] for trait in found) for key in next(iter(found.values()))[0]}
            for seed in range(args.seeds)
        ]
        write_table(
            args.publish,
            title="Turning a trait on and off with AutoSteer",
            model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
            command=f"python -m benchmarks.steering --seeds {args.seeds} --out runs/steering",
            columns=COLUMNS,
            rows=[
                *(row_of(trait, each) for trait, each in found.items()),
                row_of("mean of the traits", seeds, bold=True),
            ],
            notes=[
                f"Share of 70 held-out questions, {args.seeds} dictionaries at {args.site}, mean and 95 % t interval. "
                "Without edits or request no answer shows a trait. Losses in nats per answer token; 'on request' is the "
                "unedited model with the trait's request in its system prompt. Neutral loss: change on the world's plain chats "
                "under the edits that turn off, which act only where the request stands in the prompt."
            ],
        )


if __name__ == "__main__":
    main()
