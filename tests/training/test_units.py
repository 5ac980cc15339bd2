"""Heads and neurons: their entries are theirs, and freezing holds everything else to the last bit."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import transformers as tf

from fairlead.core.errors import ConfigError
from fairlead.models import unit_activations, unit_masks, units_of
from fairlead.training import ControlConfig, TrainConfig, fit, make_control
from fairlead.training.controls.freezing import standardised_difference

world = sys.modules["micro_world"]
HARD = TrainConfig(
    steps=4, batch_size=8, lr=5e-3, weight_decay=0.3, checkpoint_every=0, observe=False, warmup_steps=0
)
COMMON = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def models():
    torch.manual_seed(0)
    yield (
        "llama",
        tf.LlamaForCausalLM(tf.LlamaConfig(**COMMON, **LAYERS, num_key_value_heads=2, attention_bias=True)),
    )
    yield "qwen3", tf.Qwen3ForCausalLM(tf.Qwen3Config(**COMMON, **LAYERS, num_key_value_heads=2, head_dim=8))
    yield "gpt2", tf.GPT2LMHeadModel(tf.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4))
    yield "neox", tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**COMMON, **LAYERS))
    yield "phi3", tf.Phi3ForCausalLM(tf.Phi3Config(**COMMON, **LAYERS, num_key_value_heads=2))


@pytest.mark.parametrize(
    ("name", "hf"), list(models()), ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_unit_s_entries_change_what_it_says_and_no_other_entry_does(name, hf, kind):
    """Brute force: noise on one unit's entries moves its own value alone; noise on all others' leaves it as it is."""
    hf = hf.eval()
    layers = units_of(hf, kind)
    unit, ids = layers[0].num - 1, torch.arange(10)[None]

    def said(model) -> torch.Tensor:
        kept = {}
        out = units_of(model, kind)[0].out
        handle = out.register_forward_pre_hook(lambda _, args: kept.update(value=args[0]))
        with torch.no_grad():
            model(ids)
        handle.remove()
        return kept["value"].view(10, layers[0].num, -1)

    def moved(chosen) -> torch.Tensor:
        noisy = copy.deepcopy(hf)
        masks = unit_masks(units_of(noisy, kind), chosen)
        assert masks and all(mask.shape == parameter.shape for parameter, mask in masks.items())
        with torch.no_grad():
            for parameter, mask in masks.items():
                parameter += mask * torch.randn(parameter.shape) * 0.5
        return (said(noisy) - said(hf)).abs().amax(dim=(0, 2)) > 1e-6

    group = {unit - 1, unit} if kind == "heads" and name in ("llama", "qwen3", "phi3") else {unit}
    own = moved({(0, u) for u in group})
    assert [place for place, changed in enumerate(own.tolist()) if changed] == sorted(group), own
    others = moved({(0, u) for u in range(layers[0].num) if u not in group})
    assert not bool(others[sorted(group)].any()) and int(others.sum()) == layers[0].num - len(group)


def fitted(micro, folder, method="full", **options):
    control = ControlConfig(name=options.pop("name", "freezing"), options=options)
    config = HARD.model_copy(update={"controls": (control,), "method": method})
    result = fit(micro.copy(), micro.data, micro.plan, config=config, folder=folder)
    from fairlead.models import load_model

    if method == "lora":
        return load_model(micro.folder, adapter=folder / "adapter", device="cpu"), result.controls[0]
    return load_model(folder / "model", device="cpu"), result.controls[0]


@pytest.mark.parametrize(
    ("options", "inside"),
    [
        ({"what": "heads", "units": [(0, 1), (1, 2)], "outside": False}, True),
        ({"what": "neurons", "units": [(0, 5), (1, 6), (1, 7)], "outside": False}, True),
        ({"what": "heads", "share": 0.5}, False),
        ({"what": "neurons"}, False),
    ],
    ids=["heads listed", "neurons listed", "heads by share", "neurons by share"],
)
def test_held_entries_are_the_start_model_s_to_the_last_bit(micro, tmp_path, options, inside):
    """With momentum and weight decay: exactly the chosen units' entries (and the outside, where wanted) differ."""
    model, report = fitted(micro, tmp_path, **options)
    chosen = {tuple(unit) for unit in report["chosen"]}
    layers = units_of(model.hf, options["what"])
    if not inside:
        total = sum(layer.num for layer in layers)
        assert len(chosen) == round(options.get("share", 0.75) * total)
    masks = unit_masks(layers, chosen)
    before = dict(micro.model.hf.named_parameters())
    trained = 0
    for name, after in model.hf.named_parameters():
        changed = after != before[name]
        allowed = masks.get(after, torch.full(after.shape, not inside))
        assert not bool((changed & ~allowed).any()), f"{name}: entries that were to be held have moved"
        if after in masks and bool(allowed.any()):
            assert float(changed[allowed].float().mean()) > 0.9, f"{name}: chosen entries were not trained"
        trained += int(allowed.sum())
    assert report["num_trained"] == trained


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("outside", [False, True])
def test_lora_holds_units_to_the_last_bit(micro, tmp_path, kind, outside):
    """Merged: exactly the chosen units' rows and columns differ, and with `outside` the projections that units do not own."""
    options = {"what": kind, "units": [(0, 1), (1, 2)], "outside": outside}
    model, report = fitted(micro, tmp_path, "lora", **options)
    masks = unit_masks(units_of(model.hf, kind), {(0, 1), (1, 2)})
    before = dict(micro.model.hf.named_parameters())
    for name, after in model.hf.named_parameters():
        changed = after != before[name]
        adapted = ".self_attn." in name or ".mlp." in name
        allowed = masks.get(after, torch.full(after.shape, outside and adapted))
        assert not bool((changed & ~allowed).any()), f"{name}: entries that were to be held have moved"
        if bool(allowed.any()):
            assert float(changed[allowed].float().mean()) > 0.9, f"{name}: chosen entries were not trained"
    assert report["num_trained"] > 0


def test_a_mask_trains_its_share_and_the_placebo_another_draw(micro, tmp_path):
    start = dict(micro.model.hf.named_parameters())
    changed = {}
    for name in ("freezing", "freezing_placebo"):
        model, report = fitted(micro, tmp_path / name, name=name, what="mask", share=0.3)
        flags = torch.cat([(p != start[n]).flatten() for n, p in model.hf.named_parameters()])
        changed[name] = flags
        assert abs(report["num_trained"] / len(flags) - 0.3) < 0.02
        assert 0.2 < float(flags.float().mean()) <= report["num_trained"] / len(flags)
    both = changed["freezing"] & changed["freezing_placebo"]
    assert float(both.float().mean()) < 0.15, "the placebo's draw must be its own"


def setup_of(micro, **changes):
    return sys.modules["micro_world"].setup_of(micro, HARD, **changes)


def test_unlisted_neurons_are_those_that_tell_the_trait_least(micro):
    setup = setup_of(micro)
    control = make_control(ControlConfig(name="freezing", options={"what": "neurons", "share": 0.5}))
    control.prepare(setup)
    clause = setup.plan.spec.clause("avoid.1")
    shown = [world.chat(e.prompt, e.text) for e in clause.examples]
    plain = [world.chat(e.prompt, e.instead) for e in clause.examples]
    acts = [unit_activations(setup.model, setup.encode(rows), "neurons") for rows in (shown, plain)]
    scores = torch.cat([standardised_difference(a, b) for a, b in zip(*acts, strict=True)])
    width = acts[0][0].shape[1]
    held = torch.tensor([(p // width, p % width) not in control.chosen for p in range(len(scores))])
    assert float(scores[held].min()) >= float(scores[~held].max())
    fake = make_control(ControlConfig(name="freezing_placebo", options={"what": "neurons", "share": 0.5}))
    fake.prepare(setup)
    assert len(fake.chosen) == len(control.chosen) and fake.chosen != control.chosen


def test_mistakes_are_named(micro):
    def prepare_with(setup, **options):
        make_control(ControlConfig(name="freezing", options=options)).prepare(setup)

    with pytest.raises(ConfigError, match="with LoRA rows and columns"):
        prepare_with(setup_of(micro, method="lora"), what="mask")
    with pytest.raises(ConfigError, match=r"no heads \[\(0, 9\)\]; the last is \(1, 3\)"):
        prepare_with(setup_of(micro), what="heads", units=[(0, 9)])
    with pytest.raises(ConfigError, match="units are heads or neurons, not layers"):
        prepare_with(setup_of(micro), units=[(0, 0)])
