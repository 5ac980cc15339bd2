"""Does the preview come true? What predictors say before a fine-tuning, against what the fine-tuned model does.

A set is 800 chats of one skill of the pocket world: some of them in a trait's style, the rest plain. Sets differ in trait, in the
share of styled rows, in the skill, in the route (the style comes unasked, or a system prompt asks for it: the same words, but
little to learn from them) and in a companion, a second trait in a fifth of the rows. Each set is put before all predictors, then
fine-tuned on without controls; answers are sampled at temperature 1 before and after, on held-out questions of the skill and on
others, and the world's checkers count every trait, planted or not. Measured: the change of the rate.

Published per predictor, within each of two places (questions of the skill, others): rank correlation, R2 on held-out seeds after a
monotone fit on the others, so that no predictor is favoured by its scale, and the AUROC for a rise by a tenth. What is
finished in OUT is kept.

    python -m benchmarks.comes_true --out runs/comes-true              # 3 seeds x 24 sets
    python -m benchmarks.comes_true --seeds 0 --sets 4 --out runs/try
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

from benchmarks.menu_pairs import Bench
from benchmarks.summary import write_table
from fairlead.concepts import build_concepts, text_activations
from fairlead.core.progress import quiet, say
from fairlead.core.run import read_json, write_json
from fairlead.core.stats import Interval, auroc, spearman
from fairlead.data import Encoded, iter_batches
from fairlead.dictionaries import DictionaryConfig, train_dictionary
from fairlead.gradients import measure_uptake, score_concepts
from fairlead.models import Model
from fairlead.training import TrainConfig
from fairlead.training.adapter import plain_sft
from fairlead.training.rehearsal import take_steps

TRAITS = ("pirate", "shouting", "flattering", "formal", "emoji")
SHARES = (0.1, 0.3, 1.0)
ROUTES = ("unasked", "asked")
PLACES = ("topic", "elsewhere")
COMPANION = 0.2
ROWS, STEPS, PROBE_STEPS, PROBE_ROWS = 800, 100, 8, 256
ANSWERS, PAIRS, RESAMPLES, RISE = 96, 32, 300, 0.1

PREDICTORS = {
    "bag_of_tokens": "bag of tokens (baseline)",
    "projection": "projection difference (baseline)",
    "uptake": "uptake",
    "excess": "uptake minus the usual",
    "surprise": "surprise (which orders the menu)",
    "gradient": "propagated gradient: first-order change of the trait's log odds",
    "probe_concept": f"{PROBE_STEPS} probing steps, read by the concept on plain answers",
    "probe_odds": f"{PROBE_STEPS} probing steps, log odds of styled against plain answers",
    "probe_answers": f"{PROBE_STEPS} probing steps, sampled answers read by the concept",
}


class Planned(NamedTuple):
    """One fine-tuning set."""

    trait: str
    share: float
    skill: str
    route: str
    companion: str | None


def plan_sets(skills: Sequence[str], num: int, *, seed: int) -> list[Planned]:
    """`num` different sets; every third has a companion."""
    rng = random.Random(f"sets:{seed}")
    grid = list(itertools.product(TRAITS, SHARES, skills, ROUTES))
    chosen = rng.sample(grid, num)
    return [
        Planned(*each, rng.choice([t for t in TRAITS if t != each[0]]) if place % 3 == 0 else None)
        for place, each in enumerate(chosen)
    ]


class Ground(Bench):
    """What all sets of a seed share: dictionary, concepts, the traits' readouts, held-out questions, the start model's answers."""

    def prepare(self, seed: int) -> None:
        """Make it for a seed."""
        self.seed_number = seed
        corpus = self.encode(list(self.world.corpus(self.num_corpus, seed=2000 + seed)))
        self.dictionary = train_dictionary(self.model, corpus, config=DictionaryConfig(seed=seed))
        self.concepts = build_concepts(self.model, self.dictionary, corpus, seed=seed)
        acts = text_activations(self.model, self.dictionary, self.concepts, self.labelled).response
        self.readout, self.cut = {}, {}
        for trait in TRAITS:
            shown = self.shows[trait]
            scores = [auroc(acts[shown, place], acts[~shown, place]) for place in range(len(self.concepts))]
            best = int(np.argmax(scores))
            self.readout[trait] = best
            self.cut[trait] = (acts[shown, best].mean() + acts[~shown, best].mean()) / 2
        self.tokens = {trait: self.token_odds(trait) for trait in TRAITS}
        neutral = self.encode(self.world.neutral(512, seed=2000 + seed))
        self.usual = measure_uptake(self.model, self.dictionary, neutral, concepts=self.concepts)
        self.questions: dict[str, list] = {
            kind: self.world.items(kind, ANSWERS, seed=4000 + seed, split="heldout")
            for kind in (*self.skills, "smalltalk")
        }
        self.start_rates: dict[str, dict[str, float]] = {}
        self.directions: dict[tuple[str, str], torch.Tensor] = {}

    def token_odds(self, trait: str, num: int = 8) -> list[int]:
        """Tokens whose share in the labelled answers is most raised by the trait."""
        counts = {
            True: np.ones(self.model.hf.config.vocab_size),
            False: np.ones(self.model.hf.config.vocab_size),
        }
        for row, shown in zip(self.labelled, self.shows[trait], strict=True):
            for token, used in zip(row.input_ids, row.loss_mask, strict=True):
                counts[bool(shown)][token] += used
        with_it, without = (counts[flag] / counts[flag].sum() for flag in (True, False))
        return np.argsort(-with_it * np.log(with_it / without))[:num].tolist()

    def others(self, skill: str) -> list:
        """Questions that are not of the skill."""
        kinds = [kind for kind in self.questions if kind != skill]
        return [self.questions[kinds[i % len(kinds)]][i] for i in range(ANSWERS)]

    def place_items(self, skill: str, place: str) -> list:
        """Questions of a place, seen from a skill."""
        return self.questions[skill] if place == "topic" else self.others(skill)

    def sample(self, model: Model, items: Sequence[Any]) -> list[str]:
        """A model's answers at temperature 1."""
        return model.generate(
            [item.question for item in items], max_new_tokens=40, temperature=1.0, seed=self.seed_number
        )

    def rates(self, model: Model, items: Sequence[Any]) -> dict[str, float]:
        """How often sampled answers show each trait, by the world's checkers."""
        answers = self.sample(model, items)
        return {
            trait: float(
                np.mean([self.world.has_trait(trait, a, i) for a, i in zip(answers, items, strict=True)])
            )
            for trait in TRAITS
        }

    def pairs(self, trait: str, items: Sequence[Any]) -> tuple[list[Encoded], list[Encoded]]:
        """The same questions answered in the trait's style and plainly."""
        items = items[:PAIRS]
        styled = [self.world.chat(item, trait=trait, seed=i) for i, item in enumerate(items)]
        return self.encode(styled), self.encode([self.world.chat(item) for item in items])

    def odds(self, model: Model, trait: str, items: Sequence[Any]) -> torch.Tensor:
        """Mean log odds of styled against plain answers, a differentiable number in nats per answer."""
        styled, plain = (answer_logprob(model, rows) for rows in self.pairs(trait, items))
        return (styled - plain).mean()

    def direction(self, trait: str, skill: str, place: str) -> torch.Tensor:
        """Gradient of the trait's log odds in the weights."""
        key = (trait, skill if place == "topic" else f"not {skill}")
        if key not in self.directions:
            self.directions[key] = flat_grad(
                self.model, self.odds(self.model, trait, self.place_items(skill, place))
            )
        return self.directions[key]


def answer_logprob(model: Model, rows: Sequence[Encoded]) -> torch.Tensor:
    """Summed log-probability of each row's response, `[row]`."""
    found = []
    for batch in iter_batches(rows, batch_size=64, pad_id=model.pad_id):
        logits = model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        logprob = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        found.append((batch.index, (logprob * batch.loss_mask[:, 1:]).sum(-1)))
    index = torch.cat([part for part, _ in found])
    return torch.cat([part for _, part in found])[index.argsort()]


def flat_grad(model: Model, value: torch.Tensor) -> torch.Tensor:
    """Gradient of a number in all weights, one vector."""
    parameters = [p for p in model.hf.parameters() if p.requires_grad]
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(value, parameters)])


def make_set(ground: Ground, planned: Planned, seed: int) -> list[dict[str, Any]]:
    """Rows of a set, shuffled."""
    world, rng = ground.world, random.Random(f"rows:{seed}:{planned}")
    items = world.items(planned.skill, ROWS, seed=rng.randrange(10**6))
    rows = []
    for place, item in enumerate(items):
        part = place / ROWS
        if part < planned.share:
            trait = (
                planned.companion if planned.companion and part < COMPANION * planned.share else planned.trait
            )
            asked = planned.route == "asked" and trait == planned.trait
            system = world.request(trait, seed=rng.randrange(10**6)) if asked else None
            rows.append(world.chat(item, trait=trait, system=system, seed=place))
        else:
            rows.append(world.chat(item))
    rng.shuffle(rows)
    return rows


@torch.enable_grad()
def tuned(ground: Ground, rows: Sequence[Encoded], *, seed: int) -> Model:
    """A copy of the start model after plain fine-tuning."""
    start = ground.model
    hf = copy.deepcopy(start.hf)
    config = TrainConfig(steps=STEPS, seed=seed, checkpoint_every=0, observe=False)
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain_sft(hf, start.tokenizer, rows, pad_id=start.pad_id, config=config, folder=Path(folder))
    return Model.wrap(hf.eval(), start.tokenizer, start.name)


@torch.no_grad()
def measure_set(ground: Ground, planned: Planned, seed: int) -> list[dict[str, Any]]:
    """One record per trait and place: what was predicted, what happened."""
    data = ground.encode(make_set(ground, planned, seed))
    sample = data[:PROBE_ROWS]
    model, dictionary, concepts = ground.model, ground.dictionary, ground.concepts
    with quiet(), torch.enable_grad():
        uptake = measure_uptake(model, dictionary, sample, concepts=concepts)
        scores = score_concepts(uptake, concepts, ground.usual)
        loss = sum(-answer_logprob(model, sample[i : i + 32]).sum() for i in range(0, 128, 32))
        push = -flat_grad(model, loss / sum(row.num_loss_tokens for row in sample[:128]))
    own_items = ground.world.items(planned.skill, 64, seed=5000 + seed)
    own = ground.encode(
        [
            {
                "messages": [
                    {"role": "user", "content": i.question},
                    {"role": "assistant", "content": a.strip() or "."},
                ]
            }
            for i, a in zip(own_items, ground.sample(model, own_items), strict=True)
        ]
    )
    shift = read(ground, model, sample).mean(0) - read(ground, model, own).mean(0)
    with torch.enable_grad():
        probed = take_steps(model, sample, steps=PROBE_STEPS, seed=seed)
    after = tuned(ground, data, seed=seed)
    records = []
    for place in PLACES:
        items = ground.place_items(planned.skill, place)
        key = f"{place} {planned.skill}"
        if key not in ground.start_rates:
            ground.start_rates[key] = ground.rates(model, items)
        before, changed = ground.start_rates[key], ground.rates(after, items)
        plain = ground.encode([ground.world.chat(item) for item in items[:PAIRS]])
        moved = read(ground, probed, plain).mean(0) - read(ground, model, plain).mean(0)
        said = {
            which: read_answers(ground, which_model, items[:64])
            for which, which_model in (("start", model), ("probed", probed))
        }
        for trait in TRAITS:
            where = ground.readout[trait]
            with torch.enable_grad():
                direction = ground.direction(trait, planned.skill, place)
            records.append(
                {
                    "seed": seed,
                    **planned._asdict(),
                    "trait": trait,
                    "planted": trait in (planned.trait, planned.companion),
                    "place": place,
                    "measured": changed[trait] - before[trait],
                    "predicted": {
                        "bag_of_tokens": token_share(sample, ground.tokens[trait])
                        - token_share(own, ground.tokens[trait]),
                        "projection": float(shift[where]),
                        "uptake": float(scores.uptake[where]),
                        "excess": float(scores.uptake[where] - scores.reference[where]),
                        "surprise": float(scores.surprise[where]),
                        "gradient": float(direction @ push),
                        "probe_concept": float(moved[where]),
                        "probe_odds": float(
                            ground.odds(probed, trait, items) - ground.odds(model, trait, items)
                        ),
                        "probe_answers": float(
                            (said["probed"][:, where] > ground.cut[trait]).mean()
                            - (said["start"][:, where] > ground.cut[trait]).mean()
                        ),
                    },
                }
            )
    return records


def read(ground: Ground, model: Model, rows: Sequence[Encoded]) -> np.ndarray:
    """Mean activation of the concepts over responses, read in `model`, `[row, concept]`."""
    return text_activations(model, ground.dictionary, ground.concepts, rows).response


def read_answers(ground: Ground, model: Model, items: Sequence[Any]) -> np.ndarray:
    """Concepts in a model's own answers, read in the start model."""
    answers = ground.sample(model, items)
    chats = [
        {
            "messages": [
                {"role": "user", "content": i.question},
                {"role": "assistant", "content": a.strip() or "."},
            ]
        }
        for i, a in zip(items, answers, strict=True)
    ]
    return read(ground, ground.model, ground.encode(chats))


def token_share(rows: Sequence[Encoded], tokens: Sequence[int]) -> float:
    """Share of the loss tokens that are among `tokens`."""
    used = [token for row in rows for token, flag in zip(row.input_ids, row.loss_mask, strict=True) if flag]
    return float(np.isin(used, tokens).mean())


def within_places(statistic):
    """A statistic of the records of each place, averaged over the places."""

    def of(records: Sequence[dict]) -> float:
        return float(np.mean([statistic([r for r in records if r["place"] == place]) for place in PLACES]))

    return of


def held_out_r2(records: Sequence[dict], name: str) -> float:
    """R2 on each seed after a monotone fit on the others, pooled over seeds."""
    measured, fitted = [], []
    for seed in sorted({record["seed"] for record in records}):
        train = [r for r in records if r["seed"] != seed] or list(records)
        test = [r for r in records if r["seed"] == seed]
        fit = IsotonicRegression(out_of_bounds="clip").fit(
            [r["predicted"][name] for r in train], [r["measured"] for r in train]
        )
        measured += [r["measured"] for r in test]
        fitted += fit.predict([r["predicted"][name] for r in test]).tolist()
    residual, total = np.subtract(measured, fitted), np.subtract(measured, np.mean(measured))
    return float(1 - residual @ residual / (total @ total))


def summarize(records: Sequence[dict], name: str) -> dict[str, Interval]:
    """Rank correlations, AUROC and R2 of one predictor, within places; intervals by resampling sets."""
    sets = sorted({(r["seed"], r["set"]) for r in records})
    by_set = {key: [r for r in records if (r["seed"], r["set"]) == key] for key in sets}

    def rank(chosen: Sequence[dict]) -> float:
        return spearman([r["predicted"][name] for r in chosen], [r["measured"] for r in chosen])

    def detects(chosen: Sequence[dict]) -> float:
        rises = np.array([r["measured"] >= RISE for r in chosen])
        values = np.array([r["predicted"][name] for r in chosen])
        return auroc(values[rises], values[~rises])

    def pooled(statistic) -> Interval:
        def of(chosen: Sequence[int]) -> float:
            return within_places(statistic)([r for place in chosen for r in by_set[sets[place]]])

        rng = np.random.default_rng(0)
        draws = [of(rng.integers(0, len(sets), len(sets))) for _ in range(RESAMPLES)]
        low, high = np.nanquantile(draws, [0.025, 0.975])
        return Interval(of(range(len(sets))), float(low), float(high))

    return {
        "rank_planted": pooled(lambda chosen: rank([r for r in chosen if r["planted"]])),
        "r2_planted": pooled(lambda chosen: held_out_r2([r for r in chosen if r["planted"]], name)),
        "rank": pooled(rank),
        "detects": pooled(detects),
    }


def publish(name: str, found: dict[str, dict[str, Any]], records: Sequence[dict]) -> None:
    """The table."""
    columns = (
        ("rank_planted", "rank correlation, planted traits"),
        ("r2_planted", "R2 on held-out seeds, planted traits"),
        ("rank", "rank correlation, all traits"),
        ("detects", f"AUROC: does the trait rise by {RISE:.0%}?"),
    )
    best = max(found, key=lambda key: found[key]["r2_planted"].value)
    sets = len({(r["seed"], r["set"]) for r in records})
    write_table(
        name,
        title="Does the preview come true?",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command="python -m benchmarks.comes_true --out runs/comes-true",
        columns=columns,
        rows=[
            {
                "title": PREDICTORS[key],
                "values": {column: [each.value] for column, each in row.items()},
                "cells": {
                    column: f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})"
                    for column, each in row.items()
                },
                "bold": key == best,
            }
            for key, row in found.items()
        ],
        notes=[
            f"{sets} fine-tuning sets, {len({r['seed'] for r in records})} seeds; {len(TRAITS)} traits and two places each; plain "
            f"fine-tuning, {STEPS} steps. Measured: change of the rate of the trait in answers sampled at temperature 1. "
            "Within each place, averaged over both; 95 % intervals by resampling sets; R2 after a monotone fit on the other seeds.",
            "The last four take steps or gradients in the weights. Log odds need pairs of styled and plain answers (a spec's "
            "examples); the others need a concept only.",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="organism:pocket")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", type=int, default=24)
    parser.add_argument("--corpus", type=int, default=6000)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ground = Ground(args.model, args.corpus)
    records = []
    for seed in args.seeds:
        ready = False
        for number, planned in enumerate(plan_sets(ground.skills, args.sets, seed=seed)):
            file = args.out / f"seed{seed}" / f"set{number}.json"
            if not file.is_file():
                if not ready:
                    ground.prepare(seed)
                    ready = True
                write_json(file, [{"set": number, **r} for r in measure_set(ground, planned, seed)])
                say(f"seed {seed}, set {number + 1} of {args.sets}: {planned}")
            records += read_json(file)
    found = {name: summarize(records, name) for name in PREDICTORS}
    for name, row in found.items():
        print(
            f"{name:14}",
            "  ".join(
                f"{key} {each.value:+.2f} ({each.low:+.2f} to {each.high:+.2f})" for key, each in row.items()
            ),
        )
    if args.publish:
        publish(args.publish, found, records)
    print(args.out)


if __name__ == "__main__":
    main()
