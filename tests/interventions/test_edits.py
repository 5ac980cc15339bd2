"""Interventions against residual-stream arithmetic by hand, with placebos, restored after everything."""

from __future__ import annotations

import pytest
import torch

from fairlead.core.errors import ConfigError, SiteError
from fairlead.core.nouns import Direction
from fairlead.core.site import Site
from fairlead.interventions import ablate, add, patch, project, steer_all_layers
from fairlead.models import site_hook
from fairlead.models.families import backbone_of

SITE = Site("resid_post", 1)
NEXT = Site("resid_pre", 2)


def random_direction(seed=0, site=SITE, d=32):
    return Direction(site, torch.randn(d, generator=torch.Generator().manual_seed(seed)))


def logits(model, batch):
    with torch.no_grad():
        return model.forward(batch)


def continue_by_hand(model, batch, hidden):
    """Logits from a given residual stream after block 1: block 2, final norm and head, called directly."""
    base = backbone_of(model.hf)
    inputs = model.inputs(batch)
    seen = {}
    last = model.module_at(Site("resid_post", 2))
    handle = last.register_forward_pre_hook(lambda m, a, k: seen.update(a=a, k=k), with_kwargs=True)
    with torch.no_grad():
        base(**inputs, use_cache=False)
        handle.remove()
        hidden = last(hidden, *seen["a"][1:], **seen["k"])
        norm = base.norm if hasattr(base, "norm") else base.ln_f
        return model.hf.lm_head(norm(hidden))


def test_add_is_residual_arithmetic(model, batch):
    direction = random_direction()
    hidden = model.capture(batch, [SITE])[str(SITE)]
    expected = continue_by_hand(model, batch, hidden + 0.7 * direction.vector)
    with add(model, direction, scale=0.7):
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        continue_by_hand(model, batch, hidden), logits(model, batch), atol=1e-5, rtol=1e-4
    )


def test_ablation_sets_the_coefficient_and_keeps_the_rest(model, batch):
    direction, other = random_direction(), random_direction(5)
    unit = direction.unit()
    base = model.capture(batch, [SITE])[str(SITE)]
    mean_activation = base.reshape(-1, 32).mean(0)
    for mean, wanted in ((None, 0.0), (1.5, 1.5), (mean_activation, float(mean_activation @ unit))):
        with ablate(model, direction, mean=mean):
            hidden = model.capture(batch, [NEXT])[str(NEXT)]
        torch.testing.assert_close(hidden @ unit, torch.full(hidden.shape[:2], wanted), atol=1e-5, rtol=1e-5)
        rest = other.vector - (other.vector @ unit) * unit
        torch.testing.assert_close(hidden @ rest, base @ rest, atol=1e-4, rtol=1e-4)


def test_ablating_what_is_not_there_is_the_placebo(model, batch):
    """Ablating twice is ablating once; removing a direction that has weight changes the logits."""
    direction = random_direction()
    base = logits(model, batch)
    with ablate(model, direction):
        effect = logits(model, batch)
        with ablate(model, direction):  # nothing is left to remove
            torch.testing.assert_close(logits(model, batch), effect, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(effect, base, atol=1e-2)


def test_project_removes_the_span_however_it_is_given(model, batch):
    a, b = random_direction(1), random_direction(2)
    mixed = Direction(SITE, 3 * a.vector - b.vector)
    with project(model, [a, b]):
        one = model.capture(batch, [NEXT])[str(NEXT)]
    with project(model, [mixed, a, b, a]):  # linearly dependent, same span
        two = model.capture(batch, [NEXT])[str(NEXT)]
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    for direction in (a, b, mixed):
        assert (one @ direction.unit()).abs().max() < 1e-5
    base = model.capture(batch, [SITE])[str(SITE)]
    span = torch.stack([a.vector, b.vector]).T
    expected = base - (span @ torch.linalg.lstsq(span, base.reshape(-1, 32).T).solution).T.reshape(base.shape)
    torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-4)
    with project(model, [a, Direction(Site("embed"), b.vector)]):
        found = model.capture(batch, ["embed", NEXT])
    assert (found[str(NEXT)] @ a.unit()).abs().max() < 1e-5
    assert (found["embed"] @ b.unit()).abs().max() < 1e-5


def test_patch_carries_one_run_into_another(model, batch):
    """With the other run's values patched in the logits are the other run's; with its own, its own."""
    from types import SimpleNamespace

    other = SimpleNamespace(**{**vars(batch), "input_ids": batch.input_ids.flip(0).roll(1, 1)})
    own, theirs = (model.capture(b, [SITE])[str(SITE)] for b in (batch, other))
    base, wanted = logits(model, batch), logits(model, other)
    assert not torch.allclose(base, wanted, atol=1e-2)
    with patch(model, SITE, theirs):
        torch.testing.assert_close(logits(model, batch), wanted, atol=1e-5, rtol=1e-4)
    with patch(model, SITE, own):
        torch.testing.assert_close(logits(model, batch), base, atol=1e-6, rtol=1e-5)
    with patch(model, SITE, torch.zeros(32)):
        assert (model.capture(batch, [NEXT])[str(NEXT)] == 0).all()


def test_tokens_limits_the_effect_to_those_tokens(model, batch):
    direction = random_direction()
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 2] = mask[2, 4:] = True
    base = model.capture(batch, [NEXT])[str(NEXT)]
    for tokens in (mask, lambda hidden: mask):
        with add(model, direction, tokens=tokens):
            changed = model.capture(batch, [NEXT])[str(NEXT)] - base
        torch.testing.assert_close(changed[mask], direction.vector.expand(3, 32), atol=1e-5, rtol=1e-4)
        assert (changed[~mask] == 0).all()


def test_steering_all_layers_by_increments_shifts_each_layer_by_its_vector(model, batch):
    """With blocks that write nothing, the shift after layer l is v_l; without increments, their sum."""
    for name, parameter in model.hf.named_parameters():
        if any(part in name for part in ("o_proj", "down_proj", "c_proj")):
            parameter.data.zero_()
    vectors = {f"layers.{n}.resid_post": random_direction(n).vector for n in range(3)}
    names = list(vectors)
    base = model.capture(batch, names)
    with steer_all_layers(model, vectors, 2.0):
        found = model.capture(batch, names)
    with steer_all_layers(model, dict(reversed(vectors.items())), 2.0, increments=False):
        summed = model.capture(batch, names)
    total = torch.zeros(32)
    for name in names:
        total = total + vectors[name]
        shift = (found[name] - base[name]).reshape(-1, 32)
        torch.testing.assert_close(shift, (2 * vectors[name]).expand_as(shift), atol=1e-4, rtol=1e-4)
        shift = (summed[name] - base[name]).reshape(-1, 32)
        torch.testing.assert_close(shift, (2 * total).expand_as(shift), atol=1e-4, rtol=1e-4)


def test_everything_is_restored_also_after_an_exception(model, batch):
    base = logits(model, batch)
    d = random_direction()
    makers = [
        lambda: add(model, d),
        lambda: ablate(model, d),
        lambda: project(model, [d]),
        lambda: patch(model, SITE, torch.zeros(32)),
        lambda: steer_all_layers(model, {SITE: d.vector, "layers.2.resid_post": d.vector}),
    ]
    for make in makers:
        with pytest.raises(RuntimeError, match="stop"), make():
            assert not torch.allclose(logits(model, batch), base, atol=1e-3)
            raise RuntimeError("stop")
        assert torch.equal(logits(model, batch), base)
    with pytest.raises(SiteError), steer_all_layers(model, {SITE: d.vector, "layers.2.router": d.vector}):
        pass
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()) == 0


def test_gradients_flow_and_when_gates(model, batch):
    d = random_direction()
    with add(model, d, when="grad"):
        assert torch.equal(logits(model, batch), logits(model, batch))
        with torch.no_grad():
            off = model.forward(batch)
        on = model.forward(batch)
    assert torch.equal(off, logits(model, batch)) and not torch.allclose(on, off, atol=1e-3)
    on.logsumexp(-1).mean().backward()
    assert all(p.grad is not None for p in model.module_at("layers.0.resid_post").parameters())


def test_they_work_on_the_bare_module_and_in_bfloat16(model, batch):
    d = random_direction()
    with add(model, d):
        expected = logits(model, batch)
    with add(model.hf, d):
        assert torch.equal(logits(model, batch), expected)
    model.hf.to(torch.bfloat16)
    with add(model, d), ablate(model, d), project(model, [d]):
        assert logits(model, batch).dtype == torch.bfloat16


def test_steering_generation_and_its_placebo(model):
    """A vector steers the answers to the token it points to; a random one of equal norm does not."""
    prompts = ["w5 w6 w7", "w9", "w10 w11"]
    target = 33
    row = model.hf.lm_head.weight.detach()[target]
    steering = Direction(Site("resid_post", 2), 50 * row / row.norm())
    noise = random_direction(3)
    placebo = Direction(Site("resid_post", 2), 50 * noise.unit())

    def share(answers):
        words = " ".join(answers).split()
        return sum(word == f"w{target}" for word in words) / len(words)

    with add(model, steering):
        steered = share(model.generate(prompts, max_new_tokens=6))
    with add(model, placebo):
        random = share(model.generate(prompts, max_new_tokens=6))
    assert steered > 0.9 and random < 0.1


def test_refusals(model, batch):
    wide = random_direction(d=31)
    with pytest.raises(SiteError, match="width 31 at a site of width 32"), add(model, wide):
        logits(model, batch)
    with (
        pytest.raises(ConfigError, match="a mask of shape"),
        add(model, random_direction(), tokens=torch.ones(2, 2, dtype=torch.bool)),
    ):
        logits(model, batch)
    with pytest.raises(SiteError, match="do not fit"), patch(model, SITE, torch.zeros(7, 6, 32)):
        logits(model, batch)
    with pytest.raises(ConfigError), project(model, []):
        pass
    with pytest.raises(ConfigError), steer_all_layers(model, {}):
        pass
    with pytest.raises(ConfigError), ablate(model, random_direction(), mean=torch.zeros(5)):
        pass
    with site_hook(model, SITE, lambda h: None):
        logits(model, batch)
