"""Hooks: restored after exceptions, gated, through PEFT, checkpointing and wrappers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairlead.core.errors import ConfigError, ModelError, SiteError
from fairlead.models import hooks, site_hook, unwrap, watch

SITE = "layers.1.resid_post"


def num_hooks(hf):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def loss_of(module, batch):
    logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits.logsumexp(-1)[batch.attention_mask.bool()].mean()


def test_an_exception_inside_leaves_nothing_behind(tiny):
    model, batch = tiny.model("llama"), tiny.batch()
    before = num_hooks(model.hf)
    with torch.no_grad():
        base = model.forward(batch)
    with pytest.raises(KeyError), site_hook(model, SITE, lambda h: h * 0):
        raise KeyError
    with pytest.raises(ZeroDivisionError), site_hook(model, SITE, lambda h: 1 / 0):
        model.forward(batch)
    with pytest.raises(SiteError), watch(model, [SITE, "layers.9.resid_post"]):
        pass
    assert num_hooks(model.hf) == before
    with torch.no_grad():
        assert torch.equal(model.forward(batch), base)


def test_an_error_during_capture_is_not_swallowed(tiny):
    model, batch = tiny.model("llama"), tiny.batch()
    before, grad = num_hooks(model.hf), torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), site_hook(model, "embed", lambda h: 1 / 0):
        model.capture(batch, [SITE])
    assert num_hooks(model.hf) == before and torch.is_grad_enabled() == grad


def test_capture_sees_interventions(tiny):
    model, batch = tiny.model("llama"), tiny.batch()
    base = model.capture(batch, [SITE])[SITE]
    with site_hook(model, SITE, lambda h: h + 1):
        torch.testing.assert_close(model.capture(batch, [SITE])[SITE], base + 1)


def test_negative_layers_keep_the_name_that_was_asked_for(tiny):
    model, batch = tiny.model("llama"), tiny.batch()
    found = model.capture(batch, ["layers.-1.resid_post", "layers.2.resid_post"])
    assert torch.equal(found["layers.-1.resid_post"], found["layers.2.resid_post"])


def test_capture_with_gradient(tiny):
    model, batch = tiny.model("llama", seed=5), tiny.batch()
    with torch.no_grad():  # `grad` holds whatever the caller has set
        value = model.capture(batch, [SITE], grad=True)[SITE]
    value.square().sum().backward()
    grads = [p.grad is not None for p in model.hf.model.layers[0].parameters()]
    assert all(grads) and all(p.grad is None for p in model.hf.model.layers[2].parameters())


def test_when(tiny):
    model, batch = tiny.model("llama"), tiny.batch()
    seen = {"always": 0, "grad": 0, "no_grad": 0}
    for when in seen:
        with site_hook(model, SITE, lambda h, when=when: seen.update({when: seen[when] + 1}), when=when):
            model.forward(batch)
            with torch.no_grad():
                model.forward(batch)
                model.forward(batch)
    assert seen == {"always": 3, "grad": 1, "no_grad": 2}
    with pytest.raises(ConfigError), site_hook(model, SITE, lambda h: h, when="sometimes"):
        pass


def test_a_replacement_of_another_shape_is_refused(tiny):
    model, batch = tiny.model("llama"), tiny.batch()
    with pytest.raises(SiteError, match="same shape"), site_hook(model, SITE, lambda h: h[:, :2]):
        model.forward(batch)


def test_leaf_gives_the_same_gradient_and_stops_there(tiny):
    model, batch = tiny.model("llama", seed=6), tiny.batch()
    with watch(model, [SITE]) as taps:
        loss_of(model.hf, batch).backward()
    whole = taps[SITE].grad
    model.hf.zero_grad(set_to_none=True)
    with watch(model, [SITE], leaf=True) as taps:
        loss_of(model.hf, batch).backward()
    torch.testing.assert_close(taps[SITE].grad, whole)
    assert all(p.grad is None for p in model.hf.model.layers[1].parameters())
    assert all(p.grad is not None for p in model.hf.model.layers[2].parameters())


def test_read_gradient_leaves_parameter_gradients_alone(tiny):
    model, batch = tiny.model("llama", seed=6), tiny.batch()
    loss_of(model.hf, batch).backward()
    before = {name: p.grad.clone() for name, p in model.hf.named_parameters()}
    for leaf in (True, False):
        hooks.read_gradient(model, SITE, lambda: loss_of(model.hf, batch), leaf=leaf)
        for name, parameter in model.hf.named_parameters():
            assert torch.equal(parameter.grad, before[name])


def test_a_frozen_model_needs_leaf(tiny):
    model, batch = tiny.model("llama", seed=6), tiny.batch()
    model.hf.requires_grad_(False)
    model.hf.lm_head.weight.requires_grad_(True)
    with pytest.raises(SiteError, match="leaf=True"), watch(model, [SITE]):
        loss_of(model.hf, batch)
    _, grad, _ = hooks.read_gradient(model, SITE, lambda: loss_of(model.hf, batch))
    assert grad.norm() > 0


def test_the_latest_forward_pass_counts_and_evaluation_is_passed_over(tiny):
    model = tiny.model("llama")
    first, second = tiny.batch(seed=1), tiny.batch((4, 4), seed=2)
    with watch(model, [SITE]) as taps:
        one = loss_of(model.hf, first)
        two = loss_of(model.hf, second)
        with torch.no_grad():
            loss_of(model.hf, first)
        one.backward()
        assert taps[SITE].grad is None, "the gradient of an older pass must not be taken for this one's"
        two.backward()
    assert taps[SITE].grad.shape == taps[SITE].value.shape == (2, 4, 32)
    model.hf.zero_grad(set_to_none=True)


@pytest.mark.parametrize("site", [SITE, "layers.1.mlp_out", "layers.1.mlp_act"])
def test_gradient_checkpointing(tiny, site):
    """The same gradient with blocks run again in the backward pass, and interventions act there as well."""
    model, batch = tiny.model("llama", seed=7), tiny.batch()
    model.hf.train()

    def read():
        model.hf.zero_grad(set_to_none=True)
        with site_hook(model, site, lambda h: h * 1.5), watch(model, [site]) as taps:
            loss_of(model.hf, batch).backward()
        return taps[site].grad, model.hf.model.layers[0].mlp.up_proj.weight.grad.clone()

    plain = read()
    model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for one, two in zip(read(), plain, strict=True):
        torch.testing.assert_close(one, two)


class Wrapper(nn.Module):
    """Like DistributedDataParallel: holds the model as `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_bare_peft_and_wrapped_modules(tiny):
    from peft import LoraConfig, get_peft_model

    hf, batch = tiny.hf("llama"), tiny.batch()
    with watch(hf, [SITE]) as taps:
        loss_of(hf, batch).backward()
    oracle = taps[SITE].grad
    peft = get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    wrapped = Wrapper(peft)
    assert unwrap(wrapped) is hf
    with watch(wrapped, [SITE, "layers.1.mlp_act"]) as taps:  # LoRA starts as the identity
        loss_of(wrapped, batch).backward()
    torch.testing.assert_close(taps[SITE].grad, oracle)
    assert taps["layers.1.mlp_act"].grad.shape[-1] == 48
    with pytest.raises(ModelError, match="holds no transformers model"):
        unwrap(nn.Linear(2, 2))
