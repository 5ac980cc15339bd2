"""Cost of a training step under the adapter, with observation and with controls, against a plain TRL step.

    python benchmarks/bench_training.py [--rounds 40] [--threads 1] [--json]

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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import numpy as np
import torch
import trl

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

ROWS, SEQ, RESPONSE, VOCAB, D_MODEL, LAYERS, D_DICT, LATENTS = 256, 36, 16, 1024, 192, 6, 1536, 40
CONFIG = TrainConfig(steps=10_000, batch_size=32, warmup_steps=0, checkpoint_every=0)
Step = Callable[[], None]


def make_model() -> Model:
    """A random Llama of the pocket model's size."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        intermediate_size=512,
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


def contenders(model: Model, folder: Path) -> dict[str, Step]:
    """The steps to compare, by name."""
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
        "TRL": bare(),
        "TRL again (placebo)": bare(),
        "adapter, plain": ours(),
        "adapter + observation": ours(observe=True),
        "adapter + explain-away (cached)": ours((explain_away(rows),)),
        "adapter + explain-away + observation": ours((explain_away(rows),), observe=True),
    }


OPEN: list = []


def concept() -> Concept:
    """A concept of `LATENTS` latents."""
    return Concept(id="c0", label="-", site="layers.3.resid_post", latents=tuple(range(LATENTS)))


def make_dictionary(model: Model) -> Dictionary:
    """A random dictionary."""
    weights = {
        "W_enc": torch.randn(D_MODEL, D_DICT),
        "W_dec": torch.nn.functional.normalize(torch.randn(D_DICT, D_MODEL), dim=-1),
        "b_enc": torch.zeros(D_DICT),
        "b_dec": torch.zeros(D_MODEL),
        "threshold": torch.ones(D_DICT),
    }
    return Dictionary(weights, site="layers.3.resid_post", model_fingerprint=model.fingerprint)


def explain_away(rows: list[Encoded]):
    """Explain-away with a table at hand."""
    control = make_control(ControlConfig(name="explain_away"))
    builder = TableBuilder([r.num_loss_tokens for r in rows], VOCAB, top_k=None)
    for place in range(len(rows)):
        builder.put(place, torch.randn(RESPONSE, VOCAB))
    control.tables.append(builder.done({}))
    control.active.append(torch.ones(len(rows), dtype=torch.bool))
    return control


def measure(rounds: int, warmup: int = 3) -> dict[str, dict[str, float]]:
    """Seconds of every contender in every round, as ratios to the baseline of the same round."""
    with tempfile.TemporaryDirectory() as folder:
        steps = contenders(make_model(), Path(folder))
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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
