"""Cost of the menu, against a plain forward and backward pass on the same batches.

    python benchmarks/bench_menu.py [--repeats 20] [--model FOLDER] [--json]

Baseline: forward, summed token loss, `backward()` with weight gradients: what one training step computes before
the optimiser. Menu: `measure_uptake` on the same examples and batch size, everything included (bootstrap, halves,
table, remainder, hashing of the model for the dictionary's check). Both run in turn, in an order that alternates.
Printed: median ratio with its interquartile range, and a placebo, baseline against baseline, whose spread is
the noise of the machine. DESIGN.md section 9 wants at most 1.10. Without --model a random Llama of the pocket
model's size is used, so that nothing has to be fetched; the dictionary is random with about `k` active latents.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from benchmarks.bench_capture import make_model
from fairlead.core.progress import quiet
from fairlead.data import Encoded, Row, iter_batches
from fairlead.dictionaries import Dictionary, token_loss
from fairlead.gradients import measure_uptake
from fairlead.models import Model, load_model

BATCH = 32


def make_rows(model: Model, num: int) -> list[Encoded]:
    """Random chats: about 12 tokens of prompt, about 16 of response."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(num):
        prompt, response = torch.randint(8, 20, (2,), generator=generator).tolist()
        ids = torch.randint(5, model.hf.config.vocab_size, (prompt + response,), generator=generator).tolist()
        rows.append(Encoded(ids, [False] * prompt + [True] * response, index, Row(text="x")))
    return rows


def make_dictionary(model: Model, rows: list[Encoded], *, d_dict: int, k: int) -> Dictionary:
    """Random unit rows with the threshold that leaves about `k` latents active."""
    decoder = torch.nn.functional.normalize(
        torch.randn(d_dict, model.d_model, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    site = model.default_site()
    batch = next(iter_batches(rows, batch_size=BATCH, pad_id=model.pad_id))
    hidden = model.capture(batch, [site])[str(site)].flatten(0, 1)
    centre = hidden.mean(0)
    pre = (hidden - centre) @ decoder.T
    threshold = float(torch.quantile(pre[:200].flatten(), 1 - k / d_dict))
    weights = {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": torch.zeros(d_dict),
        "b_dec": centre,
        "threshold": torch.full((d_dict,), threshold),
    }
    return Dictionary(weights, site=site, model_fingerprint=model.fingerprint)


def plain(model: Model, rows: list[Encoded]) -> None:
    """Forward and backward with weight gradients."""
    for batch in iter_batches(rows, batch_size=BATCH, pad_id=model.pad_id):
        loss, _ = token_loss(model.forward(batch), batch)
        loss.backward()
        model.hf.zero_grad(set_to_none=True)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratios(first: Callable[[], object], second: Callable[[], object], repeats: int) -> np.ndarray:
    """Time of `first` over that of `second`, per pair in alternating order, `[repeats]`."""
    found = []
    for number in range(repeats):
        if number % 2:
            one, other = seconds(first), seconds(second)
        else:
            other, one = seconds(second), seconds(first)
        found.append(one / other)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--model")
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--d-dict", type=int, default=1536)
    parser.add_argument("--k", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model) if arguments.model else make_model(192, 6)
    rows = make_rows(model, arguments.num)
    dictionary = make_dictionary(model, rows, d_dict=arguments.d_dict, k=arguments.k)
    with quiet():

        def menu() -> None:
            measure_uptake(model, dictionary, rows, batch_size=BATCH)

        menu()
        plain(model, rows)
        measured = ratios(menu, lambda: plain(model, rows), arguments.repeats)
        placebo = ratios(lambda: plain(model, rows), lambda: plain(model, rows), arguments.repeats)
    result = {
        name: {"median": float(np.median(values)), "quartiles": np.quantile(values, [0.25, 0.75]).tolist()}
        for name, values in (("menu", measured), ("placebo", placebo))
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{model.name}, {arguments.num} examples, d_dict {arguments.d_dict}, about {arguments.k} active")
    for name, found in result.items():
        low, high = found["quartiles"]
        print(f"{name:8} {found['median']:.3f} x forward + backward ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
