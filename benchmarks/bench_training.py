"""Cost of a training step under the adapter, with observation and with controls, against a plain TRL step.

    python -m benchmarks.bench_training [--rounds 40] [--threads 1] [--json]
    python -m benchmarks.bench_training --sizes --publish cost_by_size      # 0.3M to 30M parameters, and the memory

Baseline: a bare `trl.SFTTrainer` with TRL's own collator on the same rows. Every contender makes its batch, runs the forward and backward
pass and the optimizer step; contenders take turns step by step, in an order that rotates, and each ratio is of steps of the same
round. Printed: the median ratio with its interquartile range, and a placebo, the baseline against itself, whose spread is the noise
of the machine. DESIGN.md section 9 wants at most 1.10 with observation and 1.15 with explain-away on cached offsets. The
model is a random Llama of the pocket model's size, the rows are 32 chats of 36 tokens with 16 in the response.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import numpy as np
import torch
import trl

from benchmarks.summary import write_table
from fairlead.core.records import Concept
from fairlead.data import Encoded, Row
from fairlead.dictionaries import Dictionary
from fairlead.models import Model
from fairlead.training.adapter import make_trainer, sft_config
from fairlead.training.batching import Composer
from fairlead.training.config import ControlConfig, TrainConfig
from fairlead.training.controls import make_control
from fairlead.training.observe import PressureObserver
from fairlead.training.session import Session
from fairlead.training.tables import TableBuilder

ROWS, SEQ, RESPONSE, VOCAB, LATENTS = 256, 36, 16, 1024, 40
CONFIG = TrainConfig(steps=10_000, batch_size=32, warmup_steps=0, checkpoint_every=0)
Step = Callable[[], None]


class Shape(NamedTuple):
    """Size of a random Llama."""

    d_model: int
    layers: int

    @property
    def parameters(self) -> int:
        """Of the model, embeddings (tied) included."""
        d = self.d_model
        return VOCAB * d + self.layers * (4 * d * d + 3 * d * (8 * d // 3))


POCKET = Shape(192, 6)
SIZES = (Shape(64, 4), Shape(128, 4), POCKET, Shape(320, 8), Shape(576, 8))


def make_model(shape: Shape = POCKET) -> Model:
    """A random Llama."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.d_model // 32,
        intermediate_size=8 * shape.d_model // 3,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", eos_token="w1", unk_token="w0"
    )
    return Model.wrap(LlamaForCausalLM(config).eval(), tokenizer, "random llama")


def make_rows() -> list[Encoded]:
    """Random rows; the last `RESPONSE` tokens are in the loss."""
    rng = random.Random(0)
    mask = [False] * (SEQ - RESPONSE) + [True] * RESPONSE
    return [
        Encoded([rng.randrange(2, VOCAB) for _ in range(SEQ)], mask, i, Row(text="-")) for i in range(ROWS)
    ]


def stepper(trainer: trl.SFTTrainer, examples: list[dict], after: Callable[[], None] | None = None) -> Step:
    """One optimizer step of a trainer: collate, forward, backward, clip, update."""
    trainer.create_optimizer_and_scheduler(CONFIG.steps)
    trainer.current_gradient_accumulation_steps = 1
    rng = random.Random(1)

    def step() -> None:
        batch = trainer.data_collator(rng.sample(examples, CONFIG.batch_size))
        count = trainer._get_num_items_in_batch([batch], trainer.args.device)
        trainer.training_step(trainer.model, batch, count)
        if after is not None:
            after()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    return step


def contenders(model: Model, folder: Path) -> dict[str, Callable[[], Step]]:
    """Makers of the steps to compare, by name."""
    rows = make_rows()
    places = [{"place": i} for i in range(ROWS)]

    def bare() -> Step:
        hf = copy.deepcopy(model.hf)
        examples = [
            {
                "input_ids": r.input_ids,
                "labels": [t if m else -100 for t, m in zip(r.input_ids, r.loss_mask, strict=True)],
            }
            for r in rows
        ]
        args = sft_config(hf, CONFIG, folder)
        data = datasets.Dataset.from_list(examples)
        trainer = trl.SFTTrainer(
            model=hf, args=args, train_dataset=data, processing_class=copy.deepcopy(model.tokenizer)
        )
        return stepper(trainer, examples)

    def ours(controls: tuple = (), *, observe: bool = False) -> Step:
        hf, session = copy.deepcopy(model.hf), Session(controls)
        composer = Composer(rows, pad_id=model.pad_id)
        trainer = make_trainer(hf, model.tokenizer, composer, session, config=CONFIG, folder=folder)
        after = None
        if observe:
            observer = PressureObserver(make_dictionary(model), [concept()])
            context = observer.attached(hf)
            context.__enter__()  # for the length of the benchmark
            OPEN.append(context)

            def after() -> None:
                observer.read(session.state, 0)

        return stepper(trainer, places, after)

    return {
        "TRL": bare,
        "TRL again (placebo)": bare,
        "adapter, plain": ours,
        "adapter + observation": lambda: ours(observe=True),
        "adapter + explain-away (cached)": lambda: ours((explain_away(rows),)),
        "adapter + explain-away + observation": lambda: ours((explain_away(rows),), observe=True),
    }


OPEN: list = []
SITE = "layers.2.resid_post"


def concept() -> Concept:
    """A concept of `LATENTS` latents."""
    return Concept(id="c0", label="-", site=SITE, latents=tuple(range(LATENTS)))


def make_dictionary(model: Model) -> Dictionary:
    """A random dictionary."""
    weights = {
        "W_enc": torch.randn(model.d_model, 8 * model.d_model),
        "W_dec": torch.nn.functional.normalize(torch.randn(8 * model.d_model, model.d_model), dim=-1),
        "b_enc": torch.zeros(8 * model.d_model),
        "b_dec": torch.zeros(model.d_model),
        "threshold": torch.ones(8 * model.d_model),
    }
    return Dictionary(weights, site=SITE, model_fingerprint=model.fingerprint)


def explain_away(rows: list[Encoded]):
    """Explain-away with a table at hand."""
    control = make_control(ControlConfig(name="explain_away"))
    builder = TableBuilder([r.num_loss_tokens for r in rows], VOCAB, top_k=None)
    for place in range(len(rows)):
        builder.put(place, torch.randn(RESPONSE, VOCAB))
    control.tables.append(builder.done({}))
    control.active.append(torch.ones(len(rows) * RESPONSE, dtype=torch.bool))
    return control


def measure(rounds: int, shape: Shape = POCKET, warmup: int = 3) -> dict[str, dict[str, float]]:
    """Seconds of every contender in every round, as ratios to the baseline of the same round."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: make() for name, make in contenders(make_model(shape), Path(folder)).items()}
        names = list(steps)
        seconds = {name: [] for name in names}
        for number in range(warmup + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = time.perf_counter()
                steps[name]()
                if number >= warmup:
                    seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds["TRL"])
    found = {}
    for name in names[1:]:
        low, middle, high = np.percentile(np.array(seconds[name]) / base, [25, 50, 75])
        found[name] = {"ratio": float(middle), "low": float(low), "high": float(high)}
    found["TRL"] = {"seconds": float(np.median(base))}
    return found


def peak_memory(name: str, shape: Shape) -> int:
    """Peak resident memory in bytes of a process that takes five steps of one contender (Linux)."""
    command = [sys.executable, "-m", "benchmarks.bench_training", "--peak", name, *map(str, shape)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def print_peak(name: str, shape: Shape) -> None:
    """Take five steps and print this process's peak resident memory (getrusage would count the parent's before exec)."""
    with tempfile.TemporaryDirectory() as folder:
        step = contenders(make_model(shape), Path(folder))[name]()
        for _ in range(5):
            step()
    status = Path("/proc/self/status").read_text("utf-8")
    print(1024 * int(status.split("VmHWM:")[1].split()[0]))


def by_size(rounds: int, publish: str) -> None:
    """Cost and memory over sizes of the model: table and figure."""
    whole = "adapter + explain-away + observation"
    shown = ("TRL again (placebo)", "adapter + observation", whole)
    rows = []
    for shape in SIZES:
        found = measure(rounds, shape)
        memory = {name: peak_memory(name, shape) / 2**20 for name in ("TRL", whole)}
        values = {name: [found[name][key] for key in ("ratio", "low", "high")] for name in shown}
        rows.append(
            {
                "title": f"{shape.parameters / 1e6:.1f}M parameters",
                "place": shape.parameters,
                "values": values,
                "cells": {
                    "step": f"{1000 * found['TRL']['seconds']:.0f} ms",
                    **{name: f"{one[0]:.2f} ({one[1]:.2f} to {one[2]:.2f})" for name, one in values.items()},
                    "memory": f"{memory['TRL']:.0f} -> {memory[whole]:.0f} MiB",
                },
            }
        )
        print(rows[-1]["title"], rows[-1]["cells"])
    if publish:
        write_table(
            publish,
            title="Cost against model size",
            model="random Llamas",
            command="python -m benchmarks.bench_training --sizes",
            columns=(
                ("step", "plain TRL step"),
                *((name, name) for name in shown),
                ("memory", "peak memory"),
            ),
            rows=rows,
            notes=[
                "Ratios to a plain TRL step of the same round, median and quartiles, one thread; peak resident memory of the process, "
                f"plain TRL and with everything on. {CONFIG.batch_size} rows of {SEQ} tokens, {RESPONSE} in the response, vocabulary "
                f"{VOCAB}; offsets of {ROWS} rows take {ROWS * RESPONSE * VOCAB * 2 / 2**20:.0f} MiB of it."
            ],
            figure={
                "title": "step against a plain TRL step, by parameters",
                "lines": list(shown),
                "unit": "{:.2f} x",
            },
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", action="store_true", help="over sizes of the model, with memory")
    parser.add_argument("--publish", default="", help="with --sizes: name of the table in docs/results")
    parser.add_argument("--peak", nargs=3, metavar=("NAME", "WIDTH", "LAYERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak[0], Shape(int(options.peak[1]), int(options.peak[2])))
        return
    if options.sizes:
        by_size(options.rounds, options.publish)
        return
    found = measure(options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"plain TRL step: {1000 * found.pop('TRL')['seconds']:.0f} ms (random Llama, {options.threads} thread)"
    )
    for name, row in found.items():
        print(f"{name:40} {row['ratio']:.3f} x   (interquartile {row['low']:.3f} to {row['high']:.3f})")


if __name__ == "__main__":
    main()
