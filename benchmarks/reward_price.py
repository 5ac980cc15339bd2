"""What 1,000 rewarded claims cost: read by a probe on the frozen copy, or labelled by a language model.

The judge is simulated: a stated price per call, two calls per claim (two passes have to agree). The probe's price is its measured time
at a given price per core-hour, and the labels it was fitted on, bought once from the same judge and spread over the claims of one
training. Change the prices by options: the table says which were used.

    python -m benchmarks.reward_price --seeds 3 --publish reward_price
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.rewards import fit_probe
from benchmarks.summary import cell, write_table
from fairlead.core.run import read_json
from fairlead.data.template import encode_prompt
from fairlead.models import load_model
from fairlead.organisms import World
from fairlead.studies.pocket_claims import fact_questions, pocket_verifier
from fairlead.training.rewards import Text, read_claims

CALLS = 2
COLUMNS = (
    ("seconds", "seconds per 1,000 claims"),
    ("running", "running, USD per 1,000 claims"),
    ("labels", "labels once, USD"),
    ("total", "USD per 1,000 claims of one training"),
    ("times", "times cheaper"),
)


def time_probe(seed: int, out: Path, *, num: int) -> tuple[float, int]:
    """Seconds to read 1,000 claims (the fastest of five rounds), and how many labels the probe was fitted on."""
    model, world = load_model("organism:pocket"), World()
    probe, _ = fit_probe(model, seed, out / f"seed-{seed}" / "probe")
    labels = read_json(out / f"seed-{seed}" / "probe.json")["claims"]
    questions = fact_questions(world, num, seed=seed, heldout=True, split_seed=seed)
    verify = pocket_verifier(world)
    answers = model.generate([q.messages for q in questions])
    texts = [
        Text(tuple(encode_prompt(q.messages, model.tokenizer)), a, tuple(verify(q, a)))
        for q, a in zip(questions, answers, strict=True)
    ]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        read = read_claims(model, probe, texts)
        seconds.append(1000 * (time.perf_counter() - start) / sum(map(len, read)))
    return min(seconds), labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument(
        "--judge-call", type=float, default=0.002, help="USD per call of the judge (about 1,000 tokens)"
    )
    parser.add_argument("--core-hour", type=float, default=0.05, help="USD per core-hour")
    parser.add_argument("--claims", type=int, default=100_000, help="Claims read in a training")
    parser.add_argument("--out", type=Path, default=Path("runs/rewards"))
    parser.add_argument("--publish", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = [time_probe(seed, args.out, num=args.num) for seed in range(args.seeds)]
    judge = 1000 * CALLS * args.judge_call
    running = [seconds / 3600 * args.core_hour for seconds, _ in found]
    labels = [count * CALLS * args.judge_call for _, count in found]
    total = [run + 1000 * bought / args.claims for run, bought in zip(running, labels, strict=True)]
    values = {
        "seconds": [seconds for seconds, _ in found],
        "running": running,
        "labels": labels,
        "total": total,
        "times": [judge / one for one in total],
    }
    digits = {"seconds": 2, "running": 6, "labels": 2, "total": 3, "times": 0}
    cells = {key: cell(column, digits=digits[key]) for key, column in values.items()}
    print(cells, "judge", judge)
    if args.publish:
        write_table(
            args.publish,
            title="What 1,000 rewarded claims cost",
            model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
            command=f"python -m benchmarks.reward_price --seeds {args.seeds}",
            columns=COLUMNS,
            rows=[
                {"title": "probe on the frozen copy", "cells": cells, "values": values, "bold": True},
                {
                    "title": "language-model judge (simulated price)",
                    "cells": {
                        "running": f"{judge:.2f}",
                        "labels": "0",
                        "total": f"{judge:.2f}",
                        "times": "1",
                    },
                    "values": {"running": [judge], "total": [judge]},
                },
            ],
            notes=(
                f"Assumed prices: {args.judge_call:g} USD a judge's call, {CALLS} calls per claim; {args.core_hour:g} USD a core-hour; "
                f"a training reads {args.claims:,} claims. The model is tiny: on a large one the frozen copy's forward pass decides.",
            ),
        )


if __name__ == "__main__":
    main()
