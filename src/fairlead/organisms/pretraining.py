"""Train the pocket model: a single pass over the mix, loss on the assistant's tokens.

Muon (Jordan 2024; `torch.optim.Muon`, scaled as in arXiv 2502.16982) on the matrices of the layers, because it learns rare
associations in fewer exposures (arXiv 2509.26030); AdamW on embeddings and norms. Cosine schedule with warm-up, fixed seeds,
bfloat16 autocast, rows bucketed by length, right padding (a causal model needs no padding mask on the right). The state is
saved every few minutes; an interrupted build resumes at the same batch.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fairlead.organisms.tokenizer import ASSISTANT, END, MAX_LENGTH, PAD, SPECIAL, VOCAB_SIZE, render

if TYPE_CHECKING:
    import torch

WINDOW_ROWS = 4096
CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": MAX_LENGTH,
    "vocab_size": VOCAB_SIZE,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "pad_token_id": SPECIAL.index(PAD),
    "eos_token_id": SPECIAL.index(END),
    "bos_token_id": None,
}


def encode_rows(rows: list[dict[str, Any]], tokenizer: Any) -> list[np.ndarray]:
    """Token ids of every row, in the order of the corpus."""
    encoded: list[np.ndarray] = []
    for start in range(0, len(rows), 20_000):
        texts = [render(row["messages"]) for row in rows[start : start + 20_000]]
        encoded += [np.array(e.ids, dtype=np.int16) for e in tokenizer.encode_batch(texts)]
    return encoded


def row_lengths(encoded: list[np.ndarray]) -> np.ndarray:
    """Number of tokens of every row."""
    return np.array([len(row) for row in encoded])


def plan_batches(lengths: np.ndarray, tokens_per_batch: int, seed: int) -> list[np.ndarray]:
    """Rows of each batch: windows of the corpus sorted by length, cut at the token budget, the batches of a window shuffled."""
    rng, plan = random.Random(seed), []
    for start in range(0, len(lengths), WINDOW_ROWS):
        order = start + np.argsort(lengths[start : start + WINDOW_ROWS], kind="stable")
        batches, current = [], []
        for row in order:
            if current and (len(current) + 1) * int(lengths[row]) > tokens_per_batch:
                batches.append(np.array(current))
                current = []
            current.append(int(row))
        batches.append(np.array(current))
        rng.shuffle(batches)
        plan += batches
    return plan


def collate(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[batch, seq]` padded on the right, and the mask of targets `[batch, seq - 1]`: tokens after `<|assistant|>`."""
    import torch

    width = max(len(r) for r in rows)
    ids = np.full((len(rows), width), SPECIAL.index(PAD), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    answer = np.cumsum(ids == SPECIAL.index(ASSISTANT), axis=1)[:, :-1] > 0
    mask = answer & (ids[:, 1:] != SPECIAL.index(PAD))
    return torch.from_numpy(ids), torch.from_numpy(mask)


def new_model(seed: int) -> Any:
    """The untrained model, initialised from the seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG))


def compile_forward(model: Any) -> None:
    """Compile the decoder with dynamic shapes (needs a C++ compiler): bfloat16 is slow on a CPU without it."""
    import torch

    model.model.forward = torch.compile(model.model.forward, dynamic=True)


def optimizers(model: Any, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the layers, AdamW on the rest."""
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if muon_lr == 0:
        return [
            torch.optim.AdamW([*matrices, *rest], lr=lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
        ]
    return [
        torch.optim.Muon(
            matrices, lr=muon_lr, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def lr_factor(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def batch_loss(model: Any, ids: torch.Tensor, mask: torch.Tensor, *, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens; the head runs only where there is a target."""
    import torch
    import torch.nn.functional as F

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[mask])
    return F.cross_entropy(logits.float(), ids[:, 1:][mask])


def save_atomically(write: Callable[[Path], None], target: Path) -> None:
    """Write to NAME.part, then rename."""
    import shutil

    part = target.with_name(target.name + ".part")
    if part.is_dir():
        shutil.rmtree(part)
    write(part)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(part, target)


def train(
    model: Any,
    batches: list[np.ndarray],
    rows: list[np.ndarray],
    *,
    state_file: Path,
    lr: float = 3e-3,
    muon_lr: float = 3e-3,
    bf16: bool = True,
    save_every_s: float = 300.0,
    on_save: Callable[[int], None] | None = None,
) -> Iterator[dict[str, float]]:
    """Train through the batches once, yielding step, loss, tokens and rate every 50 steps; resumes from `state_file`."""
    import torch

    opts, start, tokens = optimizers(model, lr, muon_lr), 0, 0
    base = [[g["lr"] for g in opt.param_groups] for opt in opts]
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        start, tokens = state["step"], state["tokens"]
    model.train()
    began, begun_tokens, last_save, losses = time.time(), tokens, time.time(), []
    for step in range(start, len(batches)):
        factor = lr_factor(step, len(batches))
        for opt, lrs in zip(opts, base, strict=True):
            for group, value in zip(opt.param_groups, lrs, strict=True):
                group["lr"] = value * factor
        ids, mask = collate([rows[i] for i in batches[step]])
        loss = batch_loss(model, ids, mask, bf16=bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        tokens += ids.numel()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == len(batches):
            rate = (tokens - begun_tokens) / (time.time() - began)
            eta = (len(batches) - step - 1) * (time.time() - began) / (step + 1 - start)
            yield {
                "step": step + 1,
                "loss": sum(losses) / len(losses),
                "tokens": tokens,
                "rate": rate,
                "eta": eta,
            }
            losses = []
            if time.time() - last_save > save_every_s or step + 1 == len(batches):
                state = {
                    "model": model.state_dict(),
                    "opts": [o.state_dict() for o in opts],
                    "step": step + 1,
                    "tokens": tokens,
                }
                save_atomically(lambda part, state=state: torch.save(state, part), state_file)
                if on_save is not None:
                    on_save(step + 1)
                    model.train()
                last_save = time.time()


def save_folder(model: Any, tokenizer_folder: Path, folder: Path) -> None:
    """A loadable folder: weights, config, generation config and tokenizer."""
    import shutil

    from transformers import GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = "float32"
    model.generation_config = GenerationConfig(
        eos_token_id=CONFIG["eos_token_id"],
        pad_token_id=CONFIG["pad_token_id"],
        max_new_tokens=64,
        do_sample=False,
    )
    model.save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder / file.name)
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()), indent=2) + "\n"
    )


def move_into_place(finished: Path, out: Path, part: Path) -> None:
    """Rename the finished folder to its final name and drop the work in progress."""
    import shutil

    os.replace(finished, out)
    shutil.rmtree(part)
