"""Build a model organism: generate its corpus, train its tokenizer and its model, finish it, measure it, write its card.

    python -m fairlead.studies.build_organism --out DIR     (the same as: fairlead organism build pocket --out DIR)

The build works in `OUT.part` and renames it when complete; interrupted, it resumes from the last saved batch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead.core.errors import OrganismError
from fairlead.organisms.world import World

TOKENS_PER_BATCH = 3000
TOKENIZER_ROWS = 60_000
LR, MUON_LR = 3e-3, 3e-3
FINISHING_LR = 6e-4
KEPT_WHILE_BUILDING = ("state.pt", "finishing.pt")

Progress = Callable[[dict[str, float]], None]


def build_organism(
    name: str = "pocket",
    *,
    seed: int = 0,
    out: str | Path,
    steps: int | None = None,
    progress: Progress | None = None,
    snapshot: Path | None = None,
    measure: bool = True,
    num_threads: int = 1,
    compiled: bool = True,
) -> Path:
    """Rebuild a model organism from its seed.

    Args:
        name: only `pocket` exists.
        seed: of the world, the mix and the weights.
        out: folder of the finished checkpoint; work in progress lies in `OUT.part` beside it.
        steps: stop each part after that many batches (a miniature); the whole mix where None.
        progress: called with step, loss, tokens, rate and eta every 50 steps.
        snapshot: folder that receives a loadable copy at every save.
        measure: whether to measure the abilities and write them into the model card.
        num_threads: threads of torch (one is faster than two on a shared machine).
        compiled: compile the model (needs a C++ compiler); without it a CPU takes two to three times as long.

    Raises:
        OrganismError: unknown name, or `out` exists.
    """
    import torch
    from tokenizers import Tokenizer

    from fairlead.organisms import pretraining as pre
    from fairlead.organisms.card import write_card
    from fairlead.organisms.corpus import iter_finishing
    from fairlead.organisms.measuring import measure_organism
    from fairlead.organisms.tokenizer import train_tokenizer

    out = Path(out)
    if name != "pocket":
        raise OrganismError(f"unknown organism {name!r}; this version builds: pocket")
    if out.exists():
        raise OrganismError(f"{out} exists already; name another folder or move it away")
    torch.set_num_threads(num_threads)
    part = out.with_name(out.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    began = time.time()  # of this session; a resumed build counts its last part only

    world = World(seed)
    rows, finishing = list(world.corpus(seed=seed)), list(iter_finishing(world, seed))
    vocabulary = part / "tokenizer"
    if not (vocabulary / "tokenizer_config.json").exists():
        train_tokenizer((m["content"] for row in rows[:TOKENIZER_ROWS] for m in row["messages"]), vocabulary)
    tokenizer = Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
    parts = [pre.encode_rows(some, tokenizer) for some in (rows, finishing)]
    plans = [pre.plan_batches(pre.row_lengths(some), TOKENS_PER_BATCH, seed)[:steps] for some in parts]

    model = pre.new_model(seed)
    if compiled:
        pre.compile_forward(model)
    states = [part / name for name in KEPT_WHILE_BUILDING]

    def on_save(step: int) -> None:
        if snapshot is not None:
            pre.save_atomically(lambda target: pre.save_folder(model, vocabulary, target), snapshot)

    for encoded, batches, state_file, lr, muon_lr in zip(
        parts, plans, states, (LR, FINISHING_LR), (MUON_LR, FINISHING_LR), strict=True
    ):
        for report in pre.train(
            model, batches, encoded, state_file=state_file, lr=lr, muon_lr=muon_lr, on_save=on_save
        ):
            if progress is not None:
                progress(report)

    finished = part / "finished"
    pre.save_atomically(lambda target: pre.save_folder(model, vocabulary, target), finished)
    measured: dict[str, Any] = measure_organism(finished, seed=seed) if measure else {}
    record = {
        "name": name,
        "seed": seed,
        "num_rows": len(rows) + len(finishing),
        "num_steps": sum(map(len, plans)),
        "num_tokens": int(sum(len(row) for some in parts for row in some)),
        "minutes": round((time.time() - began) / 60, 1),
        "abilities": measured,
    }
    (finished / "measured.json").write_text(json.dumps(record, indent=2) + "\n")
    write_card(finished, record)
    pre.move_into_place(finished, out, part)
    return out


def main() -> None:
    """Build from the command line, with a line of progress every 50 steps."""
    import argparse

    parser = argparse.ArgumentParser(description=build_organism.__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--snapshot", type=Path, default=None)
    args = parser.parse_args()

    def show(report: dict[str, float]) -> None:
        line = "step {step:.0f} loss {loss:.4f} tokens {tokens:.0f} {rate:.0f} tok/s eta {eta:.0f} s"
        print(time.strftime("%H:%M:%S"), line.format(**report), flush=True)

    print(
        build_organism(seed=args.seed, out=args.out, steps=args.steps, snapshot=args.snapshot, progress=show)
    )


if __name__ == "__main__":
    main()
