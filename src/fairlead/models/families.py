"""Sites to modules: the only place in Fairlead that knows the module names of transformers.

A `Family` is a table: where the blocks are, and per kind of site which submodule's input or output holds the
value. What the kinds mean is the same in every family, and the conformance test checks it on a tiny model of
each:

- `embed`: what enters block 0 (with positions and embedding norm where a family has them),
  `hidden_states[0]`.
- `resid_pre`, `resid_post`: the residual stream before and after a block. The last `resid_post` is *before*
  the final norm; the last entry of `output_hidden_states` is after it.
- `attn_out`, `mlp_out`: what is *added* to the residual stream. For Gemma 2/3 and OLMo 2 that is the output
  of the norm that follows the sublayer, for BERT, GPT-NeoX and Phi-3 the output of its dropout (in BERT the
  block's LayerNorm comes after the addition). The mixer of a state-space model counts as attention.
- `mlp_in`: what the MLP reads: the stream after its norm (in BERT, which normalises after the addition, the stream).
- `mlp_act`: input of the down projection, `[batch, seq, d_mlp]`. transformers 5 fuses the experts of
  mixture-of-experts layers, so those have no `mlp_act`.
- `router`: router logits `[batch, seq, num_experts]`, read-only: the router has chosen its experts by then.

An architecture that no table knows gets `embed`, `resid_pre` and `resid_post`, found by structure (the list
of blocks).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from torch import Tensor, nn

from fairlead.core.errors import ModelError, SiteError
from fairlead.core.site import LAYER_KINDS, Site

Side = Literal["input", "output"]
_HIDDEN_NAMES = ("hidden_states", "hidden", "x", "inputs")


@dataclass(frozen=True)
class Family:
    """Where the sites of an architecture are.

    Attributes:
        name: Name of the layout.
        blocks: Path of the list of blocks, from the base model; "" to find it by structure.
        kinds: Kind of site to (path within a block, side).
        causal: Whether tokens see only what is before them; None to ask the config.
        reads_mask: Whether padding on the left is masked out (RWKV ignores the mask).
        overrides: Exceptions for single layers: (layer, kind) to (path, side).
    """

    name: str
    blocks: str
    kinds: Mapping[str, tuple[str, Side]] = field(default_factory=dict)
    causal: bool | None = True
    reads_mask: bool = True
    overrides: Mapping[tuple[int, str], tuple[str, Side]] = field(default_factory=dict)


def _family(
    name: str, blocks: str, attn: str, mlp: str, act: str, *, mlp_in: str = "mlp", **options: Any
) -> Family:
    kinds: dict[str, tuple[str, Side]] = {"attn_out": (attn, "output")}
    if mlp:
        kinds |= {"mlp_in": (mlp_in, "input"), "mlp_out": (mlp, "output"), "mlp_act": (act, "input")}
        kinds |= {"router": ("mlp.gate", "output")}
    return Family(name, blocks, kinds, **options)


LLAMA = _family("llama", "layers", "self_attn", "mlp", "mlp.down_proj")
POST_NORM = _family(
    "post-norm", "layers", "post_attention_layernorm", "post_feedforward_layernorm", "mlp.down_proj"
)
PHI3 = _family("phi3", "layers", "resid_attn_dropout", "resid_mlp_dropout", "mlp.down_proj")
GPT2 = _family("gpt2", "h", "attn", "mlp", "mlp.c_proj")
GPT_NEOX = _family("gpt-neox", "layers", "post_attention_dropout", "post_mlp_dropout", "mlp.dense_4h_to_h")
MAMBA = _family("mamba", "layers", "mixer", "", "")
RWKV = _family(
    "rwkv",
    "blocks",
    "attention",
    "feed_forward",
    "feed_forward.value",
    mlp_in="feed_forward",
    reads_mask=False,
    overrides={
        (0, "resid_pre"): ("pre_ln", "output")
    },  # block 0 normalises its input before the first addition
)
BERT = _family(
    "bert",
    "encoder.layer",
    "attention.output.dropout",
    "output.dropout",
    "output.dense",
    mlp_in="intermediate",
    causal=None,
)
GENERIC = Family("generic", "", causal=None)

# fmt: off
_LLAMA_LIKE = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "olmo", "smollm3",
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe",
)
# fmt: on
_BY_MODEL_TYPE: dict[str, Family] = {
    **dict.fromkeys(_LLAMA_LIKE, LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3"), POST_NORM),
    "phi3": PHI3,
    **dict.fromkeys(("gpt2", "gpt_bigcode"), GPT2),
    "gpt_neox": GPT_NEOX,
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), MAMBA),
    "rwkv": RWKV,
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "camembert", "electra", "esm"], BERT),
}


def family_of(module: nn.Module) -> Family:
    """The table for a (possibly wrapped) transformers model; `GENERIC` where none is known."""
    config: Any = unwrap(module).config
    return _BY_MODEL_TYPE.get(config.model_type) or _BY_MODEL_TYPE.get(
        text_config(config).model_type, GENERIC
    )


def known_model_types() -> list[str]:
    """Model types (`config.model_type`) that have a table."""
    return sorted(_BY_MODEL_TYPE)


def unwrap(module: nn.Module) -> Any:
    """The transformers model inside DDP, accelerate, torch.compile and PEFT wrappers.

    Raises:
        ModelError: There is none.
    """
    inner: Any = module
    for _ in range(8):
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):  # PeftModel
            inner = inner.get_base_model()
        elif hasattr(getattr(inner, "config", None), "model_type"):
            return inner
        elif isinstance(getattr(inner, "module", None), nn.Module):  # DDP, DataParallel, FSDP
            inner = inner.module
        else:
            break
    raise ModelError(
        f"{type(module).__name__} holds no transformers model. Next: pass a Hugging Face model, or one that "
        f"is "
        "wrapped by PEFT or accelerate."
    )


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def backbone_of(module: nn.Module) -> nn.Module:
    """The model without its head (and, in a multimodal model, without its other towers)."""
    hf = unwrap(module)
    return getattr(hf, "base_model", hf)


@dataclass(frozen=True)
class Place:
    """Where a site lives in one model.

    Attributes:
        site: The site, its layer counted from 0.
        module: The module whose input or output holds the value.
        side: "input" or "output".
        writable: Whether a replaced value reaches the rest of the model.
        shape_from: Module whose input has the shape `[batch, seq, d]`, where the value itself comes
            flattened.
    """

    site: Site
    module: nn.Module
    side: Side
    writable: bool = True
    shape_from: nn.Module | None = None


class Sites:
    """All sites of one model, resolved."""

    def __init__(self, module: nn.Module) -> None:
        self.hf: Any = unwrap(module)
        self.family = family_of(self.hf)
        self.blocks = _find_blocks(self.hf, self.family)
        self.num_layers = len(self.blocks)

    def all(self, kind: str | None = None) -> list[Site]:
        """Sites in the order of the forward pass; of one kind where given.

        Raises:
            SiteError: No such kind of site at all.
        """
        if kind is not None and kind not in ("embed", *LAYER_KINDS):
            raise SiteError(f"'{kind}' is not a kind of site. Next: one of embed, {', '.join(LAYER_KINDS)}.")
        order = ("resid_pre", "attn_out", "mlp_in", "router", "mlp_act", "mlp_out", "resid_post")
        found = [Site("embed")] if kind in (None, "embed") else []
        for layer in range(self.num_layers):
            found += [
                Site(name, layer)
                for name in order
                if kind in (None, name) and self._find(name, layer) is not None
            ]
        return found

    def normal(self, site: str | Site) -> Site:
        """The site with a layer counted from 0 (negative layers count from the end).

        Raises:
            SiteError: No such layer.
        """
        site = Site.parse(site)
        if site.layer is None:
            return site
        layer = site.layer + self.num_layers if site.layer < 0 else site.layer
        if not 0 <= layer < self.num_layers:
            raise SiteError(
                f"{site}: this model has {self.num_layers} layers, 0 to {self.num_layers - 1} "
                f"(or -{self.num_layers} to -1). Next: choose one of these."
            )
        return Site(site.kind, layer)

    def place(self, site: str | Site) -> Place:
        """Module and side of a site.

        Raises:
            SiteError: This model has no such site; lists those it has.
        """
        site = self.normal(site)
        if site.kind == "embed":
            return Place(site, self.blocks[0], "input")
        found = self._find(site.kind, site.layer or 0)
        if found is None:
            here = [str(s) for s in self.all() if s.layer == site.layer]
            raise SiteError(
                f"{site}: {self._reason(site)} Next: this layer has {', '.join(here)}; the model also has "
                f"embed."
            )
        return found

    def _find(self, kind: str, layer: int) -> Place | None:
        site, block = Site(kind, layer), self.blocks[layer]
        override = self.family.overrides.get((layer, kind))
        if override is None and kind == "resid_pre":
            return Place(site, block, "input")
        if override is None and kind == "resid_post":
            return Place(site, block, "output")
        path, side = override or self.family.kinds.get(kind, ("", "output"))
        module = _submodule(block, path) if path else None
        if module is None:
            return None
        if kind == "router":
            owner = _submodule(block, path.rpartition(".")[0])
            return Place(site, module, side, writable=isinstance(module, nn.Linear), shape_from=owner)
        return Place(site, module, side)

    def _reason(self, site: Site) -> str:
        name = self.hf.config.model_type
        if self.family is GENERIC:
            return f"'{name}' is an architecture that Fairlead knows only by its list of blocks."
        if site.kind == "mlp_act" and self._find("router", site.layer or 0):
            return "transformers fuses the experts of this layer, so there is no single down projection."
        return f"'{name}' has no such place in this layer."


def read_value(place: Place, args: tuple, kwargs: dict, output: Any) -> Tensor:
    """The hidden tensor of a site in a module's inputs (`args`, `kwargs`) or `output`."""
    if place.side == "input":
        if args:
            return args[0]
        for name in _HIDDEN_NAMES:
            if name in kwargs:
                return kwargs[name]
        return next(value for value in kwargs.values() if isinstance(value, Tensor))
    return output[0] if isinstance(output, tuple | list) else output


def write_input(args: tuple, kwargs: dict, value: Tensor) -> tuple[tuple, dict]:
    """A module's inputs with the hidden tensor replaced."""
    if args:
        return (value, *args[1:]), kwargs
    name = next((n for n in _HIDDEN_NAMES if n in kwargs), None)
    if name is None:
        name = next(key for key, item in kwargs.items() if isinstance(item, Tensor))
    return args, {**kwargs, name: value}


def write_output(output: Any, value: Tensor) -> Any:
    """A module's output with the hidden tensor replaced."""
    if isinstance(output, tuple | list):
        return type(output)([value, *output[1:]])
    return value


def is_causal(module: nn.Module) -> bool:
    """Whether a token's activations depend only on it and the tokens before it."""
    hf, family = unwrap(module), family_of(module)
    if family.causal is not None:
        return family.causal
    if family is BERT:
        return bool(getattr(hf.config, "is_decoder", False))
    return bool(getattr(hf.config, "is_decoder", False)) or bool(hf.can_generate())


def accepts(module: nn.Module, name: str) -> bool:
    """Whether a model's forward takes an argument of this name."""
    return _accepts(type(module), name)


@lru_cache(maxsize=256)
def _accepts(kind: type[nn.Module], name: str) -> bool:
    return name in inspect.signature(kind.forward).parameters


def settle(module: nn.Module) -> None:
    """Make a model's activations the same in training and evaluation mode.

    RWKV divides its residual stream by 2 every few layers in evaluation mode only (for float16); that is
    switched off. The outputs do not change, since a norm follows.
    """
    base: Any = backbone_of(module)
    if hasattr(base, "layers_are_rescaled"):
        if base.layers_are_rescaled:
            mode, base.training = base.training, True
            base._rescale_layers()
            base.training = mode
        base.config.rescale_every = 0


def max_length_of(config: Any, tokenizer: Any) -> int:
    """Longest input in tokens: limit of the model's positions or of the tokenizer, 2^20 if neither."""
    text = text_config(config)
    limits = [1 << 20]
    for name in ("max_position_embeddings", "n_positions", "context_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            if config.model_type in ("roberta", "xlm-roberta", "camembert", "esm"):
                value -= (text.pad_token_id or 0) + 1  # their positions start after the padding index
            limits.append(value)
            break
    own = getattr(tokenizer, "model_max_length", None)
    if isinstance(own, int) and 0 < own < 1 << 20:
        limits.append(own)
    return min(limits)


def _find_blocks(hf: nn.Module, family: Family) -> nn.ModuleList:
    base = backbone_of(hf)
    if family.blocks:
        for start in (base, getattr(base, "language_model", None), getattr(base, "model", None)):
            found = _submodule(start, family.blocks) if start is not None else None
            if isinstance(found, nn.ModuleList) and len(found):
                return found
    wanted = getattr(text_config(hf.config), "num_hidden_layers", None)
    lists = [
        (name, item)
        for name, item in hf.named_modules()
        if isinstance(item, nn.ModuleList) and len(item) and not _has_other_tower(name)
    ]
    matching = [pair for pair in lists if wanted is None or len(pair[1]) == wanted]
    if not matching:
        raise ModelError(
            f"{type(hf).__name__}: no list of {wanted} blocks found, so its sites cannot be located. Next: use "
            f"a model of a known type ({', '.join(known_model_types())})."
        )
    # the outermost list; among equals the one with most parameters
    matching.sort(key=lambda pair: (pair[0].count("."), -sum(p.numel() for p in pair[1].parameters())))
    return matching[0][1]


def _has_other_tower(name: str) -> bool:
    return any(word in name for word in ("vision", "visual", "audio", "image"))


def _submodule(root: nn.Module | None, path: str) -> nn.Module | None:
    for part in path.split(".") if path else ():
        root = getattr(root, part, None)
        if root is None:
            return None
    return root if isinstance(root, nn.Module) else None
