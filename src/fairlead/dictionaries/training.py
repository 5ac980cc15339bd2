"""Training a dictionary: the loop around a kind.

Recipe (arXiv 2412.06410 and its public code): Adam without weight decay, gradient norm clipped at 1, warm-up and linear decay, dead
latents revived by the kind's auxiliary loss, and one inference threshold: the moving average of the smallest kept activation.
Made right for short runs: the dead window is a share of the run (1 to 2 %) instead of ten million tokens, and the threshold
starts to follow after a share of the steps instead of a thousand, without the bias towards its start value.
Activations are scaled by one number so that their mean norm is `sqrt(d_model)`; it is folded into the saved weights.
Gradients come from the kind, so that autograd is not used at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.progress import Meter
from fairlead.core.run import atomic_path, sha256_json
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, encode
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.dictionary import CONFIG_FILE, Dictionary, find_architecture
from fairlead.dictionaries.kinds import Kind, Params, StepState, find_kind
from fairlead.dictionaries.loading import load_dictionary
from fairlead.dictionaries.source import iter_training_batches

if TYPE_CHECKING:
    from fairlead.models import Model

STATE_FILE = "training_state.safetensors"
_BETAS, _EPS = (0.9, 0.999), 1e-8
_WINDOW = 50  # steps behind the reported metrics


class Trainer:
    """Parameters, optimiser moments and counters of one training run; `step` takes one batch."""

    def __init__(self, kind: Kind, config: DictionaryConfig, first_ND: Tensor) -> None:
        self.kind, self.config = kind, config
        self.scale = math.sqrt(first_ND.shape[1]) / max(float(first_ND.norm(dim=-1).mean()), 1e-12)
        generator = torch.Generator().manual_seed(config.seed)
        self.params: Params = kind.start(first_ND * self.scale, config, generator)
        for value in self.params.values():
            value.requires_grad_(False)
        self.first = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.params.items()}
        assert config.d_dict is not None
        self.last_fired = torch.zeros(config.d_dict, dtype=torch.long)
        self.done = 0
        self.tokens = 0
        self.threshold = 0.0
        self.threshold_weight = 0.0
        self.recent = torch.zeros(_WINDOW, 4, dtype=torch.float64)  # squared error, variance, pairs, tokens

    @property
    def dead(self) -> Tensor:
        """`[d_dict]` bool: latents silent for the dead window."""
        window = max(self.config.dead_window * self.config.num_tokens, 4 * self.config.batch_tokens)
        return (self.tokens - self.last_fired) > window

    def rate(self) -> float:
        """Step size of the next step: linear warm-up, constant, linear decay."""
        steps, warmup = self.config.num_steps, self.config.warmup * self.config.num_steps
        decay = self.config.decay * steps
        assert self.config.lr is not None
        up = min(1.0, (self.done + 1) / warmup) if warmup >= 1 else 1.0
        down = min(1.0, (steps - self.done) / decay) if decay >= 1 else 1.0
        return self.config.lr * up * down

    def step(self, batch_ND: Tensor) -> None:
        """One update.

        Raises:
            DictionaryError: The activations or the loss are not finite.
        """
        x = batch_ND * self.scale
        result = self.kind.step(self.params, x, self.config, StepState(self.current_threshold, self.dead))
        if not math.isfinite(result.loss):
            raise DictionaryError(
                f"step {self.done}: the dictionary's loss is {result.loss}. Next: check that the model's activations are finite "
                f"(dtype float32 helps), or lower lr (now {self.config.lr:.2g}). The last saved state is kept."
            )
        norm = torch.sqrt(sum((grad.square().sum() for grad in result.grads.values()), torch.zeros(())))
        clip = float((1.0 / norm.clamp_min(1e-12)).clamp_max(1.0))
        self._adam(result.grads, clip)
        self.kind.constrain(self.params)
        self.done += 1
        self.tokens += x.shape[0]
        self.last_fired[result.fired.cpu()] = self.tokens
        if (
            self.done >= self.config.threshold_start * self.config.num_steps
            or self.done == self.config.num_steps
        ):
            rate = self.config.threshold_rate
            self.threshold = (1 - rate) * self.threshold + rate * result.least
            self.threshold_weight = (1 - rate) * self.threshold_weight + rate
        row = [result.squared_error, result.variance, result.num_active, x.shape[0]]
        self.recent[self.done % _WINDOW] = torch.tensor(row, dtype=torch.float64)

    @property
    def current_threshold(self) -> float:
        """Moving average of the batch minimum, corrected for its start at zero (as Adam's moments are)."""
        return self.threshold / self.threshold_weight if self.threshold_weight else 0.0

    def _adam(self, grads: Params, clip: float) -> None:
        beta1, beta2 = _BETAS
        number = self.done + 1
        rate = self.rate() * math.sqrt(1 - beta2**number) / (1 - beta1**number)
        for name, value in self.params.items():
            grad = grads[name].mul_(clip)
            self.first[name].lerp_(grad, 1 - beta1)
            self.second[name].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            value.addcdiv_(self.first[name], self.second[name].sqrt().add_(_EPS), value=-rate)

    def metrics(self) -> dict[str, float]:
        """`fvu`, `l0` over the last steps and the share of dead latents."""
        error, variance, pairs, tokens = self.recent.sum(0).tolist()
        return {
            "fvu": error / max(variance, 1e-12),
            "l0": pairs / max(tokens, 1.0),
            "dead": float(self.dead.float().mean()),
        }

    def export(self) -> Params:
        """Weights of the file layout, in the units of the model."""
        return self.kind.export(self.params, self.current_threshold, self.scale)

    def save_state(self, path: Path, identity: str) -> None:
        """Write all that a resumed run needs."""
        tensors = {f"param.{name}": value for name, value in self.params.items()}
        tensors |= {f"first.{name}": value for name, value in self.first.items()}
        tensors |= {f"second.{name}": value for name, value in self.second.items()}
        tensors["last_fired"], tensors["recent"] = self.last_fired, self.recent
        tensors["numbers"] = torch.tensor(
            [self.done, self.tokens, self.threshold, self.threshold_weight, self.scale], dtype=torch.float64
        )
        with atomic_path(path) as temporary:
            save_file(
                {name: value.contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"identity": identity},
            )

    def load_state(self, path: Path) -> None:
        """Continue from a saved state."""
        with safe_open(path, "pt") as file:
            for group, target in (("param", self.params), ("first", self.first), ("second", self.second)):
                for name in target:
                    target[name] = file.get_tensor(f"{group}.{name}")
            self.last_fired, self.recent = file.get_tensor("last_fired"), file.get_tensor("recent")
            done, tokens, self.threshold, self.threshold_weight, self.scale = file.get_tensor(
                "numbers"
            ).tolist()
        self.done, self.tokens = int(done), int(tokens)


def fit_dictionary(
    batches: Iterator[Tensor],
    config: DictionaryConfig,
    *,
    trainer: Trainer | None = None,
    state_path: Path | None = None,
    identity: str = "",
) -> Trainer:
    """Train on an iterator of activation batches `[batch_tokens, d_model]` until the run's tokens are used.

    Args:
        batches: Must yield at least `config.num_steps` batches (less what `trainer` has done).
        config: Sizes may be None; they are filled in from the first batch.
        trainer: A run to go on with.
        state_path: Where to save the state every `checkpoint_every` steps.
        identity: Written into the state, to recognise it.
    """
    meter: Meter | None = None
    try:
        while trainer is None or trainer.done < trainer.config.num_steps:
            batch = next(batches, None)
            if batch is None:
                raise DictionaryError("the activations ended before the run. Next: lower num_tokens.")
            if trainer is None:
                trainer = Trainer(find_kind(config.kind), config.sized(batch.shape[1]), batch)
            if meter is None:
                meter = Meter("dictionary", trainer.config.num_steps * trainer.config.batch_tokens, "tokens")
                meter.done = trainer.tokens
            trainer.step(batch)
            note = ""
            if trainer.done % 10 == 0:
                found = trainer.metrics()
                note = f"FVU {found['fvu']:.3f} L0 {found['l0']:.1f} dead {found['dead']:.1%}"
            meter.advance(batch.shape[0], note)
            if state_path is not None and trainer.done % trainer.config.checkpoint_every == 0:
                trainer.save_state(state_path, identity)
    finally:
        if meter is not None:
            meter.close()
    return trainer


def train_dictionary(
    model: Model,
    data: ChatData | Sequence[Encoded],
    *,
    site: Site | str | None = None,
    config: DictionaryConfig | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    max_length: int | None = None,
) -> Dictionary:
    """Train a dictionary on a model's activations at one site.

    Args:
        model: Whose activations.
        data: Chats or encoded texts; all positions but the first count.
        site: None: the model's default site.
        config: None: the defaults of `DictionaryConfig`.
        out: Folder to save to; its `.part` neighbour holds the state of an unfinished run, which is continued when `resume`
            is set and settings, model, site and data are the same. A finished folder with the same identity is loaded.
        max_length: Longer texts are cut (only where `data` is not encoded yet); None: the model's limit.

    Raises:
        DictionaryError: No usable text, activations or loss not finite, or a finished folder made with other settings.
    """
    config = (config or DictionaryConfig.make()).sized(model.d_model)
    made = find_architecture(config.kind) or Dictionary
    if not made.reconstructs_itself:
        raise DictionaryError(
            f"a {config.kind} has several sites. Next: call train_{config.kind}, or choose another kind."
        )
    place = Site.parse(site) if site is not None else model.default_site()
    if isinstance(data, ChatData):
        encoded = encode(data, model.tokenizer, max_length=max_length or model.max_length, on_long="truncate")
    else:
        encoded = list(data)
    if not encoded:
        raise DictionaryError("no text to train a dictionary on. Next: pass data with at least one row.")
    identity = _identity(model, encoded, place, config)
    settings = {**config.model_dump(mode="json"), "identity": identity}
    state = None
    if out is not None:
        out = Path(out)
        if (out / CONFIG_FILE).is_file():
            found = load_dictionary(out)
            if found.config.get("identity") == identity:
                return found
            raise DictionaryError(
                f"{out}: holds a dictionary made with other settings, model or data. Next: choose another folder or remove it."
            )
        state = out.with_name(out.name + ".part") / STATE_FILE
    trainer = _resumed(state, identity, config, model.d_model) if resume and state is not None else None
    batches = iter_training_batches(model, encoded, place, config, skip_steps=trainer.done if trainer else 0)
    with torch.no_grad():
        trainer = fit_dictionary(batches, config, trainer=trainer, state_path=state, identity=identity)
    found = made(
        trainer.export(),
        **made.settings(config),
        site=place,
        model_fingerprint=model.fingerprint,
        model_name=model.name,
        config=settings,
        metrics=trainer.metrics(),
    )
    if out is not None and state is not None:
        found.save(out)
        state.unlink(missing_ok=True)
        if state.parent.is_dir() and not any(state.parent.iterdir()):
            state.parent.rmdir()
    return found


def _identity(model: Model, encoded: Sequence[Encoded], site: Site, config: DictionaryConfig) -> str:
    unused = set() if config.kind == "matryoshka" else {"prefixes"}
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"checkpoint_every", *unused})
    texts = sha256_json([list(row.input_ids) for row in encoded])
    return sha256_json([settings, model.fingerprint, str(site), texts])


def _resumed(state: Path, identity: str, config: DictionaryConfig, d_model: int) -> Trainer | None:
    if not state.is_file():
        return None
    try:
        with safe_open(state, "pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return None
        trainer = Trainer(find_kind(config.kind), config, torch.ones(2, d_model))
        trainer.load_state(state)
        return trainer
    except (SafetensorError, OSError, KeyError) as error:
        raise DictionaryError(f"{state}: broken state ({error}). Next: remove it and start again.") from error
