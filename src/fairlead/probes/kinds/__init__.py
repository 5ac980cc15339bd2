"""Kinds of span probes, by name; plug-ins register under the entry point group `fairlead.span_probes`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple

from fairlead.core.errors import ConfigError
from fairlead.probes.head import Head, SpanProbeConfig, Spans
from fairlead.probes.kinds.attention import AttentionHead, fit_attention
from fairlead.probes.kinds.linear import PooledHead, fit_linear, fit_mean_difference
from fairlead.probes.kinds.span_max import SpanMaxHead, fit_span_max


class Kind(NamedTuple):
    """How a head is fitted, and the class that its weights are loaded into."""

    fit: Callable[[Spans, SpanProbeConfig], Head]
    head: Callable[..., Head]


_BUILT_IN: dict[str, Kind] = {
    "linear": Kind(fit_linear, PooledHead),
    "mean_difference": Kind(fit_mean_difference, PooledHead),
    "attention": Kind(fit_attention, AttentionHead),
    "span_max": Kind(fit_span_max, SpanMaxHead),
    "lora": Kind(fit_attention, AttentionHead),  # the head; `fairlead.probes.lora` fits the adapters
}


@lru_cache(maxsize=1)
def _kinds() -> dict[str, Kind]:
    found: dict[str, Any] = dict(_BUILT_IN)
    for entry in metadata.entry_points(group="fairlead.span_probes"):
        found.setdefault(entry.name, entry.load())
    return found


def kind_names() -> tuple[str, ...]:
    """Names of the kinds there are."""
    return tuple(_kinds())


def get_kind(name: str) -> Kind:
    """A kind by name.

    Raises:
        ConfigError: Unknown name; lists those there are.
    """
    if name not in _kinds():
        raise ConfigError(f"kind is {name!r}; there are {', '.join(kind_names())}. Next: use one of these.")
    return _kinds()[name]
