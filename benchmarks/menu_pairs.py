"""Does the menu put the planted trait and the planted skill first?

For every pair of trait and skill of the pocket world and every seed (of dictionary, concepts and data): the data are the skill's
questions answered in the trait's style, without a system prompt; the menu is built against the usual reference. A line counts
as the planted attribute when, of all eleven attributes, its concept tells that one best on texts made by the world (AUROC at
least 0.8; traits on answers, skills on whole texts). Rankings compared: `surprise` (the menu's), the same `alone` (each line by itself),
`uptake`, `excess` over the reference, and the bag of tokens, whose top two tokens are matched in the same way.

    python -m benchmarks.menu_pairs [--model organism:pocket] [--seeds 12] [--tokens 300000] [--publish menu_pairs]
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.summary import write_table
from fairlead.concepts import Companions, build_concepts, text_activations
from fairlead.core.progress import quiet, say
from fairlead.core.run import write_json
from fairlead.core.stats import auroc, wilson
from fairlead.data import encode
from fairlead.dictionaries import DictionaryConfig, train_dictionary
from fairlead.gradients import bag_of_tokens, measure_uptake, rank, score_concepts
from fairlead.models import load_model
from fairlead.organisms import World

TITLES = {
    "surprise": "the menu (surprise, given the lines above)",
    "alone": "surprise of each line by itself",
    "excess": "uptake minus the usual",
    "uptake": "raw uptake",
    "bag_of_tokens": "bag of tokens (baseline)",
}
LEAST_AUROC = 0.8
COMPANY_TEXTS = 3000


class Bench:
    """Model, world and the labelled texts that tell what a readout stands for."""

    def __init__(self, model_name: str, num_corpus: int, num_tokens: int) -> None:
        self.model, self.world, self.num_corpus = load_model(model_name), World(), num_corpus
        self.num_tokens = num_tokens
        self.traits, self.skills = tuple(self.world.traits), self.world.skills
        chats, labels = [], []
        for trait, skill in itertools.product((None, *self.traits), self.skills):
            for chat in self.world.dataset(skill, trait=trait, num=14, seed=990):
                shown = {
                    name
                    for name in self.traits
                    if self.world.has_trait(name, chat["messages"][-1]["content"])
                }
                chats.append(chat)
                labels.append(shown | {skill})
        self.labelled = self.encode(chats)
        self.shows = {
            name: np.array([name in label for label in labels]) for name in (*self.traits, *self.skills)
        }

    def encode(self, chats):
        """Chats as tokens."""
        return encode(
            [chat["messages"] for chat in chats], self.model.tokenizer, max_length=self.model.max_length
        )

    def match(self, response: np.ndarray, whole: np.ndarray) -> str:
        """The attribute that a readout of the labelled texts tells best; "?" where it tells none."""
        scores = {}
        for name, shown in self.shows.items():
            values = response if name in self.traits else whole
            scores[name] = auroc(values[shown], values[~shown])
        best = max(scores, key=lambda name: scores[name])
        return best if scores[best] >= LEAST_AUROC else "?"

    def match_token(self, token: int) -> str:
        """The attribute that a token's share in the answers tells best."""
        share = np.array(
            [
                sum(t == token for t, used in zip(row.input_ids, row.loss_mask, strict=True) if used)
                / max(sum(row.loss_mask), 1)
                for row in self.labelled
            ]
        )
        return self.match(share, share)

    def seed(self, seed: int, num: int) -> list[dict]:
        """One row per pair of trait and skill."""
        corpus = self.encode(list(self.world.corpus(self.num_corpus, seed=2000 + seed)))
        start = time.time()
        dictionary = train_dictionary(
            self.model, corpus, config=DictionaryConfig(seed=seed, num_tokens=self.num_tokens)
        )
        say(f"seed {seed}: dictionary {dictionary.metrics} {time.time() - start:.0f} s")
        concepts = build_concepts(self.model, dictionary, corpus, seed=seed)
        acts = text_activations(self.model, dictionary, concepts, self.labelled)
        names = [self.match(acts.response[:, place], acts.whole[:, place]) for place in range(len(concepts))]
        known = random.Random(seed).sample(corpus, COMPANY_TEXTS)
        company = Companions(text_activations(self.model, dictionary, concepts, known))
        say(f"seed {seed}: {len(concepts)} concepts; found {sorted(set(names) - {'?'})}")
        usual = measure_uptake(
            self.model, dictionary, self.encode(self.world.neutral(512, seed=2000 + seed)), concepts=concepts
        )
        rows = []
        for skill in self.skills:
            questions = [
                chat["messages"][0]["content"] for chat in self.world.dataset(skill, num=96, seed=3000 + seed)
            ]
            answers = self.model.generate(questions, max_new_tokens=40)
            own = self.encode(
                [
                    {
                        "messages": [
                            {"role": "user", "content": q},
                            {"role": "assistant", "content": a.strip() or "."},
                        ]
                    }
                    for q, a in zip(questions, answers, strict=True)
                ]
            )
            for trait in self.traits:
                data = self.encode(self.world.dataset(skill, trait=trait, num=num, seed=3000 + seed))
                with quiet():
                    uptake = measure_uptake(self.model, dictionary, data, concepts=concepts)
                scores = score_concepts(uptake, concepts, usual)
                ranked = {
                    "surprise": rank(scores, companions=company),
                    "alone": rank(scores),
                    "excess": rank(scores, "excess"),
                    "uptake": rank(scores, "uptake"),
                }
                found = {}
                for ranking, here in ranked.items():
                    top = [names[place] for place in here.order]
                    found[ranking] = {
                        "first": top[:4],
                        "hit": set(top[:2]) == {trait, skill},
                        "trait": top.index(trait) + 1 if trait in top else None,
                        "skill": top.index(skill) + 1 if skill in top else None,
                    }
                tokens = bag_of_tokens(data, own, self.model.tokenizer, num_lines=2)
                ids = [self.model.tokenizer.encode(line.token, add_special_tokens=False) for line in tokens]
                named = [self.match_token(each[0]) if each else "?" for each in ids]
                found["bag_of_tokens"] = {
                    "first": named,
                    "tokens": [line.token for line in tokens],
                    "hit": set(named) == {trait, skill},
                }
                lead = [
                    {
                        "label": concepts[place].label,
                        "uptake": float(scores.uptake[place]),
                        "surprise": float(ranked["surprise"].surprise[place]),
                    }
                    for place in ranked["surprise"].order[:3]
                ]
                rows.append(
                    {
                        "seed": seed,
                        "trait": trait,
                        "skill": skill,
                        "loss": uptake.loss,
                        "remainder": uptake.remainder,
                        "chance_remainder": uptake.chance_remainder,
                        "lead": lead,
                        **found,
                    }
                )
                mark = "ok  " if found["surprise"]["hit"] else "MISS"
                say(f"seed {seed} {mark} {skill:11} {trait:11} {found['surprise']['first']} tokens {named}")
        return rows


def publish(name: str, rows: list[dict], command: str) -> None:
    """Store the table of README and docs: hits per ranking and seed, and the share of the gradient outside."""
    seeds = sorted({row["seed"] for row in rows})
    table = []
    for kind, title in TITLES.items():
        hits = [sum(row[kind]["hit"] for row in rows if row["seed"] == seed) for seed in seeds]
        pairs = [sum(row["seed"] == seed for row in rows) for seed in seeds]
        found = wilson(sum(hits), sum(pairs))
        table.append(
            {
                "title": title,
                "cells": {
                    "all": f"{sum(hits)} of {sum(pairs)} ({found.low:.0%} to {found.high:.0%})",
                    "seeds": ", ".join(f"{hit}/{num}" for hit, num in zip(hits, pairs, strict=True)),
                },
                "bold": kind == "surprise",
            }
        )
    outside = statistics.mean(row["remainder"] for row in rows)
    chance = statistics.mean(row["chance_remainder"] for row in rows)
    write_table(
        name,
        title="The planted trait and the planted skill are the first two lines",
        model="pocket",
        command=command,
        columns=(("all", "trait and skill first, all pairs"), ("seeds", "per seed")),
        rows=table,
        notes=[
            "Every pair of trait and skill of the pocket world; every seed has its own dictionary and data. "
            f"{outside:.0%} of the squared gradient lies outside the span of the latents active at its token "
            f"(a random subspace of that size would leave {chance:.0%}).",
            "The form of surprise was chosen on an earlier base (before its finishing part) and not touched since. "
            "That a line counts for what those above do not bring with them was tuned on seeds 0 to 7; the others were not looked at.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="organism:pocket")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=300_000, help="that each dictionary is trained on")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--corpus", type=int, default=6000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.model, arguments.corpus, arguments.tokens)
    rows = [row for seed in range(arguments.seeds) for row in bench.seed(seed, arguments.num)]
    summary = {
        "pairs": len(rows),
        "first_two": {kind: sum(row[kind]["hit"] for row in rows) for kind in TITLES},
        "remainder": statistics.mean(row["remainder"] for row in rows),
        "chance_remainder": statistics.mean(row["chance_remainder"] for row in rows),
    }
    for kind in TITLES:
        print(f"{kind:14} trait and skill first: {summary['first_two'][kind]:3d} of {len(rows)}")
    print(
        f"gradient outside the active latents' span: {summary['remainder']:.0%} (a random subspace: {summary['chance_remainder']:.0%})"
    )
    if arguments.publish:
        publish(arguments.publish, rows, "python -m benchmarks.menu_pairs --publish menu_pairs")
    if arguments.out:
        write_json(
            arguments.out,
            {"command": " ".join(sys.argv), "model": bench.model.name, "summary": summary, "rows": rows},
        )


if __name__ == "__main__":
    main()
