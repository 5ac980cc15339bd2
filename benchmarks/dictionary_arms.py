"""One arm of `bench_dictionary.py`, run by that arm's own Python: obeys commands on standard input, one JSON answer a line.

    PYTHON benchmarks/dictionary_arms.py fairlead|matmul|saelens|sparsify SPEC.json

Commands: `steps N` (N training steps on activations in memory, seconds), `train` (model to trained dictionary, seconds and held-out FVU).
Imports, loading of model and data, and one warm-up are not timed. The FVU is that of the k pairs a token (of the batch, for
BatchTopK) that the trained dictionary would keep in training, so that every arm is judged at the same L0.
Only torch, safetensors and the arm's own library are imported: this file runs in foreign environments.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ANSWERS = sys.stdout


class Arm(ABC):
    """What the arms have in common: the specification and the data."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        held = load_file(str(Path(spec["folder"]) / "data.safetensors"))
        self.acts, self.held_out, self.tokens = held["acts"], held["held_out"], held["tokens"]
        self.size = spec["batch_tokens"]
        self.place = 0

    def batch(self) -> torch.Tensor:
        """The next activations in memory, scaled to mean norm sqrt(d_model)."""
        if self.place + self.size > len(self.acts):
            self.place = 0
        self.place += self.size
        return self.acts[self.place - self.size : self.place]

    @abstractmethod
    def one_step(self) -> None:
        """A training step on `batch()`."""

    def steps(self, num: int) -> dict[str, float]:
        """Seconds of `num` steps."""
        start = time.perf_counter()
        for _ in range(num):
            self.one_step()
        return {"seconds": time.perf_counter() - start}


class Trainer(Arm):
    """An arm that can also train a whole dictionary."""

    @abstractmethod
    def trained(self) -> Any:
        """A dictionary trained from the model."""

    @abstractmethod
    def errors(self, found: Any, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction minus activations of one batch, with k pairs a token."""

    def train(self) -> dict[str, float]:
        """Seconds of a whole training, and its quality."""
        start = time.perf_counter()
        found = self.trained()
        seconds = time.perf_counter() - start
        x = self.held_out
        with torch.no_grad():
            left = sum(float(self.errors(found, part).double().square().sum()) for part in x.split(self.size))
        return {
            "seconds": seconds,
            "tokens": self.spec["num_tokens"],
            "fvu": left / float((x - x.mean(0)).double().square().sum()),
        }


class Fairlead(Trainer):
    """This project."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        from fairlead.data import Encoded, Row
        from fairlead.dictionaries import DictionaryConfig, find_kind
        from fairlead.dictionaries.trainer import Trainer
        from fairlead.models import load_model

        torch.set_grad_enabled(False)
        self.model = load_model(spec["model"], dtype="float32", device="cpu")
        self.config = DictionaryConfig(
            kind=spec["kind"],
            d_dict=spec["d_dict"],
            k=spec["k"],
            num_tokens=spec["num_tokens"],
            batch_tokens=self.size,
            buffer_tokens=spec["buffer_tokens"],
            passes=1,
            lr=spec["lr"],
            warmup=spec["warmup_steps"] * self.size / spec["num_tokens"],
            decay=spec["decay_steps"] * self.size / spec["num_tokens"],
            checkpoint_every=10**9,
            **spec["options"],
        ).sized(self.acts.shape[1])
        row = Row(text="tokens")
        self.encoded = [
            Encoded(ids.tolist(), [True] * len(ids), place, row) for place, ids in enumerate(self.tokens)
        ]
        self.find_kind = find_kind
        self.trainer = Trainer(find_kind(spec["kind"]), self.config, self.batch())

    def one_step(self) -> None:
        """See `Arm`."""
        self.trainer.step(self.batch())

    def trained(self) -> Any:
        """See `Trainer`."""
        from fairlead.dictionaries import train_dictionary

        return train_dictionary(self.model, self.encoded, site=self.spec["site"], config=self.config)

    def errors(self, found: Any, x: torch.Tensor) -> torch.Tensor:
        """See `Trainer`."""
        weights = found.weights
        pre = torch.addmm(weights["b_enc"], x - weights["b_dec"], weights["W_enc"])
        return keep(pre, self.spec) @ weights["W_dec"] + weights["b_dec"] - x


class Matmul(Arm):
    """The encoder's matmul of a batch and nothing else: what a step is measured in."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        dtype = getattr(torch, spec["options"]["dtype"])
        self.acts = self.acts.to(dtype)
        self.weight = torch.randn(self.acts.shape[1], spec["d_dict"]).to(dtype)
        self.out = torch.empty(self.size, spec["d_dict"], dtype=dtype)

    def one_step(self) -> None:
        """See `Arm`."""
        torch.mm(self.batch(), self.weight, out=self.out)


class SAELens(Trainer):
    """SAELens, by its own runner and trainer."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        from datasets import Dataset
        from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
        from sae_lens.load_model import load_model
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        batch_wise = spec["kind"] == "batch_topk"
        options = dict(spec["options"])
        sparse = {"use_sparse_activations": True} if options.pop("sparse", False) else {}
        config, training = (
            (BatchTopKTrainingSAEConfig, BatchTopKTrainingSAE)
            if batch_wise
            else (TopKTrainingSAEConfig, TopKTrainingSAE)
        )
        self.own = lambda: config(
            d_in=self.acts.shape[1],
            d_sae=spec["d_dict"],
            k=spec["k"],
            normalize_activations="expected_average_only_in",
            **sparse,
        )
        self.layer = f"model.layers.{spec['layer']}"
        self.runner_config = lambda: LanguageModelSAERunnerConfig(
            sae=self.own(),
            model_name=spec["model"],
            model_class_name="AutoModelForCausalLM",
            hook_name=self.layer,
            dataset_path="memory",
            streaming=False,
            is_dataset_tokenized=True,
            context_size=self.tokens.shape[1],
            prepend_bos=False,
            seqpos_slice=(1, None),
            training_tokens=spec["num_tokens"],
            train_batch_size_tokens=self.size,
            lr=spec["lr"],
            lr_warm_up_steps=spec["warmup_steps"],
            lr_decay_steps=spec["decay_steps"],
            n_batches_for_norm_estimate=4,
            n_batches_in_buffer=spec["buffer_tokens"] // (self.tokens.shape[1] - 1),
            output_path=None,
            checkpoint_path=None,
            logger=LoggingConfig(log_to_wandb=False),
            verbose=False,
            **options,
        )
        self.data = Dataset.from_dict({"input_ids": self.tokens.tolist()})
        self.language_model = load_model(
            "AutoModelForCausalLM", spec["model"], device="cpu", hook_names=[self.layer]
        )
        settings = self.runner_config()
        sae = training(self.own())
        self.trainer = SAETrainer(cfg=settings.to_sae_trainer_config(), sae=sae, data_provider=iter(()))
        if options.get("compile_sae"):
            sae.training_forward_pass = torch.compile(  # what its runner does with `compile_sae`
                sae.training_forward_pass, mode=options.get("sae_compilation_mode") or "default"
            )

    def one_step(self) -> None:
        """See `Arm`."""
        self.trainer.step(self.batch())
        self.trainer.n_training_steps += 1

    def trained(self) -> Any:
        """See `Trainer`."""
        from sae_lens import LanguageModelSAETrainingRunner

        runner = LanguageModelSAETrainingRunner(
            self.runner_config(), override_dataset=self.data, override_model=self.language_model
        )
        return runner.run()

    def errors(self, found: Any, x: torch.Tensor) -> torch.Tensor:
        """See `Trainer`; its pre-activations count times the norms of the decoder's rows."""
        norm = found.W_dec.norm(dim=-1)
        pre = torch.addmm(found.b_enc, x - found.b_dec, found.W_enc) * norm
        return keep(pre, self.spec) @ (found.W_dec / norm[:, None]) + found.b_dec - x


class Sparsify(Trainer):
    """sparsify (TopK only), by its own trainer."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__(spec)
        from datasets import Dataset
        from sparsify import SparseCoder, SparseCoderConfig, TrainConfig
        from sparsify import Trainer as SparsifyTrainer
        from transformers import AutoModelForCausalLM

        self.own = lambda: SparseCoderConfig(num_latents=spec["d_dict"], k=spec["k"])
        rows = self.size // self.tokens.shape[1]
        wanted = spec["num_tokens"] // self.tokens.shape[1]
        ids = self.tokens.repeat(-(-wanted // len(self.tokens)), 1)[:wanted]
        self.data = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
        self.config = lambda: TrainConfig(
            sae=self.own(),
            batch_size=rows,
            optimizer="adam",
            lr=spec["lr"],
            lr_warmup_steps=spec["warmup_steps"],
            auxk_alpha=1 / 32,
            exclude_tokens=[int(self.tokens[0, 0])],
            hookpoints=[f"layers.{spec['layer']}"],
            log_to_wandb=False,
            save_every=10**9,
            save_dir=spec["folder"],
            run_name="sparsify",
        )
        dtype = getattr(torch, spec["options"].get("model_dtype", "float32"))
        self.language_model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype)
        self.make = SparsifyTrainer
        self.coder = SparseCoder(self.acts.shape[1], self.own(), "cpu", dtype=torch.float32)
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=spec["lr"])
        self.dead = torch.zeros(spec["d_dict"], dtype=torch.bool)

    def one_step(self) -> None:
        """What its trainer does with a batch of activations."""
        self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x=self.batch(), y=None, dead_mask=self.dead)
        (out.fvu + out.auxk_loss / 32).backward()
        torch.nn.utils.clip_grad_norm_(self.coder.parameters(), 1.0)
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def trained(self) -> Any:
        """See `Trainer`."""
        trainer = self.make(self.config(), self.data, self.language_model)
        trainer.fit()
        return next(iter(trainer.saes.values()))

    def errors(self, found: Any, x: torch.Tensor) -> torch.Tensor:
        """See `Trainer`."""
        return found(x).sae_out - x


def keep(pre: torch.Tensor, spec: dict[str, Any]) -> torch.Tensor:
    """The activations that the kind keeps of dense pre-activations."""
    pre = pre.relu()
    if spec["kind"] == "topk":
        kept = pre.topk(spec["k"], dim=-1)
        return torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
    kept = pre.flatten().topk(len(pre) * spec["k"])
    return torch.zeros(pre.numel()).scatter(0, kept.indices, kept.values).view(pre.shape)


def main() -> None:
    """Obey."""
    name, path = sys.argv[1:3]
    spec = json.loads(Path(path).read_text())
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        arm = {"fairlead": Fairlead, "matmul": Matmul, "saelens": SAELens, "sparsify": Sparsify}[name](spec)
    print(json.dumps({"ready": name}), file=ANSWERS, flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        with contextlib.redirect_stdout(sys.stderr):
            answer = getattr(arm, command)(
                *map(int, words)
            )  # "steps NUM", and "train" where the arm is a `Trainer`
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
