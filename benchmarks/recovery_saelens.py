"""Train SAELens' BatchTopK on a file of activations; run by `benchmarks.recovery` in an environment that has sae-lens (no Fairlead there).

SIDE/bin/python benchmarks/recovery_saelens.py DATA.safetensors OUT --d-sae 256 --k 8 --batch 512
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--d-sae", type=int, required=True)
    parser.add_argument("--k", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.0, help="0: SAELens' default")
    parser.add_argument("--warm-up", type=float, default=0.0, help="share of the steps")
    parser.add_argument("--decay", type=float, default=0.0, help="share of the steps")
    args = parser.parse_args()

    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    x = load_file(args.data)["x"]
    steps = len(x) // args.batch
    coder = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=x.shape[1], d_sae=args.d_sae, k=args.k, normalize_activations="expected_average_only_in"
        )
    )
    options = (
        {"lr": args.lr, "lr_end": 0.0} if args.lr else {"lr_end": 3e-5}
    )  # its runner: a tenth of the step size
    config = SAETrainerConfig(
        total_training_samples=steps * args.batch,
        train_batch_size_samples=args.batch,
        lr_warm_up_steps=round(args.warm_up * steps),
        lr_decay_steps=round(args.decay * steps),
        n_batches_for_norm_estimate=min(50, steps),
        **options,
    )

    def batches():
        while True:  # the estimate of the norm draws from it before the training does
            yield from x[: steps * args.batch].split(args.batch)

    trained = SAETrainer(config, coder, batches()).fit()
    trained.save_inference_model(args.out)


if __name__ == "__main__":
    main()
