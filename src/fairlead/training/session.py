"""The loss of a training step: the data rows' own loss with whatever the controls do to it, plus the parts they add.

`L = CE(data rows; adjusted logits, weighted tokens) + sum over pools of pool_loss`. Where no control adjusts logits or weighs
tokens, the first term is TRL's own `compute_loss`; where one does, it is the same sum over tokens divided by
`num_items_in_batch`, so that gradient accumulation and several processes mean the same here and there (a contract test holds
the two together). Weights leave the divisor as it is: a token that is left out is missing, the others pull as before.

The pools' forward pass comes first, so that observers at a site end up with the data rows' activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairlead.core.errors import ConfigError, TrainingError
from fairlead.training import processes as group
from fairlead.training.batching import PoolComposer, PoolView, StepPart, StepState, StepView, pop_view
from fairlead.training.controls.base import Control
from fairlead.training.logits import predicting, select_logits


class Session:
    """The controls of one training at work.

    Args:
        controls: Prepared controls.
        pad_id: Token for padding pool rows.
        seed: Of the draws from pools.
        use_data: False leaves the data rows out of the loss (they still decide the draws).
        packing: Lay pool rows end to end instead of padding them.

    Raises:
        ConfigError: `use_data` is off and no control brings rows.
    """

    def __init__(
        self,
        controls: Sequence[Control] = (),
        *,
        pad_id: int = 0,
        seed: int = 0,
        use_data: bool = True,
        packing: bool = False,
    ) -> None:
        self.controls, self.use_data = tuple(controls), use_data
        self.pooled = [control for control in self.controls if control.pool is not None]
        if not use_data and not self.pooled:
            raise ConfigError(
                "use_data is off and no control brings rows: nothing to train on. Next: add spec_examples."
            )
        pools = [control.pool for control in self.pooled if control.pool is not None]
        self.compose = PoolComposer(pools, pad_id=pad_id, seed=seed, packing=packing)
        self.shaping = [control for control in self.controls if control.touches_logits]
        self.weighing = [control for control in self.controls if control.weighs_tokens]
        self.state = StepState()
        self._tally: dict[str, float] = {}

    @contextmanager
    def attached(self, module: nn.Module) -> Iterator[None]:
        """Hooks of all controls on the student, for the length of a training."""
        with ExitStack() as stack:
            for control in self.controls:
                control.hooks(stack, module, self.state)
            yield

    def before_step(self, step: int, module: nn.Module) -> None:
        """Tell all controls that an optimizer step begins."""
        self.state.step = step
        for control in self.controls:
            control.before_step(step, module)

    def controls_state(self) -> dict[str, Any]:
        """What a checkpoint must keep of the controls, by their place and name."""
        return {
            f"{place}:{control.name}": control.state()
            for place, control in enumerate(self.controls)
            if control.state()
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what `controls_state` returned."""
        for place, control in enumerate(self.controls):
            if found := saved.get(f"{place}:{control.name}"):
                control.restore(found)

    def loss(
        self,
        module: nn.Module,
        inputs: dict[str, Any],
        *,
        num_items: Tensor | int | None,
        plain: Callable[[dict[str, Any]], Tensor],
        accumulate: int = 1,
        processes: int = 1,
    ) -> Tensor:
        """Loss of one micro-batch; those of an optimizer step add up to the step's, whatever it is cut into.

        Args:
            module: The student.
            inputs: A batch of the composer.
            num_items: Data tokens of the whole accumulated batch; None to divide by those of this micro-batch.
            plain: TRL's own loss of a batch without extra fields.
            accumulate: Micro-batches in this optimizer step.
            processes: Processes over which `num_items` counts and gradients are averaged.

        Raises:
            TrainingError: The loss is not finite.
        """
        part: StepPart = inputs.pop("fl_part", None) or StepPart(tuple(inputs["fl_places"].tolist()))
        view = pop_view(inputs)
        pools = self.compose(view.places, inputs["input_ids"].device, part) if self.pooled else None
        divided = (
            1 if num_items is not None else accumulate
        )  # without num_items the Trainer divides by it itself
        parts: dict[str, Tensor] = {}
        if pools is not None:
            # parts of a step add up over micro-batches; over processes gradients are averaged
            found = self._pool_parts(module, pools)
            parts = {name: value * (divided * part.processes) for name, value in found.items()}
        if self.use_data:
            self.state.view = self.state.last = view
            try:
                if self.shaping or self.weighing:
                    data = self._shaped(module, inputs, view, num_items=num_items, processes=processes)
                else:
                    data = plain(inputs)
            finally:
                self.state.view = None
            parts = {"data": data, **parts}
        if not parts:  # a micro-batch without data or pool rows of its own
            parts = {"data": select_logits(module, _model_inputs(inputs), view.predict_mask).sum() * 0.0}
        total = torch.stack(list(parts.values())).sum() if len(parts) > 1 else next(iter(parts.values()))
        self._count(total, parts, divided=divided, first=part.micro == 0)
        if self.state.loss != self.state.loss or abs(self.state.loss) == float("inf"):
            raise TrainingError(
                f"step {self.state.step + 1}: the loss is {self.state.loss} ({self.state.parts or 'data only'}). Nothing was "
                "saved over; checkpoints of earlier steps stay. Next: lower lr, raise warmup_steps, or look for broken "
                "rows in the data."
            )
        return total

    def _count(self, total: Tensor, parts: dict[str, Tensor], *, divided: int, first: bool) -> None:
        """Add a micro-batch to the step's loss and parts."""
        if first:
            self._tally, self.state.loss = {}, 0.0
        self.state.loss += float(total.detach()) / divided
        for name, value in parts.items():
            self._tally[name] = self._tally.get(name, 0.0) + float(value.detach()) / divided
        self.state.parts = dict(self._tally) if len(self._tally) > 1 else {}

    def end_step(self) -> None:
        """Bring the loss and its parts together over the processes."""
        if group.num_processes() > 1:
            values = group.mean({"": self.state.loss, **self.state.parts})
            self.state.loss = values.pop("")
            self.state.parts = values

    def _shaped(
        self,
        module: nn.Module,
        inputs: dict[str, Any],
        view: StepView,
        *,
        num_items: Tensor | int | None,
        processes: int,
    ) -> Tensor:
        logits = select_logits(module, _model_inputs(inputs), view.predict_mask)
        for control in self.shaping:
            adjusted = control.adjust_logits(logits, view)
            logits = logits if adjusted is None else adjusted
        targets = view.targets.to(logits.device)
        weights = [found for control in self.weighing if (found := control.token_weights(view)) is not None]
        if weights:
            nats = F.cross_entropy(logits, targets, reduction="none")
            summed = (nats * torch.stack(weights).prod(0).to(nats)).sum()
        else:
            summed = F.cross_entropy(logits, targets, reduction="sum")
        count = len(targets) if num_items is None else num_items
        mean = summed / torch.as_tensor(count, device=summed.device).clamp(min=1)
        return mean if num_items is None else mean * processes

    def _pool_parts(self, module: nn.Module, pools: PoolView) -> dict[str, Tensor]:
        inputs = {**pools.inputs, "use_cache": False}
        logits = select_logits(module, inputs, predicting(pools.target_mask))
        targets = pools.targets.to(logits.device)
        parts = {}
        for control, rows, span, weight in zip(
            self.pooled, pools.rows, pools.spans, pools.weights, strict=True
        ):
            assert control.pool is not None
            if not rows:
                continue
            parts[control.pool.name] = weight * control.pool_loss(logits[span], targets[span], rows)
        return parts


def _model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """What the model is given of a batch."""
    return {**{name: value for name, value in inputs.items() if name != "labels"}, "use_cache": False}
