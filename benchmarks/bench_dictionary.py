"""Dictionary training against SAELens and sparsify, side by side: a step, and the whole way from the model to a dictionary.

    python -m benchmarks.bench_dictionary --saelens-python ENV/bin/python --sparsify-python ENV/bin/python
        --tokens 300000 [--threads 2] [--rounds 12] [--publish dictionary_speed] [--json]

The others run in environments of their own (`pip install sae-lens==6.54.12 torch==2.13.0`, `pip install eai-sparsify==1.3.3
torch==2.13.0`), each arm in a process that stays (`dictionary_arms.py`): same model (pocket), site, width, k, tokens, batch, Adam,
step size, warm-up and decay, all scaled to the same norm. Steps are timed in rounds: every arm runs a few steps in turn, in an order
that alternates, and a ratio is of one round, so that what else the machine does hits all arms alike. Printed: median and quartiles of
the ratios to our arm of the same kind, a placebo (our arm twice) that shows the noise, seconds from model to dictionary, and the
held-out FVU. Ours starts with a fitted encoder (`fit_start`), as the others start with a small one. Of SAELens' settings there are its
defaults, autocast of the dictionary (`autocast`), and of the model as well (`autocast_lm`); with `--compiled` also torch.compile, which
needs a compiler; its sparse TopK activations did not run on a CPU. Arms whose model runs in bfloat16 stand against ours that does so. The
encoder's matmul by itself is an arm of its own: a step is to cost less than two of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.bench_capture import summary
from benchmarks.summary import write_table

WORKER = Path(__file__).with_name("dictionary_arms.py")
FITTED = {"fit_start": True}
LOW = {**FITTED, "harvest_dtype": "bfloat16"}
COMPILED = {"autocast": True, "compile_sae": True}
TARGETS = {  # what the project set itself, by arm
    "SAELens, defaults": "training: at least 5 x",
    "SAELens, autocast": "training: at least 3 x",
    "SAELens, autocast, model too": "training: at least 3 x",
    "SAELens, compiled autocast": "training: at least 3 x",
    "encoder matmul alone, float32": "step: above 0.5 x",
}


class Worker:
    """An arm in its own process."""

    def __init__(self, python: str, library: str, spec: dict[str, Any], name: str) -> None:
        path = Path(spec["folder"]) / f"{name.replace(' ', '_')}.json"
        path.write_text(json.dumps(spec))
        threads = {"OMP_NUM_THREADS": str(spec["threads"]), "MKL_NUM_THREADS": str(spec["threads"])}
        self.name = name
        self.log = path.with_suffix(".log")
        self.process = subprocess.Popen(
            [python, str(WORKER), library, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env={**os.environ, **threads, "WANDB_MODE": "disabled"},
        )
        self._answer()

    def ask(self, command: str) -> dict[str, float]:
        """Have a command done."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; its last words:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@torch.no_grad()
def prepare(folder: Path, *, layer: int, context: int, num_rows: int) -> tuple[str, int]:
    """Write tokens, activations in memory (scaled) and held-out ones (as the model has them); the model's folder and width."""
    from fairlead.core.site import Site
    from fairlead.data import Encoded, Row, encode
    from fairlead.dictionaries.source import harvest
    from fairlead.models import load_model
    from fairlead.organisms import World, pocket_path

    model = load_model(str(pocket_path()), dtype="float32", device="cpu")
    chats = [row["messages"] for row in World().corpus(num_rows, seed=1)]
    rows = encode(chats, model.tokenizer, max_length=model.max_length, on_long="truncate")
    first = rows[0].input_ids[0]
    stream = [token for row in rows for token in row.input_ids]
    tokens = torch.tensor(stream[: len(stream) // (context - 1) * (context - 1)]).view(-1, context - 1)
    tokens = torch.cat([torch.full((len(tokens), 1), first), tokens], dim=1)
    held, tokens = tokens[:400], tokens[400:]

    def activations(part: torch.Tensor) -> torch.Tensor:
        texts = [
            Encoded(ids.tolist(), [True] * context, place, Row(text="")) for place, ids in enumerate(part)
        ]
        return harvest(model, texts, Site.parse(f"layers.{layer}.resid_post"), rows=range(len(texts)))

    acts = activations(tokens[:2000])
    acts = acts[torch.randperm(len(acts), generator=torch.Generator().manual_seed(0))]
    scaled = acts * (acts.shape[1] ** 0.5 / acts.norm(dim=-1).mean())
    data = {"acts": scaled, "held_out": activations(held), "tokens": tokens}
    save_file({name: value.contiguous() for name, value in data.items()}, folder / "data.safetensors")
    return str(pocket_path()), acts.shape[1]


def arms_of(options: argparse.Namespace) -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """Name to (Python, library, kind, options)."""
    found: dict[str, tuple[str, str, str, dict[str, Any]]] = {
        "fairlead": (sys.executable, "fairlead", "batch_topk", FITTED),
        "fairlead again (placebo)": (sys.executable, "fairlead", "batch_topk", FITTED),
        "fairlead, float32": (sys.executable, "fairlead", "batch_topk", {**FITTED, "precision": "float32"}),
    }
    found["fairlead, model in bfloat16"] = (sys.executable, "fairlead", "batch_topk", LOW)
    for dtype in ("float32", "bfloat16"):
        found[f"encoder matmul alone, {dtype}"] = (sys.executable, "matmul", "batch_topk", {"dtype": dtype})
    if options.saelens_python:
        python = options.saelens_python
        found["SAELens, defaults"] = (python, "saelens", "batch_topk", {})
        found["SAELens, autocast"] = (python, "saelens", "batch_topk", {"autocast": True})
        both = {"autocast": True, "autocast_lm": True}
        found["SAELens, autocast, model too"] = (python, "saelens", "batch_topk", both)
        if options.compiled:
            found["SAELens, compiled autocast"] = (python, "saelens", "batch_topk", COMPILED)
    if options.sparsify_python:
        found["fairlead, TopK"] = (sys.executable, "fairlead", "topk", FITTED)
        found["fairlead, TopK, model in bfloat16"] = (sys.executable, "fairlead", "topk", LOW)
        found["sparsify, TopK"] = (options.sparsify_python, "sparsify", "topk", {})
        low = {"model_dtype": "bfloat16"}
        found["sparsify, TopK, model in bfloat16"] = (options.sparsify_python, "sparsify", "topk", low)
        if options.saelens_python:
            found["SAELens, TopK"] = (options.saelens_python, "saelens", "topk", {})
    return arms_kept(found, options.only)


def rival_of(arm: str, kind: str) -> str:
    """Our arm of the same kind, with the model in the same type."""
    ours = "fairlead, TopK" if kind == "topk" else "fairlead"
    low = arm.endswith(("model too", "model in bfloat16")) and not arm.startswith("fairlead")
    return f"{ours}, model in bfloat16" if low else ours


def arms_kept(found: dict[str, Any], only: str) -> dict[str, Any]:
    """The arms whose name holds `only`, and ours that they stand against."""
    kept = {name for name in found if only in name}
    kept |= {rival_of(name, found[name][2]) for name in kept}
    return {name: arm for name, arm in found.items() if name in kept}


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Per arm: seconds a step (median), ratios to our arm, seconds of a training, tokens a second, FVU."""
    arms = arms_of(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, d_model = prepare(folder, layer=3, context=64, num_rows=options.rows)
        num_steps = options.tokens // options.batch
        common = {
            "folder": name,
            "model": model,
            "layer": 3,
            "site": "layers.3.resid_post",
            "d_dict": options.latents or 8 * d_model,
            "k": options.k,
            "batch_tokens": options.batch,
            "num_tokens": num_steps * options.batch,
            "buffer_tokens": 32 * options.batch,
            "lr": options.lr,
            "warmup_steps": num_steps // 20,
            "decay_steps": num_steps // 4,
            "threads": options.threads,
        }
        found: dict[str, dict[str, Any]] = {arm: {"steps": []} for arm in arms}
        workers: dict[str, Worker] = {}
        try:
            for arm, (python, library, kind, own) in arms.items():
                print(f"starting {arm}", file=sys.stderr)
                workers[arm] = Worker(python, library, {**common, "kind": kind, "options": own}, arm)
                workers[arm].ask("steps 3")
            for round_number in range(options.rounds):
                order = list(workers) if round_number % 2 else list(reversed(workers))
                for arm in order:
                    seconds = workers[arm].ask(f"steps {options.steps}")["seconds"]
                    found[arm]["steps"].append(seconds / options.steps)
                print(f"round {round_number + 1} of {options.rounds}", file=sys.stderr)
            trainings: dict[str, list[float]] = {arm: [] for arm in workers}
            for repeat in range(options.trainings):
                order = [arm for arm in workers if arms[arm][1] != "matmul"]
                for arm in order if repeat % 2 else reversed(order):
                    answer = workers[arm].ask("train")
                    trainings[arm].append(answer["seconds"])
                    found[arm]["fvu"] = answer["fvu"]
                    print(f"{arm}: {answer}", file=sys.stderr)
        finally:
            for worker in workers.values():
                worker.close()
    for arm in arms:
        found[arm]["trainings"] = trainings[arm]
    for arm, (_, _, kind, _) in arms.items():
        ours = rival_of(arm, kind)
        times, base = np.array(found[arm]["steps"]), np.array(found[ours]["steps"])
        found[arm]["step_ms"] = round(1e3 * float(np.median(times)), 2)
        found[arm]["step_ratio"] = summary(times / base)
        if trainings[arm]:
            whole, own = np.array(trainings[arm]), np.array(trainings[ours])
            found[arm]["train_seconds"] = round(float(np.median(whole)), 2)
            found[arm]["tokens_per_second"] = round(common["num_tokens"] / float(np.median(whole)))
            found[arm]["train_ratio"] = summary(whole / own)
            best = found.get(f"{'fairlead, TopK' if kind == 'topk' else 'fairlead'}, model in bfloat16")
            if best is not None:
                found[arm]["best_ratio"] = summary(whole / np.array(best["trainings"]))
            found[arm]["fvu_ratio"] = round(found[arm]["fvu"] / found[ours]["fvu"], 4)
    for row in found.values():
        del row["steps"], row["trainings"]
    return found


def main() -> None:
    """Measure, print, and publish where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saelens-python", default="", help="Python of an environment with sae-lens")
    parser.add_argument("--sparsify-python", default="", help="Python of an environment with eai-sparsify")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of timed steps")
    parser.add_argument("--steps", type=int, default=5, help="steps of an arm in a round")
    parser.add_argument("--trainings", type=int, default=3, help="whole trainings of each arm")
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens of a whole training")
    parser.add_argument("--rows", type=int, default=12_000, help="chats from which the tokens come")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--latents", type=int, default=0, help="8 times the model's width where 0")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--compiled", action="store_true", help="also SAELens with torch.compile (needs a compiler)"
    )
    parser.add_argument("--only", default="", help="arms whose name holds this")
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        for arm, row in found.items():
            print(
                f"{arm:28} step {row['step_ms']:8.2f} ms, {row['step_ratio']['median']:6.2f} x ours "
                f"[{row['step_ratio']['low']:.2f}, {row['step_ratio']['high']:.2f}]"
                + (
                    f"   training {row['tokens_per_second']:>8,} tokens/s, {row['train_ratio']['median']:.2f} x ours, "
                    f"FVU {row['fvu']:.4f} ({row['fvu_ratio']:.3f} x ours)"
                    if "train_seconds" in row
                    else ""
                )
            )
    if options.publish:
        publish(options, found)


def publish(options: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Write the table."""
    rows = []
    for arm, row in found.items():
        cells = {
            "step": f"{row['step_ms']:.1f} ms",
            "ratio": f"{row['step_ratio']['median']:.2f} x",
            "spread": f"{row['step_ratio']['low']:.2f} to {row['step_ratio']['high']:.2f}",
        }
        if "train_seconds" in row:
            cells |= {
                "speed": f"{row['tokens_per_second']:,}",
                "whole": f"{row['train_ratio']['median']:.2f} x",
                "whole_spread": f"{row['train_ratio']['low']:.2f} to {row['train_ratio']['high']:.2f}",
                "best": f"{row['best_ratio']['median']:.2f} x" if "best_ratio" in row else "",
                "fvu": f"{row['fvu']:.4f}",
            }
        if arm in TARGETS:
            cells["target"] = TARGETS[arm]
        rows.append({"title": arm, "cells": cells})
    write_table(
        options.publish,
        title="Dictionary training: a step, and from the model to a dictionary",
        model="organism:pocket, layer 3",
        command="python -m benchmarks.bench_dictionary --saelens-python ... --sparsify-python ... "
        f"--tokens {options.tokens} --threads {options.threads} --rounds {options.rounds}"
        + ("" if any("train_seconds" in row for row in found.values()) else " --trainings 0 --only matmul"),
        columns=(
            ("step", "step"),
            ("ratio", "step / ours"),
            ("spread", "quartiles"),
            ("speed", "tokens/s, whole training"),
            ("whole", "training / ours"),
            ("whole_spread", "quartiles"),
            ("best", "training / ours, model in bfloat16"),
            ("fvu", "held-out FVU"),
            ("target", "wanted"),
        ),
        rows=rows,
        notes=[
            f"{options.threads} threads, {platform.machine()} CPU; batch {options.batch}, k {options.k}, "
            f"{options.tokens:,} tokens; sae-lens 6.54.12, eai-sparsify 1.3.3, torch {torch.__version__} in every arm. "
            "Ratios are medians over rounds in which all arms ran in turn, with quartiles; TopK arms stand against our TopK, arms "
            "whose model runs in bfloat16 against ours that does; beside it every training against ours with the model in bfloat16 "
            "(an option, off by default). Wanted: 5 times SAELens' defaults and 3 times its best end to end, and a step below two "
            "encoder matmuls (the matmul then takes more than half of ours).",
        ],
    )


if __name__ == "__main__":
    main()
