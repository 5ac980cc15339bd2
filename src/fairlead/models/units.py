"""Attention heads and MLP neurons: which entries of the parameters are theirs, and what they say.

A head owns its rows of the query projection and its columns of the output projection; rows of key and value that several heads share
(grouped queries) belong to all of them, and so does what is left of the attention block (norms of queries and keys, the output bias).
A neuron owns its row of the projections into the hidden layer and its column of the one out of it. The table of projections stands
here; where the blocks are, `families` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fairlead.core.errors import ModelError, SiteError
from fairlead.core.site import Site
from fairlead.models.families import Sites, text_config

if TYPE_CHECKING:
    from fairlead.data import Encoded
    from fairlead.models.model import Model

UnitKind = Literal["heads", "neurons"]
Unit = tuple[int, int]  # layer, number within it


class _Attention(NamedTuple):
    block: str
    out: str
    projections: dict[str, str]  # name to what its output rows are


_SEPARATE = _Attention("self_attn", "o_proj", {"q_proj": "q", "k_proj": "kv", "v_proj": "kv"})
_ATTENTION = {
    "llama": _SEPARATE,
    "post-norm": _SEPARATE,
    "phi3": _Attention("self_attn", "o_proj", {"qkv_proj": "q,kv,kv"}),
    "gpt2": _Attention("attn", "c_proj", {"c_attn": "q,kv,kv"}),
    "gpt-neox": _Attention("attention", "dense", {"query_key_value": "by head"}),
}
_INTO_HIDDEN = ("gate_proj", "up_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "key")


class Layer(NamedTuple):
    """The units of one layer.

    Attributes:
        num: How many there are.
        owners: Per parameter: its axis, and along it `[entry, unit]`, True where the entry belongs to the unit.
        out: The projection whose input they write, `[batch, seq, num * d_unit]`.
    """

    num: int
    owners: list[tuple[nn.Parameter, int, Tensor]]
    out: nn.Module


def units_of(module: nn.Module, kind: UnitKind) -> list[Layer]:
    """The heads or neurons of every layer of a (possibly wrapped) model.

    Raises:
        ModelError: An architecture whose heads (neurons) are not known.
    """
    sites = Sites(module)
    find = _heads if kind == "heads" else _neurons
    return [find(sites, layer) for layer in range(sites.num_layers)]


def unit_masks(layers: Sequence[Layer], chosen: Collection[Unit]) -> dict[nn.Parameter, Tensor]:
    """Per parameter that units own, True at the entries of `chosen` ones; a shared entry counts where all its owners are chosen."""
    masks: dict[nn.Parameter, Tensor] = {}
    for number, layer in enumerate(layers):
        is_chosen = torch.tensor([(number, unit) in chosen for unit in range(layer.num)])
        for parameter, axis, owners in layer.owners:
            along = (is_chosen | ~owners).all(1)
            shape = [-1 if place == axis else 1 for place in range(parameter.dim())]
            masks[parameter] = along.view(shape).expand(parameter.shape).to(parameter.device)
    return masks


@torch.no_grad()
def unit_activations(model: Model, encoded: Sequence[Encoded], kind: UnitKind) -> list[Tensor]:
    """Per layer what each unit says at the response tokens of rows, `[token, unit, d_unit]` float32 on the CPU."""
    from fairlead.data import iter_batches

    layers = units_of(model.hf, kind)
    found: list[list[Tensor]] = [[] for _ in layers]
    now: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, tuple], None]:
        return lambda _, args: now.__setitem__(number, args[0])

    handles = [layer.out.register_forward_pre_hook(keep(number)) for number, layer in enumerate(layers)]
    try:
        for batch in iter_batches(encoded, batch_size=32, pad_id=model.pad_id):
            model.forward(batch)
            for number, layer in enumerate(layers):
                said = now[number][batch.loss_mask.to(now[number].device)]
                found[number].append(said.float().cpu().view(len(said), layer.num, -1))
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts) for parts in found]


def _heads(sites: Sites, number: int) -> Layer:
    config = text_config(sites.hf.config)
    table = None if config.model_type == "gpt_bigcode" else _ATTENTION.get(sites.family.name)
    block = getattr(sites.blocks[number], table.block, None) if table else None
    if table is None or block is None:
        raise ModelError(
            f"'{sites.hf.config.model_type}' is an architecture whose attention heads are not known here. Next: choose layers."
        )
    num = int(config.num_attention_heads)
    num_kv = int(getattr(config, "num_key_value_heads", None) or num)
    out = getattr(block, table.out)
    d_head = _width(out, into=True) // num
    own = torch.eye(num, dtype=torch.bool).repeat_interleave(d_head, 0)
    shared = torch.eye(num_kv, dtype=torch.bool).repeat_interleave(num // num_kv, 1)
    rows = {"q": own, "kv": shared.repeat_interleave(d_head, 0), "by head": own.repeat_interleave(3, 0)}
    owners = [(_weight(out), _axis(out, into=True), own)]
    for name, layout in table.projections.items():
        projection = getattr(block, name)
        owners += _owned(projection, torch.cat([rows[part] for part in layout.split(",")]))
    owned = {parameter for parameter, _, _ in owners}
    for parameter in block.parameters():
        if parameter not in owned:
            owners.append((parameter, 0, torch.ones(len(parameter), num, dtype=torch.bool)))
    return Layer(num, owners, out)


def _neurons(sites: Sites, number: int) -> Layer:
    try:
        down = sites.place(Site("mlp_act", number)).module
    except SiteError as error:
        raise ModelError(f"layer {number} has no neurons that can be chosen: {error}") from None
    path = sites.family.kinds["mlp_act"][0].rpartition(".")[0]
    block = sites.blocks[number].get_submodule(path)
    num = _width(down, into=True)
    own = torch.eye(num, dtype=torch.bool)
    owners = [(_weight(down), _axis(down, into=True), own)]
    for name in _INTO_HIDDEN:
        if isinstance(projection := getattr(block, name, None), nn.Module):
            owners += _owned(projection, own.repeat(_width(projection, into=False) // num, 1))
    if len(owners) == 1:
        raise ModelError(
            f"'{sites.hf.config.model_type}' is an architecture whose neurons are not known here. Next: choose layers."
        )
    return Layer(num, owners, down)


def _owned(projection: nn.Module, rows: Tensor) -> list[tuple[nn.Parameter, int, Tensor]]:
    bias = getattr(projection, "bias", None)
    assert _width(projection, into=False) == len(rows), "the table of projections does not fit the model"
    found = [(_weight(projection), _axis(projection, into=False), rows)]
    return [*found, (bias, 0, rows)] if isinstance(bias, nn.Parameter) else found


def _axis(projection: nn.Module, *, into: bool) -> int:
    """Axis of the weight along the inputs or the outputs: a `Linear` is `[out, in]`, GPT-2's `Conv1D` `[in, out]`."""
    return int(into) if isinstance(projection, nn.Linear) else 1 - int(into)


def _width(projection: nn.Module, *, into: bool) -> int:
    return int(_weight(projection).shape[_axis(projection, into=into)])


def _weight(projection: nn.Module) -> nn.Parameter:
    weight = projection.weight
    assert isinstance(weight, nn.Parameter)
    return weight
