"""One dictionary in training: parameters, Adam's moments, counters, and the guard against bad batches.

Recipe (arXiv 2412.06410 and its public code): Adam without weight decay, gradient norm clipped at 1, warm-up and linear decay, dead
latents revived by the kind's auxiliary loss, and one inference threshold: the moving average of the smallest kept activation.
Made right for short runs: the dead window is a share of the run (1 to 2 %) instead of ten million tokens, and the threshold
starts to follow after a share of the steps instead of a thousand, without the bias towards its start value.
Activations are scaled by one number so that their mean norm is `sqrt(d_model)`; it is folded into the saved weights.

Guard: a batch whose loss is not finite or `spike` times the usual one changes nothing but the count `skipped`. After a few such batches in
a row it is the parameters that are bad: those of the last good copy come back, with half the step size (`restored`).

Several processes (`together`) take one step: each brings its tokens of the batch; what the kind selects and every gradient and counter
is that of the whole batch, so that all hold the same parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.errors import DictionaryError
from fairlead.core.processes import add_up, gather, num_processes
from fairlead.core.progress import say
from fairlead.core.run import atomic_path
from fairlead.core.threads import in_parts, plain_threads
from fairlead.dictionaries.config import DictionaryConfig
from fairlead.dictionaries.kinds import Kind, Params, StepResult, StepState
from fairlead.dictionaries.sparse import loops

_BETAS, _EPS = (0.9, 0.999), 1e-8
_WINDOW = 50  # steps behind the reported metrics
_IN_A_ROW = 3  # bad batches after which the last good copy comes back
_MOST_RESTORED = 5
_FEW_ROWS = 256  # of a parameter, not worth a second thread
_NUMBERS = (
    "done", "tokens", "threshold", "threshold_weight", "scale", "usual_loss", "skipped", "restored", "bad_in_a_row",
)  # fmt: skip


class Trainer:
    """Parameters, optimiser moments and counters of one training run; `step` takes one batch.

    Args:
        kind: What is trained.
        config: With every size filled in (`sized`).
        first_ND: A batch for the start values.
        together: Whether the processes of this launch train one dictionary, each on its tokens of every batch.

    Attributes:
        skipped: Batches passed over.
        restored: Times that the last good copy came back.

    Raises:
        DictionaryError: The first batch is not finite, or the kind cannot be trained by several processes.
    """

    def __init__(
        self, kind: Kind, config: DictionaryConfig, first_ND: Tensor, *, together: bool = False
    ) -> None:
        self.kind, self.config = kind, config
        self.together = together and num_processes() > 1
        if self.together:
            if not getattr(kind, "trains_together", False):
                raise DictionaryError(
                    f"kind {config.kind} cannot be trained by several processes. "
                    "Next: start one process, or choose batch_topk, topk or matryoshka."
                )
            first_ND = torch.cat([part.to(first_ND.device) for part in gather(first_ND.cpu())])
        first_ND = first_ND.float()
        norm = float(first_ND.norm(dim=-1).mean())
        if not math.isfinite(norm):
            raise DictionaryError(
                "the first batch of activations is not finite. Next: load the model in float32 or bfloat16, "
                "or check its weights."
            )
        self.scale = math.sqrt(first_ND.shape[1]) / max(norm, 1e-12)
        self.device = first_ND.device
        if self.device.type == "cpu" and loops(first_ND) is None:
            _advise()
        generator = torch.Generator().manual_seed(config.seed)
        start = kind.start(first_ND * self.scale, config, generator)
        self.params: Params = {
            name: value.to(self.device).requires_grad_(False) for name, value in start.items()
        }
        self.first = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.params.items()}
        assert config.d_dict is not None
        self.last_fired = torch.zeros(config.d_dict, dtype=torch.long, device=self.device)
        self.done = self.tokens = self.skipped = self.restored = self.bad_in_a_row = 0
        self.threshold = self.threshold_weight = self.usual_loss = 0.0
        self.recent = torch.zeros(_WINDOW, 4, dtype=torch.float64)  # squared error, variance, pairs, tokens
        self.good: dict[str, Tensor] = {}

    @property
    def dead(self) -> Tensor:
        """`[d_dict]` bool: latents silent for the dead window."""
        window = max(self.config.dead_window * self.config.num_tokens, 4 * self.config.batch_tokens)
        return (self.tokens - self.last_fired) > window

    def rate(self) -> float:
        """Step size of the next step: linear warm-up, constant, linear decay; halved each time that parameters were restored."""
        steps, warmup = self.config.num_steps, self.config.warmup * self.config.num_steps
        decay = self.config.decay * steps
        assert self.config.lr is not None
        up = min(1.0, (self.done + 1) / warmup) if warmup >= 1 else 1.0
        down = min(1.0, (steps - self.done) / decay) if decay >= 1 else 1.0
        return self.config.lr * up * down * 0.5**self.restored

    def step(self, batch_ND: Tensor) -> None:
        """One update, or none where the batch is bad.

        Raises:
            DictionaryError: Batches stay bad although good parameters came back several times.
        """
        with plain_threads(self.device.type == "cpu"):
            self._step(batch_ND)

    def _step(self, batch_ND: Tensor) -> None:
        x = batch_ND.to(self.device, torch.float32) * self.scale
        state = StepState(self.current_threshold, self.dead, self.together)
        result = self.kind.step(self.params, x, self.config, state)
        loss, least, *row = _numbers(result, x.shape[0])
        grads = {name: _like(result.grads[name], value) for name, value in self.params.items()}
        fired = result.fired
        if self.together:
            loss, least, row, fired = self._combine(grads, loss, least, row, fired, x)
        num_tokens = int(row[3])
        if self._is_bad(loss):
            self._pass_over(loss)
        else:
            self.bad_in_a_row = 0
            self.usual_loss = loss if not self.usual_loss else 0.98 * self.usual_loss + 0.02 * loss
            self._adam(grads)
            self.kind.constrain(self.params)
        self.done += 1
        self.tokens += num_tokens
        if self.bad_in_a_row:
            return
        self.last_fired.masked_fill_(fired.to(self.device), self.tokens)
        if (
            self.done >= self.config.threshold_start * self.config.num_steps
            or self.done == self.config.num_steps
        ):
            rate = self.config.threshold_rate
            self.threshold = (1 - rate) * self.threshold + rate * least
            self.threshold_weight = (1 - rate) * self.threshold_weight + rate
        self.recent[self.done % _WINDOW] = torch.tensor(row, dtype=torch.float64)
        if self.done % self.config.checkpoint_every == 0:
            self.good = {name: value.clone() for name, value in self._tensors().items()}

    def _is_bad(self, loss: float) -> bool:
        return not math.isfinite(loss) or (0 < self.config.spike * self.usual_loss < loss)

    def _pass_over(self, loss: float) -> None:
        self.skipped += 1
        self.bad_in_a_row += 1
        say(f"dictionary: step {self.done} passed over, loss {loss:.3g} where {self.usual_loss:.3g} is usual")
        if self.bad_in_a_row % _IN_A_ROW:
            return
        if self.restored >= _MOST_RESTORED or not self.good:
            raise DictionaryError(
                f"step {self.done}: the dictionary's loss stays at {loss:.3g}. Next: check that the model's activations are "
                f"finite (dtype float32 helps), or lower lr (now {self.config.lr:.2g}). The last saved state is kept."
            )
        for name, value in self._tensors().items():
            value.copy_(self.good[name])
        self.restored += 1
        say(f"dictionary: back to the last good parameters, with step size {self.rate():.2g}")

    def _combine(
        self, grads: Params, loss: float, least: float, row: list[float], fired: Tensor, x: Tensor
    ) -> tuple[float, float, list[float], Tensor]:
        """The whole batch's gradients (in place), loss, smallest kept value, counters and fired latents, from the processes' parts."""
        share = torch.tensor([row[3]], dtype=torch.float64)
        whole = float(add_up(share.clone()))
        weight = row[3] / whole
        if not row[3]:  # none of the batch's tokens is here
            loss, row = 0.0, [0.0] * 4
            for grad in grads.values():
                grad.zero_()
        flat = add_up(torch.cat([grad.reshape(-1) * weight for grad in grads.values()]))
        for grad, part in zip(
            grads.values(), flat.split([grad.numel() for grad in grads.values()]), strict=True
        ):
            grad.copy_(part.view(grad.shape))
        middle = x.mean(0).double().cpu() if len(x) else torch.zeros(x.shape[1], dtype=torch.float64)
        sums = torch.cat(
            [
                torch.tensor([loss * weight, row[0], row[2]], dtype=torch.float64),
                torch.tensor([row[1] + row[3] * float(middle.square().sum())], dtype=torch.float64),
                middle * row[3],
                fired.double().cpu(),
            ]
        )
        sums = add_up(sums)
        mean = sums[4 : 4 + x.shape[1]] / whole
        variance = float(sums[3]) - whole * float(mean.square().sum())
        least = min(gather(least if row[2] else math.inf))
        row = [float(sums[1]), variance, float(sums[2]), whole]
        return float(sums[0]), least if math.isfinite(least) else 0.0, row, sums[4 + x.shape[1] :] > 0

    @property
    def current_threshold(self) -> float:
        """Moving average of the batch minimum, corrected for its start at zero (as Adam's moments are)."""
        return self.threshold / self.threshold_weight if self.threshold_weight else 0.0

    def _adam(self, grads: Params) -> None:
        """Adam on gradients clipped to norm 1 (they lie in memory as the parameters do)."""
        beta1, beta2 = _BETAS
        number = self.done - self.skipped + 1
        names = list(self.params)
        same = [grads[name] for name in names]
        norm = torch.stack(torch._foreach_norm(same)).norm()
        clip = (1.0 / norm.clamp_min(1e-12)).clamp_max(1.0)
        groups = [
            same,
            *([_storage(group[name]) for name in names] for group in (self.params, self.first, self.second)),
        ]

        def update(first: int, last: int, places: Sequence[int]) -> None:
            """The same rows of some tensors."""
            own, values, moment, square = ([group[place][first:last] for place in places] for group in groups)
            torch._foreach_mul_(own, clip)
            torch._fused_adam_(
                values,
                own,
                moment,
                square,
                [],
                [torch.tensor(float(number), device=value.device) for value in values],
                lr=self.rate(),
                beta1=beta1,
                beta2=beta2,
                weight_decay=0.0,
                eps=_EPS / math.sqrt(1 - beta2**number),  # beside the second moment before its correction
                amsgrad=False,
                maximize=False,
            )

        lengths = [len(group) for group in same]
        for length in sorted(set(lengths)):
            places = [place for place, each in enumerate(lengths) if each == length]
            in_parts(
                lambda first, last, places=places: update(first, last, places), length, at_least=_FEW_ROWS
            )

    def metrics(self) -> dict[str, float]:
        """`fvu`, `l0` over the last steps, the share of `dead` latents, and `skipped` and `restored` where there were any."""
        error, variance, pairs, tokens = self.recent.sum(0).tolist()
        found = {
            "fvu": error / max(variance, 1e-12),
            "l0": pairs / max(tokens, 1.0),
            "dead": float(self.dead.float().mean()),
        }
        guard = {"skipped": float(self.skipped), "restored": float(self.restored)}
        return found | {name: value for name, value in guard.items() if value}

    def export(self) -> Params:
        """Weights of the file layout, in the units of the model, on the CPU."""
        weights = self.kind.export(self.params, self.current_threshold, self.scale)
        return {name: value.cpu() for name, value in weights.items()}

    def _tensors(self) -> dict[str, Tensor]:
        groups = {"param": self.params, "first": self.first, "second": self.second}
        return {f"{group}.{name}": value for group, held in groups.items() for name, value in held.items()}

    def save_state(self, path: Path, identity: str) -> None:
        """Write all that a resumed run needs."""
        tensors = {**self._tensors(), "last_fired": self.last_fired, "recent": self.recent}
        tensors["numbers"] = torch.tensor(
            [float(getattr(self, name)) for name in _NUMBERS], dtype=torch.float64
        )
        with atomic_path(path) as temporary:
            save_file(
                {name: value.cpu().contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"identity": identity},
            )

    def load_state(self, path: Path) -> None:
        """Continue from a saved state."""
        with safe_open(path, "pt") as file:
            for name, value in self._tensors().items():
                value.copy_(file.get_tensor(name))
            self.last_fired.copy_(file.get_tensor("last_fired"))
            self.recent = file.get_tensor("recent")
            numbers = file.get_tensor("numbers").tolist()
        if len(numbers) != len(_NUMBERS):
            raise KeyError("a state of another version")
        for name, value in zip(_NUMBERS, numbers, strict=True):
            setattr(self, name, type(getattr(self, name))(value))
        self.good = {name: value.clone() for name, value in self._tensors().items()}


@cache
def _advise() -> None:
    """Once in a process."""
    say(
        "dictionary: steps on a CPU are slower without numba. Next: pip install 'fairlead[fast]' (nothing else changes)."
    )


def _numbers(result: StepResult, num_tokens: int) -> list[float]:
    """Loss, smallest kept value, squared error, variance, pairs, tokens; these are waited for once.

    A step on an accelerator waits a few more times: selection asks how many candidates it found and where the cut is, AuxK which
    latents are dead.
    """
    fields: list[Any] = [
        result.loss, result.least, result.squared_error, result.variance, result.num_active, num_tokens,
    ]  # fmt: skip
    on_device = [place for place, value in enumerate(fields) if isinstance(value, Tensor)]
    if on_device:
        values = torch.stack([fields[place].detach().double() for place in on_device]).tolist()
        for place, value in zip(on_device, values, strict=True):
            fields[place] = value
    return [float(value) for value in fields]


def _storage(value: Tensor) -> Tensor:
    """A view of a parameter in the order in which it lies in memory."""
    return value if value.is_contiguous() else value.T


def _like(grad: Tensor, value: Tensor) -> Tensor:
    """The gradient in the order in which its parameter lies in memory."""
    return grad.contiguous() if value.is_contiguous() else grad.T.contiguous()
