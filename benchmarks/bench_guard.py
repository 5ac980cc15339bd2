"""Cost of a guard: guarded generation against plain `Model.generate`, per token, side by side.

    python -m benchmarks.bench_guard [--probe FOLDER] [--repeats 20] [--threads 1] [--json] [--publish guard_cost]

Both answer the same questions of the pocket world with the same model, in turn, in an order that alternates; each ratio is of one pair,
seconds per token of answer. Under `observe` and under `correct` at a threshold that nothing reaches the texts are the plain ones (which is
checked), so this is the price of reading every token and scoring every claim; under `correct` at a threshold that flags every fifth claim
tokens are put in and answers go on, so it is counted per token of its own answers. Placebo: plain against plain. DESIGN.md section 9 wants
at most 1.05. The readout is a random direction at one site; with --probe, that probe besides. --sizes
gives the pocket model a larger body (layers and neurons that add nothing), so that the answers stay and the passes cost more.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from benchmarks.summary import write_table
from fairlead.core.nouns import Direction, LinearReadout
from fairlead.core.progress import quiet
from fairlead.guard import Guard, Policy
from fairlead.guard.folder import load_readout
from fairlead.models import Model, load_model
from fairlead.organisms import World

BATCHES = (1, 16, 64)
SIZES = ((6, 512), (12, 1024), (24, 2048))  # layers and neurons a layer; the first is the pocket model
Run = Callable[[], int]


def make_guard(model: Model, probe: str | None, *, made_for: Model | None = None) -> Guard:
    """A guard with the probe of a folder (made for another model, where one is given), or with a random direction."""
    if probe is not None:
        return Guard(model, load_readout(probe, made_for or model), any_model=made_for is not None)
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)) / 8
    return Guard(model, LinearReadout(Direction(model.default_site(), vector)))


def ratios(first: Run, second: Run, repeats: int) -> np.ndarray:
    """Seconds per token of `first` over those of `second`, per pair of runs in alternating order, `[repeats]`."""

    def per_token(run: Run) -> float:
        start = clock()
        tokens = run()
        return (clock() - start) / tokens

    # processor time where the work is done on the processor: what else the machine does then counts little
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    first(), second()
    found = []
    for repeat in range(repeats):
        if repeat % 2:
            one, two = per_token(first), per_token(second)
        else:
            two, one = per_token(second), per_token(first)
        found.append(one / two)
    return np.array(found)


def summary(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles of ratios."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": round(float(middle), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def enlarged(model: Model, num_layers: int, width: int) -> Model:
    """The same function in a larger body: further layers write nothing, and so do further neurons."""
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(model.hf.config)
    config.num_hidden_layers, config.intermediate_size = num_layers, width
    hf = LlamaForCausalLM(config).eval()
    old, new = model.hf.state_dict(), hf.state_dict()
    with torch.no_grad():
        for name, value in new.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                value.zero_()
            if name in old:
                value[tuple(slice(0, size) for size in old[name].shape)] = old[name]
    return Model.wrap(hf, model.tokenizer)


def bench(model: Model, guard: Guard, repeats: int, *, brief: bool = False) -> list[dict]:
    """One row per batch size and policy (brief: those that only watch)."""
    world, rows = World(), []
    for batch in BATCHES:
        num = max(batch, 8)
        items = world.items("fact", num, seed=batch, split="any", phrasing="any")
        questions = [item.question for item in items]
        observed = guard.answer(questions, batch_size=batch)
        assert [answer.text for answer in observed] == model.generate(questions, batch_size=batch)
        tokens = sum(len(answer.tokens) for answer in observed)
        scores = sorted(claim.score or 0.0 for answer in observed for claim in answer.claims)
        fifth = scores[len(scores) * 4 // 5]

        def plain(questions: Sequence[str] = questions, batch: int = batch, tokens: int = tokens) -> int:
            model.generate(questions, batch_size=batch)
            return tokens

        def guarded(policy: Policy, questions: Sequence[str] = questions, batch: int = batch) -> int:
            return sum(len(a.tokens) for a in guard.answer(questions, policy=policy, batch_size=batch))

        policies = {
            "observe": Policy(),
            "correct, nothing flagged": Policy(kind="correct", threshold=1.0),
            "correct, a fifth flagged": Policy(kind="correct", threshold=fifth),
        }
        for name, policy in policies.items():
            if brief and name != "observe":
                continue
            found = ratios(lambda policy=policy, guarded=guarded: guarded(policy), plain, repeats)
            rows.append(
                {"batch": batch, "policy": name, "answers": num, "tokens": tokens, "ratio": summary(found)}
            )
        rows.append(
            {
                "batch": batch,
                "policy": "placebo: plain",
                "answers": num,
                "tokens": tokens,
                "ratio": summary(ratios(plain, plain, repeats)),
            }
        )
    return rows


def bench_sizes(model: Model, probe: str | None, repeats: int) -> dict[str, list[dict]]:
    """`bench` of the pocket model in larger bodies."""
    found = {}
    for num_layers, width in SIZES:
        body = enlarged(model, num_layers, width)
        millions = sum(p.numel() for p in body.hf.parameters()) / 1e6
        guard = make_guard(body, probe, made_for=model)
        found[f"{millions:.1f}M"] = bench(body, guard, repeats, brief=bool(found))
    return found


def publish(name: str, found: dict[str, list[dict]], *, command: str) -> None:
    """Write the table: a row for each batch size and policy, a column for each guard."""
    keys = [(row["batch"], row["policy"]) for row in next(iter(found.values()))]
    ratio_of = {
        (title, row["batch"], row["policy"]): row["ratio"] for title, each in found.items() for row in each
    }
    rows = []
    for batch, policy in keys:
        here = {title: ratio for title in found if (ratio := ratio_of.get((title, batch, policy)))}
        rows.append(
            {
                "title": f"batch {batch}: {policy}",
                "cells": {
                    title: f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
                    for title, ratio in here.items()
                },
                "values": {title: list(ratio.values()) for title, ratio in here.items()},
                "bold": policy == "observe",
            }
        )
    write_table(
        name,
        title="Guarded generation against plain generation",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=command,
        columns=[(title, title) for title in found],
        rows=rows,
        notes=[
            "Seconds per token of answer, guarded over plain: median and quartiles of pairs in alternating order, one thread; wanted: "
            "at most 1.05. Where nothing is flagged the texts are the plain ones (checked). A fifth flagged: tokens are put in, and "
            "answers go on. An attention probe that reads three sites' activations and the model's confidence; larger models are the "
            "pocket model with layers and neurons that add nothing, so that the answers are the same."
        ],
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probe", help="folder of a probe of the pocket model")
    parser.add_argument("--sizes", action="store_true", help="the pocket model in larger bodies, too")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model("organism:pocket")
    with quiet():
        found = {"a direction": bench(model, make_guard(model, None), options.repeats)}
        if options.sizes:
            sizes = bench_sizes(model, options.probe, options.repeats)
            found |= {f"the probe, {size} parameters": rows for size, rows in sizes.items()}
        elif options.probe:
            found["the probe"] = bench(model, make_guard(model, options.probe), options.repeats)
    if options.publish:
        publish(options.publish, found, command="python -m benchmarks.bench_guard --probe runs/probe --sizes")
    if options.json:
        print(json.dumps({"guarded_over_plain_per_token": found, "target": 1.05}))
        return
    print("guarded generation / plain generate, seconds per token (target: at most 1.05)")
    for title, rows in found.items():
        for row in rows:
            ratio = row["ratio"]
            print(
                f"  {title:28} batch {row['batch']:3}  {row['policy']:26} {ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
                f"   {row['answers']} answers, {row['tokens']} tokens"
            )


if __name__ == "__main__":
    main()
