"""Planted features: does our trainer find at least as many as SAELens' at equal tokens?

For each variant (independent, correlated, hierarchical) and seed, one file of activations made from a known dictionary goes to both
trainers, in the same order: same width, k, batch and number of tokens. SAELens trains BatchTopK twice: with its default step size, and with
ours (step size, warm-up, decay). The floor is a decoder of random rows. Measured on fresh tokens (`fairlead.dictionaries.synthetic`).

    python -m benchmarks.recovery --saelens-python SIDE/bin/python --out runs/recovery [--publish recovery]
"""

from __future__ import annotations

import argparse
import subprocess
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.summary import cell, write_table
from fairlead.core.progress import say
from fairlead.core.run import write_json
from fairlead.dictionaries import Dictionary, DictionaryConfig, fit_dictionary, load_dictionary
from fairlead.dictionaries.synthetic import Planted, PlantedConfig, measure_recovery

SITE = "layers.0.resid_post"
OURS = {"batch_topk": "Fairlead BatchTopK", "jumprelu": "Fairlead JumpReLU"}
THEIRS = {"default": "SAELens BatchTopK, its defaults", "ours": "SAELens BatchTopK, our step size"}
RANDOM = "random decoder"
VARIANTS = ("independent", "correlated", "hierarchical")


def fairlead(x: torch.Tensor, config: DictionaryConfig) -> Dictionary:
    """Our trainer on the rows in order."""
    with torch.no_grad():
        return Dictionary(fit_dictionary(iter(x.split(config.batch_tokens)), config).export(), site=SITE)


def saelens(python: str, data: Path, out: Path, config: DictionaryConfig, *, ours: bool) -> Dictionary:
    """SAELens' trainer on the same rows, in its own environment; kept where it stands."""
    if not (out / "cfg.json").is_file():
        words = [python, "benchmarks/recovery_saelens.py", str(data), str(out), "--d-sae", str(config.d_dict)]
        words += ["--k", str(config.k), "--batch", str(config.batch_tokens), "--seed", str(config.seed)]
        if ours:
            words += [
                "--lr",
                str(config.lr),
                "--warm-up",
                str(config.warmup),
                "--decay",
                str(config.decay),
            ]
        environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(Path.home())}
        subprocess.run(words, check=True, env=environment)
    return load_dictionary(out, site=SITE)


def random_decoder(d_dict: int, d_model: int, seed: int) -> Dictionary:
    """Unit rows drawn at random, encoder = decoder transposed, nothing active: the floor of the matching."""
    rows = torch.randn(d_dict, d_model, generator=torch.Generator().manual_seed(50_000 + seed))
    rows = rows / rows.norm(dim=-1, keepdim=True)
    weights = {"W_enc": rows.T, "W_dec": rows, "b_enc": torch.zeros(d_dict), "b_dec": torch.zeros(d_model)}
    return Dictionary({**weights, "threshold": torch.ones(d_dict)}, site=SITE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saelens-python", default="", help="python of an environment with sae-lens")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--active", type=int, default=8, help="features on in a token; k of the dictionaries")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--publish", default="", help="name of the table in docs/results")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for variant in VARIANTS:
        for seed in range(args.seeds):
            planted = Planted(
                PlantedConfig(
                    d_model=args.d_model,
                    num_features=args.features,
                    active=args.active,
                    variant=variant,
                    seed=seed,
                )
            )
            x, _ = planted.sample(args.tokens, seed=seed)
            data = args.out / "data.safetensors"
            save_file({"x": x}, data)
            made = {RANDOM: random_decoder(args.features, args.d_model, seed)}
            for kind, title in OURS.items():
                config = DictionaryConfig(
                    kind=kind,
                    d_dict=args.features,
                    k=args.active,
                    num_tokens=args.tokens,
                    batch_tokens=512,
                    seed=seed,
                ).sized(args.d_model)
                made[title] = fairlead(x, config)
            for name, title in THEIRS.items() if args.saelens_python else ():
                out = args.out / f"{variant}-{seed}-{name}"
                made[title] = saelens(args.saelens_python, data, out, config, ours=name == "ours")
            for title, dictionary in made.items():
                got = measure_recovery(planted, dictionary)
                say(f"{variant} {seed} {title}: {got}")
                for key, value in got._asdict().items():
                    found[title][f"{variant}.{key}"].append(value)
            data.unlink()
    write_json(args.out / "recovery.json", found)
    rows = [
        {
            "title": title,
            "cells": {key: cell(values, digits=3) for key, values in measured.items()},
            "values": dict(measured),
            "bold": title == OURS["batch_topk"],
        }
        for title, measured in found.items()
    ]
    for row in rows:
        print(row["title"], {v: row["cells"][f"{v}.mcc"] for v in VARIANTS})
    if args.publish:
        columns = [(f"{v}.mcc", f"MCC, {v}") for v in VARIANTS] + [
            ("independent.found", "found (cosine .9), independent"),
            ("independent.precision", "precision"),
            ("independent.recall", "recall"),
            ("independent.fvu", "FVU"),
            ("independent.l0", "L0"),
        ]
        write_table(
            args.publish,
            title="Planted features found",
            model=f"none: {args.features} planted features in {args.d_model} dimensions, {args.active} on in a token",
            command="python -m benchmarks.recovery --saelens-python SIDE/bin/python --out runs/recovery",
            columns=columns,
            rows=rows,
            notes=[
                f"Mean and 95 % t interval over {args.seeds} seeds, {args.tokens:,} tokens each, batch 512, as many latents as features, "
                f"k = {args.active}; sae-lens 6.54.12. MCC: mean cosine of features and latents matched one to one."
            ],
        )


if __name__ == "__main__":
    main()
