"""Hooks at sites: the one place that registers torch hooks for Fairlead.

`site_hook` lets a function see, and replace, the value at a site. `watch` keeps values and, after the
backward pass, their gradients dL/dh. Both take a `Model` or a bare transformers module, also one that PEFT,
accelerate or DDP has wrapped, and both take their hooks away on exit, whatever happened inside.

Hooks can be limited to forward passes with or without gradients (`when`): reinforcement-learning trainers
generate their rollouts in training mode, so `module.training` does not tell the two apart,
`torch.is_grad_enabled()` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fairlead.core.errors import ConfigError, SiteError
from fairlead.core.site import Site
from fairlead.models.families import Place, Sites, backbone_of, read_value, write_input, write_output

if TYPE_CHECKING:
    from fairlead.models.model import Model

When = Literal["always", "grad", "no_grad"]
SiteFn = Callable[[Tensor], Tensor | None]


def sites_of(model: Model | nn.Module | Sites) -> Sites:
    """The resolved sites of a `Model` or of a bare (also wrapped) transformers module."""
    if isinstance(model, Sites):
        return model
    return Sites(model) if isinstance(model, nn.Module) else model.resolved


@contextmanager
def site_hook(
    model: Model | nn.Module | Sites, site: str | Site, fn: SiteFn, *, when: When = "always"
) -> Iterator[None]:
    """Call `fn(hidden)` whenever a forward pass reaches a site.

    Args:
        model: A `Model`, or a transformers module, also one wrapped by PEFT or accelerate.
        site: Where.
        fn: Takes the value `[batch, seq, d]`; returns its replacement (same shape) or None to leave it. In
            generation it is called once with the prompts and then with `seq = 1` for every token.
        when: "always", or only where gradients are on ("grad") or off ("no_grad").

    Raises:
        SiteError: No such site; or a replacement is returned at a read-only site or has another shape.
    """
    place = sites_of(model).place(site)
    active = _gate(when)
    handles = []
    shape: list[torch.Size] = []

    def call(value: Tensor) -> Tensor | None:
        flat = value.shape
        if place.shape_from is not None and shape:
            value = value.view(*shape[0][:-1], value.shape[-1])
        new = fn(value)
        if new is None:
            return None
        _check_replacement(place, value, new)
        return new.reshape(flat)

    def before(_: nn.Module, args: tuple, kwargs: dict) -> Any:
        if not active():
            return None
        new = call(read_value(place, args, kwargs, None))
        return None if new is None else write_input(args, kwargs, new)

    def after(_: nn.Module, args: tuple, output: Any) -> Any:
        if not active():
            return None
        new = call(read_value(place, args, {}, output))
        return None if new is None else write_output(output, new)

    def remember(_: nn.Module, args: tuple, kwargs: dict) -> None:
        shape[:] = [read_value(Place(place.site, place.module, "input"), args, kwargs, None).shape]

    try:
        if place.shape_from is not None:
            handles.append(place.shape_from.register_forward_pre_hook(remember, with_kwargs=True))
        if place.side == "input":
            handles.append(place.module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(place.module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def call_hook(
    model: Model | nn.Module | Sites, fn: Callable[[Tensor | None, Tensor | None], None]
) -> Iterator[None]:
    """Call `fn(input_ids, attention_mask)` before every forward pass of the blocks: what a hook at a site cannot see.

    Args:
        model: A `Model`, or a transformers module, also one wrapped by PEFT or accelerate.
        fn: Takes `[batch, seq]` ids and `[batch, past + seq]` mask, each None where the caller gave none.
    """
    backbone = backbone_of(sites_of(model).hf)

    def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        fn(ids, mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)

    handle = backbone.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Reached(BaseException):
    """Raised from a hook to end a forward pass; not an `Exception`, so that no model code swallows it."""


def capture(
    model: Model | nn.Module | Sites,
    run: Callable[[], Any],
    sites: Iterable[str | Site],
    *,
    stop_early: bool,
    grad: bool,
) -> dict[str, Tensor]:
    """Values at sites during `run()`, a forward pass, which is ended once the last of them was reached.

    Returns:
        Name of the site, as asked for, to `[batch, seq, d]`: the tensor of the forward pass itself, detached
        unless `grad`.
    """
    resolved = sites_of(model)
    wanted: dict[Site, list[str]] = {}
    for site in sites:
        wanted.setdefault(resolved.normal(site), []).append(str(Site.parse(site)))
    if not wanted:
        raise ConfigError("sites is empty. Next: name at least one site, such as 'layers.0.resid_post'.")
    found: dict[Site, Tensor] = {}

    def keep(site: Site, value: Tensor) -> None:
        found[site] = value if grad else value.detach()
        if stop_early and len(found) == len(wanted):
            raise _Reached

    with ExitStack() as stack:
        for site in wanted:
            stack.enter_context(site_hook(resolved, site, lambda value, site=site: keep(site, value)))
        stack.enter_context(torch.set_grad_enabled(grad))
        with suppress(_Reached):
            run()
    missing = [str(site) for site in wanted if site not in found]
    if missing:
        raise SiteError(f"the forward pass did not reach {', '.join(missing)}.")
    return {name: found[site] for site, names in wanted.items() for name in names}


class Tap:
    """What `watch` keeps of one site: the value and gradient of the latest forward pass with gradients.

    Attributes:
        value: `[batch, seq, d]`, detached; None before the first forward pass.
        grad: dL/dh `[batch, seq, d]`, the derivative of what `backward` was called on (a sum over all
            backward passes through this value); None before it. Gradient accumulation divides the loss, and
            thereby this.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.value: Tensor | None = None
        self.grad: Tensor | None = None
        self._generation = 0

    def clear(self) -> None:
        """Forget value and gradient (frees their memory)."""
        self.value = self.grad = None
        self._generation += 1

    def _see(self, hidden: Tensor) -> None:
        self.clear()
        self.value = hidden.detach()
        generation = self._generation

        def receive(grad: Tensor) -> None:
            if generation == self._generation:
                self.grad = grad.detach() if self.grad is None else self.grad + grad.detach()

        hidden.register_hook(receive)


@contextmanager
def watch(
    model: Model | nn.Module | Sites, sites: Iterable[str | Site], *, leaf: bool = False
) -> Iterator[Mapping[str, Tap]]:
    """Keep activations and their gradients at sites, within any training or backward step.

    ```python
    with watch(model, ["layers.3.resid_post"]) as taps:
        loss_of(model, batch).backward()
    taps["layers.3.resid_post"].grad   # dL/dh [batch, seq, d]
    ```

    Forward passes without gradients (evaluation, rollouts) and the recomputations of gradient checkpointing
    are passed over.

    Args:
        model: A `Model` or a (wrapped) transformers module.
        sites: Where.
        leaf: Cut the graph at the site: the backward pass ends there and the layers below get no gradient.
            Cheap for reading gradients of a frozen model; wrong for training.

    Raises:
        SiteError: No such site, or the value there has no gradient (all parameters below are frozen: use
            `leaf`).
    """
    resolved = sites_of(model)
    taps = {str(Site.parse(site)): Tap(resolved.normal(site)) for site in sites}

    def see(tap: Tap, hidden: Tensor) -> Tensor | None:
        if torch._C._current_graph_task_id() != -1:  # gradient checkpointing runs the block again in backward
            return None
        if leaf:
            hidden = hidden.detach().requires_grad_()
        if not hidden.requires_grad:
            raise SiteError(
                f"{tap.site}: nothing below this site is trainable, so its value carries no gradient. Next: "
                f"watch with "
                "leaf=True, choose a later site, or call enable_input_require_grads() on the model."
            )
        tap._see(hidden)
        return hidden if leaf else None

    with ExitStack() as stack:
        for tap in taps.values():
            stack.enter_context(
                site_hook(resolved, tap.site, lambda hidden, tap=tap: see(tap, hidden), when="grad")
            )
        yield taps


def read_gradient(
    model: Model | nn.Module | Sites, site: str | Site, loss: Callable[[], Tensor], *, leaf: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `loss()` forward and backward and read one site.

    Parameter gradients are left as they were (with `leaf`, only those above the site would get any).

    Returns:
        Activations `[batch, seq, d]`, gradient dL/dh `[batch, seq, d]`, and the loss, all detached.
    """
    resolved = sites_of(model)
    name = str(Site.parse(site))
    trainable = [p for p in resolved.hf.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(not leaf)  # a frozen model: no parameter gradients are computed at all
    before = [p.grad for p in trainable]
    for parameter in trainable:
        parameter.grad = None  # backward would add to the kept tensors in place
    try:
        with torch.enable_grad(), watch(resolved, [name], leaf=leaf) as taps:
            value = loss()
            value.backward()
    finally:
        for parameter, grad in zip(trainable, before, strict=True):
            parameter.requires_grad_(True)
            parameter.grad = grad
    tap = taps[name]
    if tap.value is None or tap.grad is None:
        raise SiteError(f"{site}: the loss does not depend on this site. Next: check the loss function.")
    return tap.value, tap.grad, value.detach()


def _gate(when: When) -> Callable[[], bool]:
    if when == "always":
        return lambda: True
    if when == "grad":
        return torch.is_grad_enabled
    if when == "no_grad":
        return lambda: not torch.is_grad_enabled()
    raise ConfigError(f"when is {when!r}; use 'always', 'grad' or 'no_grad'.")


def _check_replacement(place: Place, value: Tensor, new: Tensor) -> None:
    if not place.writable:
        raise SiteError(
            f"{place.site} can be read but not changed: the router has already chosen its experts. Next: "
            f"intervene "
            "on mlp_out of this layer."
        )
    if new.shape != value.shape:
        raise SiteError(
            f"{place.site}: a replacement of shape {list(new.shape)} for a value of shape "
            f"{list(value.shape)}. "
            "Next: return a tensor of the same shape."
        )
