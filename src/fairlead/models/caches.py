"""Rows in and out of what a family carries from call to call: keys and values, or a recurrent state.

A batch that runs has one set of columns for all its rows. A row that joins is padded on the left to the width of the others (or they
to its width), and columns that are padding for every row are cut off. Keys of padding are zeros behind a mask, so no row sees them.
Recurrent states have no columns. Known are the plain and the sliding layers of transformers' `DynamicCache`, its linear-attention
layers (Mamba), and RWKV's list of tensors; anything else (static, quantized, indexed caches) cannot take rows in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

_KNOWN = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)


def can_join(state: Any) -> bool:
    """Whether rows can be put into the carried state (None, for models that carry none, and lists can)."""
    if state is None or isinstance(state, list):
        return True
    layers = getattr(state, "layers", None)
    return bool(layers) and all(type(layer) in _KNOWN for layer in layers)


def can_select(state: Any) -> bool:
    """Whether rows can be taken out of the carried state."""
    if can_join(state):
        return True
    layers = getattr(state, "layers", None)
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)


def select_rows(state: Any, keep: Tensor) -> Any:
    """The state with these rows only."""
    if isinstance(state, list):
        return [item[keep] for item in state]
    if state is not None:
        for layer in state.layers:
            if type(layer) is LinearAttentionLayer:  # transformers selects no rows of these
                _change_states(layer, lambda item: item[keep])
            else:
                layer.batch_select_indices(keep)
    return state


def join_rows(state: Any, width: int, other: Any, other_width: int) -> Any:
    """The rows of both states, `state` first; it is changed in place where it can be.

    Args:
        state: What one batch carries.
        width: Its columns.
        other: What another batch of the same model carries.
        other_width: Its columns.
    """
    if isinstance(state, list):
        return [torch.cat(pair) for pair in zip(state, other, strict=True)]
    if state is not None:
        total = max(width, other_width)
        for mine, theirs in zip(state.layers, other.layers, strict=True):
            if type(mine) is LinearAttentionLayer:
                _join_states(mine, theirs)
            elif mine.is_initialized:
                columns = _kept_columns(mine, total)
                for name in ("keys", "values"):
                    pair = (_widen(getattr(one, name), columns) for one in (mine, theirs))
                    setattr(mine, name, torch.cat(list(pair)))
                if type(mine) is DynamicSlidingWindowLayer:
                    mine.cumulative_length = total
    return state


def trim_columns(state: Any, width: int, num: int) -> Any:
    """The state without its first `num` of `width` columns, which are padding in every row."""
    if state is None or isinstance(state, list):
        return state
    for layer in state.layers:
        if type(layer) is LinearAttentionLayer or not layer.is_initialized:
            continue
        columns = min(_kept_columns(layer, width - num), layer.keys.shape[-2])
        layer.keys = layer.keys[..., layer.keys.shape[-2] - columns :, :]
        layer.values = layer.values[..., layer.values.shape[-2] - columns :, :]
        if type(layer) is DynamicSlidingWindowLayer:
            layer.cumulative_length = width - num
    return state


def _kept_columns(layer: Any, width: int) -> int:
    """Columns that a layer keeps of `width`."""
    return min(width, layer.sliding_window - 1) if type(layer) is DynamicSlidingWindowLayer else width


def _widen(values: Tensor, columns: int) -> Tensor:
    """Keys or values `[batch, head, columns, d_head]`, padded on the left."""
    return torch.nn.functional.pad(values, (0, 0, columns - values.shape[-2], 0))


def _change_states(layer: Any, change: Any) -> None:
    for kept in (layer.conv_states, layer.recurrent_states):
        for place, item in kept.items():
            if item is not None:
                kept[place] = change(item)


def _join_states(mine: Any, theirs: Any) -> None:
    for name in ("conv_states", "recurrent_states"):
        kept, more = getattr(mine, name), getattr(theirs, name)
        for place, item in kept.items():
            if item is not None:
                kept[place] = torch.cat([item, more[place]])
