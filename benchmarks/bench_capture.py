"""Cost of capture with early stop, against a forward pass that is cut off by hand at the same layer.

    python benchmarks/bench_capture.py [--repeats 60] [--threads 1] [--json]

Baseline: the same modules called one by one (embedding, rotary table, causal mask, blocks 0 to L), which is
the least that has to be computed. Both run in turn, in an order that alternates; each ratio is of one pair.
Printed: the median ratio with its interquartile range, and a placebo, baseline against baseline, whose spread
is the noise of the machine. DESIGN.md section 9 wants at most 1.05; several sites, up to the same layer, should cost at most
1.02 of one. The model is a random Llama of the pocket
model's size (and a smaller one), so that nothing has to be fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from fairlead.models import Model


def make_model(d_model: int, num_layers: int) -> Model:
    """A random Llama with a word-level tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=1536,
        hidden_size=d_model,
        num_hidden_layers=num_layers,
        num_attention_heads=d_model // 32,
        intermediate_size=d_model * 8 // 3 // 32 * 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1536)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", unk_token="w0")
    return Model.wrap(LlamaForCausalLM(config).eval(), tokenizer, f"llama d={d_model} layers={num_layers}")


@torch.no_grad()
def forward_by_hand(model: Model, batch: SimpleNamespace, layer: int) -> torch.Tensor:
    """The residual stream after block `layer` `[batch, seq, d]`, computed without Fairlead."""
    from transformers.masking_utils import create_causal_mask

    base = model.hf.model
    hidden = base.embed_tokens(batch.input_ids)
    positions = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
    mask = create_causal_mask(
        config=base.config,
        inputs_embeds=hidden,
        attention_mask=batch.attention_mask,
        past_key_values=None,
        position_ids=positions,
    )
    rotary = base.rotary_emb(hidden, position_ids=positions)
    for block in base.layers[: layer + 1]:
        hidden = block(
            hidden,
            attention_mask=mask,
            position_embeddings=rotary,
            position_ids=positions,
            past_key_values=None,
            use_cache=False,
        )
    return hidden


def ratios(first: Callable[[], object], second: Callable[[], object], repeats: int) -> np.ndarray:
    """Time of `first` over that of `second`, per pair of runs in alternating order, `[repeats]`."""

    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(5):
        first(), second()
    found = []
    for repeat in range(repeats):
        if repeat % 2:
            one, two = seconds(first), seconds(second)
        else:
            two, one = seconds(second), seconds(first)
        found.append(one / two)
    return np.array(found)


def summary(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles of ratios."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": round(float(middle), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def bench(repeats: int) -> list[dict]:
    """One row per model, batch and layer."""
    rows = []
    for d_model, num_layers, shape in ((192, 6, (32, 48)), (192, 6, (64, 64)), (64, 5, (32, 64))):
        model = make_model(d_model, num_layers)
        model.hf.to("cuda" if torch.cuda.is_available() else "cpu")
        ids = torch.randint(1, 1536, shape, device=model.device)
        mask = torch.ones_like(ids)
        mask[0, shape[1] // 2 :] = 0
        batch = SimpleNamespace(input_ids=ids, attention_mask=mask)
        layer = num_layers // 2
        site = f"layers.{layer}.resid_post"
        by_hand = forward_by_hand(model, batch, layer)
        captured = model.capture(batch, [site])[site]
        real = mask.bool()
        torch.testing.assert_close(captured[real], by_hand[real], atol=1e-4, rtol=1e-4)

        def hand(model: Model = model, batch: SimpleNamespace = batch, layer: int = layer) -> object:
            return forward_by_hand(model, batch, layer)

        def capture(model: Model = model, batch: SimpleNamespace = batch, site: str = site) -> object:
            return model.capture(batch, [site])

        several = [f"layers.{place}.resid_post" for place in range(layer)] + [site]

        def capture_several(
            model: Model = model, batch: SimpleNamespace = batch, several: list[str] = several
        ) -> object:
            return model.capture(batch, several)

        rows.append(
            {
                "model": model.name,
                "batch": f"{shape[0]} x {shape[1]}",
                "site": site,
                "ratio": summary(ratios(capture, hand, repeats)),
                "placebo": summary(ratios(hand, hand, repeats)),
                "num_sites": len(several),
                "several_over_one": summary(ratios(capture_several, capture, repeats)),
            }
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = bench(options.repeats)
    if options.json:
        print(json.dumps({"capture_over_forward_by_hand": rows, "target": 1.05}))
        return
    print("capture with early stop / forward by hand to the same layer (target: at most 1.05)")
    for row in rows:
        ratio, placebo = row["ratio"], row["placebo"]
        more = row["several_over_one"]
        print(
            f"  {row['model']:24} batch {row['batch']:8} {row['site']:20} {ratio['median']:.3f} "
            f"[{ratio['low']:.3f}, {ratio['high']:.3f}]   by hand / by hand {placebo['median']:.3f} "
            f"[{placebo['low']:.3f}, {placebo['high']:.3f}]   {row['num_sites']} sites / one {more['median']:.3f} "
            f"[{more['low']:.3f}, {more['high']:.3f}]"
        )


if __name__ == "__main__":
    main()
