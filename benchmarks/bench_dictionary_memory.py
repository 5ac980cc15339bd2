"""Memory and cost per token over a long dictionary training on the pocket model: both should stay flat.

    python -m benchmarks.bench_dictionary_memory [--tokens 5000000] [--parts 10] [--publish dictionary_memory] [--json]

One run, several sites and widths from one pass. After every part of the tokens: resident memory of the process (from /proc), and CPU
seconds a million tokens in that part (CPU time, so that what else the machine does hardly counts). The first part holds the start
(imports are before it; buffers are allocated in it), so that growth is measured from its end. The figure shows both as
shares of the first part's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from benchmarks.summary import write_table
from fairlead.data import encode
from fairlead.dictionaries import DictionaryConfig, DictionarySpec, train_dictionaries
from fairlead.dictionaries.trainer import Trainer
from fairlead.models import load_model
from fairlead.organisms import World, pocket_path

_PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20


def resident() -> float:
    """Resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    """Per part of the run: tokens so far, memory at its end and at most (MiB), CPU seconds a million tokens."""
    model = load_model(str(pocket_path()), dtype="float32", device="cpu")
    chats = [row["messages"] for row in World().corpus(options.rows, seed=1)]
    rows = encode(chats, model.tokenizer, max_length=model.max_length, on_long="truncate")
    config = DictionaryConfig(num_tokens=options.tokens, batch_tokens=options.batch, passes=1)
    specs = [
        DictionarySpec("low", "layers.2.resid_post", config),
        DictionarySpec("high", "layers.3.resid_post", config),
        DictionarySpec("wide", "layers.3.resid_post", config.model_copy(update={"d_dict": 3072})),
    ]
    steps = config.num_steps
    edges = [round(steps * (part + 1) / options.parts) for part in range(options.parts)]
    found: list[dict[str, float]] = []
    peak, since, done = 0.0, time.process_time(), 0
    step = Trainer.step

    def watched(self: Trainer, batch: torch.Tensor) -> None:
        nonlocal peak, since, done
        step(self, batch)
        peak = max(peak, resident())
        if self.config.d_dict == 3072 and self.done == edges[len(found)]:
            now = time.process_time()
            million = (self.tokens - done) / 1e6
            row = {
                "tokens": self.tokens,
                "memory": resident(),
                "peak": peak,
                "seconds": (now - since) / million,
            }
            found.append(row)
            print(f"{row}", file=sys.stderr)
            peak, since, done = 0.0, now, self.tokens

    Trainer.step = watched
    try:
        train_dictionaries(model, rows, specs)
    finally:
        Trainer.step = step
    return found


def main() -> None:
    """Measure, print, and publish where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=20_000, help="chats from which the tokens come")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    first = found[0]
    if options.json:
        print(json.dumps(found))
    else:
        for row in found:
            print(
                f"{row['tokens'] / 1e6:6.2f}M tokens   {row['memory']:7.0f} MiB (at most {row['peak']:.0f})   "
                f"{row['seconds']:6.2f} CPU s a million tokens"
            )
    if options.publish:
        slope = np.polyfit(
            [row["tokens"] / 1e6 for row in found[1:]], [row["memory"] for row in found[1:]], 1
        )[0]
        write_table(
            options.publish,
            title="A long dictionary training: memory and cost per token",
            model="organism:pocket",
            command="python -m benchmarks.bench_dictionary_memory",
            columns=(("memory", "memory"), ("seconds", "CPU seconds a million tokens")),
            rows=[
                {
                    "title": f"{row['tokens'] / 1e6:.1f}M tokens",
                    "place": row["tokens"],
                    "cells": {"memory": f"{row['memory']:.0f} MiB", "seconds": f"{row['seconds']:.1f}"},
                    "values": {
                        "memory": [row["memory"] / first["memory"]] * 3,
                        "CPU time a token": [row["seconds"] / first["seconds"]] * 3,
                    },
                }
                for row in found
            ],
            notes=[
                f"Three dictionaries at two sites from one pass, batch {options.batch}, {options.threads} thread(s); "
                f"memory grows by {slope:.1f} MiB a million tokens after the first part."
            ],
            figure={
                "title": "share of the first part's, over tokens",
                "lines": ["memory", "CPU time a token"],
                "unit": "{:.2f}",
            },
        )


if __name__ == "__main__":
    main()
