"""Every family: what a site is called is what is there.

Oracles: `output_hidden_states`, the residual identity, the family's own down projection and router weights
applied by hand, attention with its output weights set to zero, autograd, and counters on later modules.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairlead.core.errors import SiteError
from fairlead.core.site import Site
from fairlead.models import families, hooks, site_hook, watch

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def hidden_states(model, batch):
    inputs = model.inputs(batch)
    with torch.no_grad():
        return families.backbone_of(model.hf)(**inputs, output_hidden_states=True).hidden_states


def everything(model, batch, **options):
    return {Site.parse(name): value for name, value in model.capture(batch, model.sites(), **options).items()}


def real(value, batch):
    return value[batch.attention_mask.bool()]


def test_residual_stream_is_output_hidden_states(tiny, family):
    model, batch = tiny.model(family), tiny.batch()
    found, states = everything(model, batch), hidden_states(model, batch)
    last = model.num_layers - 1
    if family in tiny.recurrent:  # these list no embedding: after block 0, ..., after the final norm
        states = (found[Site("embed")], *states)
    else:
        torch.testing.assert_close(found[Site("embed")], states[0], **CLOSE)
    for layer in range(last):
        torch.testing.assert_close(found[Site("resid_post", layer)], states[layer + 1], **CLOSE)
        if not (family == "rwkv" and layer == 0):
            torch.testing.assert_close(found[Site("resid_pre", layer)], states[layer], **CLOSE)
    final = found[Site("resid_post", last)]
    backbone = families.backbone_of(model.hf)
    norms = ("norm", "ln_f", "final_layer_norm", "norm_f", "ln_out")
    norm = next(
        (getattr(backbone, n) for n in norms if isinstance(getattr(backbone, n, None), nn.Module)), None
    )
    if norm is None and family == "esm":
        norm = backbone.encoder.emb_layer_norm_after
    torch.testing.assert_close(final if norm is None else norm(final), states[-1], **CLOSE)
    if norm is not None:
        assert not torch.allclose(final, states[-1], atol=1e-3), "resid_post must be before the final norm"


def test_what_is_added_to_the_residual_stream(tiny, family):
    """resid_post = resid_pre + attn_out + mlp_out (BERT: with its two LayerNorms)."""
    model, batch = tiny.model(family), tiny.batch()
    found = everything(model, batch)
    for layer in range(model.num_layers):
        pre, post = found[Site("resid_pre", layer)], found[Site("resid_post", layer)]
        attn, mlp = found.get(Site("attn_out", layer)), found.get(Site("mlp_out", layer))
        if family == "generic":
            assert attn is None and mlp is None
            continue
        block = model.module_at(Site("resid_post", layer))
        if family == "bert":
            middle = block.attention.output.LayerNorm(pre + attn)
            expected = block.output.LayerNorm(middle + mlp)
        else:
            expected = pre + attn + (0 if mlp is None else mlp)
        torch.testing.assert_close(real(post, batch), real(expected, batch), **CLOSE)
        assert attn.norm() > 0 and (mlp is None or mlp.norm() > 0)


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    "sliding_window": 4,
    "state_size": 4,
    "n_groups": 1,
    "num_heads": 8,  # Mamba 2
    "head_dim": 8,
    "embedding_size": 32,  # ELECTRA
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize("model_type", families.known_model_types())
def test_every_model_type_of_the_tables_adds_up(tiny, model_type):
    """The residual identity for all types that have a table, also those without a model of their own above."""
    import transformers as tf

    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(model_type)
    config = config.get_text_config()
    config = type(config)(
        **{key: value for key, value in SIZES.items() if model_type != "esm" or key != "head_dim"}
    )
    if model_type == "esm":
        config.mask_token_id = 3
    hf = tf.AutoModel.from_config(config).eval()
    resolved = families.Sites(hf)
    batch = tiny.batch((6, 6))
    names = [str(site) for site in resolved.all()]
    found = hooks.capture(resolved, lambda: hf(input_ids=batch.input_ids), names, stop_early=True, grad=False)
    for layer in range(2):
        pre, post = found[f"layers.{layer}.resid_pre"], found[f"layers.{layer}.resid_post"]
        attn, mlp = found[f"layers.{layer}.attn_out"], found.get(f"layers.{layer}.mlp_out")
        block = resolved.blocks[layer]
        if (
            hasattr(block, "attention")
            and hasattr(block.attention, "output")
            and model_type not in ("esm", "rwkv")
        ):
            middle = block.attention.output.LayerNorm(pre + attn)  # BERT and its kin
            expected = block.output.LayerNorm(middle + mlp)
        else:
            expected = pre + attn + (0 if mlp is None else mlp)
        torch.testing.assert_close(post, expected, **CLOSE)
        assert attn.norm() > 0


def test_attn_out_vanishes_when_attention_writes_nothing(tiny, family):
    """Tells attn_out and mlp_out apart: with the mixer's output projection at zero only mlp_out is left."""
    if family == "generic":
        pytest.skip("no attn_out without a table")
    model, batch = tiny.model(family, seed=3), tiny.batch()
    names = ("o_proj", "out_proj", "c_proj", "dense", "output")
    for layer in range(model.num_layers):
        block = model.module_at(Site("resid_post", layer))
        part = next(
            getattr(block, n) for n in ("self_attn", "attention", "attn", "mixer") if hasattr(block, n)
        )
        owner = part.output if hasattr(part, "output") and not isinstance(part.output, nn.Linear) else part
        projection = next(getattr(owner, n) for n in names if hasattr(owner, n))
        for parameter in projection.parameters():
            parameter.data.zero_()
    found = everything(model, batch)
    for layer in range(model.num_layers):
        attn = found[Site("attn_out", layer)]
        assert attn.abs().max() == 0, f"{family}: attn_out of layer {layer} is not what attention writes"
        if Site("mlp_out", layer) in found:
            assert found[Site("mlp_out", layer)].norm() > 0


def test_mlp_act_is_the_input_of_the_down_projection(tiny, family):
    model, batch = tiny.model(family), tiny.batch()
    found = everything(model, batch)
    sites = model.sites("mlp_act")
    if not sites:
        assert family in ("generic", "mamba", "mixtral")
        return
    if family in ("qwen2_moe", "qwen3_moe"):
        assert sites == [Site("mlp_act", 0)], "only the dense layer has one"
    for site in sites:
        block = model.module_at(Site("resid_post", site.layer))
        act, out = found[site], found[Site("mlp_out", site.layer)]
        down = model.module_at(site)
        weight = down.weight.T if type(down).__name__ == "Conv1D" else down.weight  # GPT-2's is transposed
        assert act.shape[-1] == weight.shape[1] != model.d_model
        expected = torch.nn.functional.linear(act, weight, down.bias if hasattr(down, "bias") else None)
        if family in ("gemma2", "gemma3", "olmo2"):
            expected = block.post_feedforward_layernorm(expected)
        if family == "rwkv":  # gated after the down projection: compare with a hand-placed hook
            seen = []
            handle = block.feed_forward.receptance.register_forward_hook(lambda m, a, o: seen.append(o))  # noqa: B023
            model.capture(batch, [f"layers.{site.layer}.resid_post"])
            handle.remove()
            expected = expected * torch.sigmoid(seen[0])
        torch.testing.assert_close(out, expected, **CLOSE)


def test_router_logits(tiny, family):
    model, batch = tiny.model(family), tiny.batch()
    sites = model.sites("router")
    assert bool(sites) == (family in ("mixtral", "qwen2_moe", "qwen3_moe"))
    found = everything(model, batch)
    for site in sites:
        block = model.module_at(Site("resid_post", site.layer))
        middle = found[Site("resid_pre", site.layer)] + found[Site("attn_out", site.layer)]
        expected = block.post_attention_layernorm(middle) @ block.mlp.gate.weight.T
        assert found[site].shape == (*batch.input_ids.shape, 4)
        torch.testing.assert_close(found[site], expected, **CLOSE)
        with (
            pytest.raises(SiteError, match="can be read but not changed"),
            site_hook(model, site, lambda h: h + 1),
        ):
            model.forward(batch)
        with pytest.raises(SiteError, match="fuses the experts"):
            model.capture(batch, [Site("mlp_act", site.layer)])


def test_early_stop_really_stops_and_changes_nothing(tiny, family):
    model, batch = tiny.model(family), tiny.batch()
    calls = {layer: 0 for layer in range(model.num_layers)}

    def count(layer):
        return lambda *_: calls.__setitem__(layer, calls[layer] + 1)

    blocks = [model.module_at(Site("resid_post", layer)) for layer in range(model.num_layers)]
    before = [len(block._forward_hooks) + len(block._forward_pre_hooks) for block in blocks]
    handles = [block.register_forward_pre_hook(count(layer)) for layer, block in enumerate(blocks)]
    short = model.capture(batch, ["layers.1.resid_post", "layers.0.resid_pre"])
    assert list(calls.values()) == [1, 1, 0], "the blocks after the deepest site must not run"
    whole = model.capture(batch, ["layers.1.resid_post", "layers.0.resid_pre"], stop_early=False)
    assert list(calls.values()) == [2, 2, 1]
    model.capture(batch, ["layers.1.resid_pre"])
    assert calls[1] == 3  # the pre-hook counts; the block itself is not entered
    for handle in handles:
        handle.remove()
    assert set(short) == {"layers.1.resid_post", "layers.0.resid_pre"}
    for name in short:
        assert torch.equal(short[name], whole[name])
        assert not short[name].requires_grad
    after = [len(block._forward_hooks) + len(block._forward_pre_hooks) for block in blocks]
    assert after == before, "hooks were left behind"


def test_replacing_a_site_by_itself_changes_nothing_and_by_another_does(tiny, family):
    """Placebo beside the effect, at every writable site."""
    model, batch = tiny.model(family), tiny.batch()
    with torch.no_grad():
        base = real(model.forward(batch), batch)
        for site in model.sites():
            if site.kind == "router":
                continue
            with site_hook(model, site, lambda h: h.clone()):
                assert torch.equal(real(model.forward(batch), batch), base), (
                    f"placebo at {site} changed the logits"
                )
            with site_hook(model, site, lambda h: h + torch.arange(h.shape[-1]).sin()):
                changed = real(model.forward(batch), batch)
            assert not torch.allclose(changed, base, atol=1e-4), (
                f"a replacement at {site} did not reach the logits"
            )


def test_gradient_at_a_site_is_autograd(tiny, family):
    """`watch` and `read_gradient` against torch.autograd.grad on captured tensors that keep their graph."""
    model, batch = tiny.model(family), tiny.batch()
    site = "layers.1.resid_post"

    def loss():
        return model.forward(batch).float().logsumexp(-1)[batch.attention_mask.bool()].mean()

    kept = {}
    with site_hook(model, site, lambda h: kept.update(h=h)):
        value = loss()
    (oracle,) = torch.autograd.grad(value, kept["h"])
    with watch(model, [site]) as taps:
        loss().backward()
    torch.testing.assert_close(taps[site].grad, oracle, **CLOSE)
    torch.testing.assert_close(taps[site].value, kept["h"].detach(), **CLOSE)
    model.hf.zero_grad(set_to_none=True)
    acts, grad, read = hooks.read_gradient(model, site, loss)
    torch.testing.assert_close(grad, oracle, **CLOSE)
    torch.testing.assert_close(acts, kept["h"].detach(), **CLOSE)
    torch.testing.assert_close(read, value.detach(), **CLOSE)
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())


def test_capture_does_not_depend_on_the_padding_side(tiny, family):
    if family == "rwkv":
        from fairlead.core.errors import ModelError

        with pytest.raises(ModelError, match="pad on the right"):
            tiny.model(family).capture(tiny.batch(side="left"), ["embed"])
        return
    if family in ("bert",):
        pytest.skip("absolute positions of an encoder count padding; encoders are padded on the right")
    model = tiny.model(family)
    right, left = tiny.batch(), tiny.batch(side="left")
    one = model.capture(right, ["layers.-1.resid_post"])["layers.-1.resid_post"]
    two = model.capture(left, ["layers.-1.resid_post"])["layers.-1.resid_post"]
    torch.testing.assert_close(real(one, right), real(two, left), **CLOSE)


def test_bfloat16(tiny, family):
    model = tiny.model(family, seed=4)
    model.hf.to(torch.bfloat16)
    values = model.capture(tiny.batch(), ["embed", "layers.1.resid_post"])
    for value in values.values():
        assert value.isfinite().all()
        assert value.dtype in (torch.bfloat16, torch.float32)  # Mamba keeps its residual stream in float32


def test_mlp_in_is_what_the_mlp_reads(tiny, family):
    """The family's own MLP, applied to mlp_in by hand, gives mlp_out."""
    model, batch = tiny.model(family), tiny.batch()
    sites = model.sites("mlp_in")
    assert [site.layer for site in sites] == [site.layer for site in model.sites("mlp_out")]
    if (
        family == "rwkv"
    ):  # its MLP mixes each token with the one before and keeps a state: see the residual identity
        return
    found = everything(model, batch)
    for site in sites:
        block, value = model.module_at(Site("resid_post", site.layer)), found[site]
        with torch.no_grad():
            if family in ("bert", "esm"):
                made = block.output.dense(block.intermediate(value))
            else:
                made = block.mlp(value)
            made = made[0] if isinstance(made, tuple) else made
            if family in ("gemma2", "gemma3", "olmo2"):
                made = block.post_feedforward_layernorm(made)
        torch.testing.assert_close(found[Site("mlp_out", site.layer)], made, **CLOSE)
