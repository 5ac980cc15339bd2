"""Edits against arithmetic by hand; conditional generation in batches against a loop written here; all restored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fairlead.concepts import Abort, Condition, Edit, EditSet, Variant, apply_edits, usual_strengths
from fairlead.core.errors import ConfigError, DictionaryError, ModelError
from fairlead.core.records import Concept
from fairlead.data import iter_batches
from fairlead.dictionaries import Dictionary

SITE = "layers.1.resid_post"
PROMPTS = ["w5 w6 w7", "w9", "w10 w11 w12 w13 w14", "w20 w21", "w30 w3 w8 w44", "w50 w51"]


def make_dictionary(model, d_dict=48, seed=3) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(d_dict, model.d_model, generator=generator), dim=-1)
    weights = {
        "W_enc": decoder.T.clone(),
        "W_dec": decoder,
        "b_enc": torch.zeros(d_dict),
        "b_dec": torch.zeros(model.d_model),
        "threshold": torch.full((d_dict,), 0.3),
    }
    return Dictionary(weights, site=SITE, model_fingerprint=model.fingerprint, model_name=model.name)


@pytest.fixture(scope="module")
def dictionary(model):
    return make_dictionary(model)


def when(threshold, over: Any = "token", **fields):
    return (Condition(latents=(7,), threshold=threshold, over=over, **fields),)


def one_set(model, dictionary, *edits, aborts=()):
    return EditSet.make(model, dictionary, edits, aborts=aborts)


def ids_of(model, prompts):
    return [model.tokenizer(prompt)["input_ids"] for prompt in prompts]


def hidden_of(model, dictionary, edits, batch):
    after = "layers.2.resid_pre"
    before = model.capture(batch, [after])[after]
    with apply_edits(model, dictionary, edits) as session:
        session.place(batch)
        return before, model.capture(batch, [after])[after]


@pytest.mark.parametrize("mode", ["add", "scale", "clamp", "ablate"])
def test_each_mode_is_its_formula_and_keeps_the_error(model, dictionary, rows, mode):
    latents, weights, value = (4, 17, 30), (1.0, 0.5, 2.0), 1.5
    batch = next(iter_batches(rows[:6], batch_size=6, pad_id=model.pad_id))
    edit = Edit(mode=mode, latents=latents, weights=weights, value=value)
    before, after = hidden_of(model, dictionary, one_set(model, dictionary, edit), batch)
    acts = dictionary.encode(before)[..., list(latents)]
    goal = {
        "add": acts + value * torch.tensor(weights),
        "scale": value * acts,
        "clamp": (value * torch.tensor(weights)).expand_as(acts),
        "ablate": torch.zeros_like(acts),
    }[mode]
    expected = before + (goal - acts) @ dictionary.decoder[list(latents)]
    real = batch.attention_mask.bool().clone()
    real[:, 0] = False
    torch.testing.assert_close(after[real], expected[real], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after[:, 0], before[:, 0])  # the first token is left alone
    assert (after[real] - before[real]).abs().max() > 1e-2, "the edit did nothing: the test shows nothing"


def test_places_are_where_they_are_said_to_be(model, dictionary, rows):
    batch = next(iter_batches(rows[:6], batch_size=6, pad_id=model.pad_id))
    real = batch.attention_mask.bool()
    start = torch.zeros_like(real)
    start[:, 2] = True  # prompts of the fixture have three tokens
    later = batch.loss_mask
    prompt = real & ~later
    prompt[:, 0] = False
    wanted = {
        "prompt": prompt,
        "start": start,
        "later": later,
        "answer": start | later,
        "all": prompt | later,
    }
    for at, mask in wanted.items():
        edit = Edit.model_validate({"mode": "add", "latents": (3,), "weights": (2.0,), "at": at})
        before, after = hidden_of(model, dictionary, one_set(model, dictionary, edit), batch)
        changed = (after - before).abs().amax(-1) > 1e-4
        assert torch.equal(changed & real, mask), at


def threshold_between(model, dictionary, latent, prompts):
    """A threshold that some prompts exceed and some do not."""
    peaks = []
    for ids in ids_of(model, prompts):
        batch = type(
            "B",
            (),
            {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)},
        )
        acts = dictionary.encode_latents(model.capture(batch, [SITE])[SITE], [latent])[0, :, 0]
        peaks.append(float(acts[min(1, len(ids) - 1) :].max()))
    peaks.sort()
    return (peaks[len(peaks) // 2 - 1] + peaks[len(peaks) // 2]) / 2


def reference(model, dictionary, edits, ids, steps):
    """Greedy generation of one prompt by full forward passes and a hook written here, without any cache or session."""
    tokens, width, ended = list(ids), len(ids), None
    for _ in range(steps):
        text = torch.tensor([tokens])

        def fn(module, args, output):
            h = output[0] if isinstance(output, tuple) else output
            acts = dictionary.encode(h)
            new = h.clone()
            for t in range(len(tokens)):
                roles = set()
                if t == width - 1:
                    roles |= {"start", "prompt", "answer", "all"}
                elif t >= width:
                    roles |= {"later", "answer", "all"}
                elif t > 0:
                    roles |= {"prompt", "all"}
                for edit in edits.edits:
                    if edit.at in roles and all(_holds(c, acts[0], t, width) for c in edit.when):
                        a = acts[0, t, list(edit.latents)]
                        w = torch.tensor(edit.weights) if edit.weights else None
                        if edit.mode == "add":
                            step = edit.value * w
                        elif edit.mode == "clamp":
                            step = edit.value * w - a
                        else:
                            step = -a if edit.mode == "ablate" else (edit.value - 1) * a
                        new[0, t] += step @ dictionary.decoder[list(edit.latents)]
            fn.acts = acts
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = model.module_at(SITE).register_forward_hook(fn)
        with torch.no_grad():
            logits = model.hf(input_ids=text, use_cache=False).logits[0, -1]
        handle.remove()
        rule = next(
            (r for r in edits.aborts if all(_holds(c, fn.acts[0], len(tokens) - 1, width) for c in r.when)),
            None,
        )
        if rule is not None:
            ended = rule.told()
            break
        token = int(logits.argmax())
        if token == model.tokenizer.eos_token_id:
            break
        tokens.append(token)
    return model.tokenizer.decode(tokens[width:], skip_special_tokens=True), ended


def _holds(condition, acts, t, width):
    score = acts[:, list(condition.latents)].sum(-1)
    if condition.over == "token":
        value = score[t]
    elif condition.over == "prompt":
        first = min(1, width - 1)
        value = score[first:width].max()
    else:
        value = score[width - 1 : t + 1].max() if t >= width - 1 else torch.tensor(float("-inf"))
    return bool(value > condition.threshold) is condition.above


@pytest.mark.parametrize("over", ["token", "prompt", "answer"])
def test_conditional_generation_in_batches_equals_a_loop_written_by_hand(model, dictionary, over):
    level = threshold_between(model, dictionary, 7, PROMPTS)
    edits = one_set(
        model,
        dictionary,
        Edit(mode="add", latents=(1, 2), weights=(6.0, -4.0), at="answer", when=when(level, over)),
        Edit(
            mode="clamp", latents=(9,), weights=(3.0,), at="prompt", when=when(level, "prompt", above=False)
        ),
        Edit(mode="ablate", latents=(11, 12), at="later"),
    )
    wanted = [reference(model, dictionary, edits, ids, 8)[0] for ids in ids_of(model, PROMPTS)]
    plain = model.generate(PROMPTS, max_new_tokens=8, chat=False)
    for batch_size in (1, 2, 6):
        with apply_edits(model, dictionary, edits) as session:
            found = model.generate(
                PROMPTS, max_new_tokens=8, chat=False, batch_size=batch_size, follower=session
            )
        assert [text.split() for text in found] == [text.split() for text in wanted], batch_size
    assert [t.split() for t in plain] != [t.split() for t in wanted], (
        "the edits changed nothing: the test shows nothing"
    )


def test_without_a_follower_the_attention_mask_tells_the_same(model, dictionary):
    """A foreign loop: transformers' own generate, with left padding and a cache."""
    edits = one_set(
        model,
        dictionary,
        Edit(mode="add", latents=(1, 2), weights=(9.0, -6.0), at="start"),
        Edit(mode="add", latents=(5,), weights=(8.0,), at="later"),
    )
    wanted = [reference(model, dictionary, edits, ids, 6)[0].split() for ids in ids_of(model, PROMPTS)]
    model.tokenizer.padding_side = "left"
    inputs = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    with apply_edits(model, dictionary, edits):
        out = model.hf.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )
    found = [
        model.tokenizer.decode(row, skip_special_tokens=True).split()
        for row in out[:, inputs["input_ids"].shape[1] :]
    ]
    assert found == wanted


@pytest.mark.parametrize("over", ["prompt", "answer"])
def test_an_abort_ends_only_the_rows_it_is_for_with_its_reason(model, dictionary, over):
    level = threshold_between(model, dictionary, 7, PROMPTS)
    rule = Abort(when=(Condition(latents=(7,), threshold=level, over=over, concept="c7"),), reason="seven")
    edits = one_set(model, dictionary, aborts=(rule,))
    wanted = [reference(model, dictionary, edits, ids, 8) for ids in ids_of(model, PROMPTS)]
    assert {reason for _, reason in wanted} == {None, "seven"}, "both kinds of row are needed"
    for batch_size in (1, 4, 6):
        variant = Variant.from_edits(model, dictionary, edits)
        found = variant.generate(PROMPTS, max_new_tokens=8, chat=False, batch_size=batch_size)
        assert [(a.text.split(), a.aborted) for a in found] == [(t.split(), r) for t, r in wanted]


def test_a_text_read_at_once_is_edited_as_it_was_when_generated(model, dictionary, rows):
    """Log-probabilities in padded batches equal those of single rows, and those of the hand-written hook."""
    level = threshold_between(model, dictionary, 7, PROMPTS)
    edits = one_set(
        model,
        dictionary,
        Edit(mode="add", latents=(1,), weights=(5.0,), at="answer", when=when(level, "answer")),
    )
    variant = Variant.from_edits(model, dictionary, edits)
    together = variant.logprobs(rows[:8], batch_size=8)
    plain = model.logprobs(rows[:8])
    differs = 0.0
    for row, scores, bare in zip(rows[:8], together, plain, strict=True):
        torch.testing.assert_close(scores, variant.logprobs([row])[0], atol=1e-4, rtol=1e-4)
        differs = max(differs, float((scores - bare).abs().max()))
    assert differs > 1e-2


def test_everything_is_restored_also_after_an_exception(model, dictionary, rows):
    before = model.logprobs(rows[:3])
    edits = one_set(model, dictionary, Edit(mode="add", latents=(1,), weights=(5.0,)))
    with pytest.raises(RuntimeError, match="stop"), apply_edits(model, dictionary, edits):
        assert not torch.allclose(model.logprobs(rows[:1])[0], before[0], atol=1e-3)
        raise RuntimeError("stop")
    for one, two in zip(before, model.logprobs(rows[:3]), strict=True):
        assert torch.equal(one, two)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()) == 0


def test_the_file_round_trips_and_refuses_what_it_was_not_made_for(model, other_model, dictionary, tmp_path):
    concept = Concept(id="c7", label="seven", site=SITE, latents=(7, 8))
    variant = Variant(model, dictionary, [concept])
    variant.set_when(variant.when("c7", above=0.4, over="prompt"), "c7", 0.5, mode="scale", at="answer")
    variant.abort_when(variant.when(concept, above=9.0), "too much of it")
    path = variant.save(tmp_path / "edits.json")
    again = Variant.from_edits(model, dictionary, EditSet.load(path))
    assert (
        again.edits == variant.edits
        and Variant.from_json(model, dictionary, variant.to_json()).edits == variant.edits
    )
    with pytest.raises(ModelError, match="made for tiny0"):
        Variant.from_edits(other_model, make_dictionary(other_model), EditSet.load(path))
    with pytest.raises(DictionaryError, match="other things"):
        Variant.from_edits(model, make_dictionary(model, seed=4), EditSet.load(path))
    value = json.loads(path.read_text())
    for broken, message in (
        ("{", "broken JSON"),
        ("[]", "not a file of edits"),
        (json.dumps({**value, "version": 2}), "update fairlead"),
        (json.dumps({**value, "aborts": [{"when": []}]}), "at least one condition"),
        (json.dumps({**value, "edits": [{"mode": "shout", "latents": [1]}]}), "edits.0.mode"),
        (json.dumps({**value, "edits": [{"mode": "add", "latents": [1]}]}), "weight"),
    ):
        path.write_text(broken)
        with pytest.raises(ConfigError, match=message):
            EditSet.load(path)
    with pytest.raises(DictionaryError, match="latent 48"):
        EditSet.make(model, dictionary, [Edit(mode="ablate", latents=(48,))])
    with pytest.raises(ConfigError, match="no concept 'c9'"):
        variant.set("c9")


def test_one_unit_is_the_usual_strength(model, dictionary, rows):
    """Adding one unit where the concept is silent makes its latents act as strongly as they usually do (orthogonal latents)."""
    concept = Concept(id="c5", label="five", site=SITE, latents=(5,))
    strength = usual_strengths(model, dictionary, [concept], rows)["c5"]
    acts = []
    for row in rows:
        batch = next(iter_batches([row], batch_size=1, pad_id=0))
        acts.append(dictionary.encode_latents(model.capture(batch, [SITE])[SITE][0, 1:], [5])[:, 0])
    acts = torch.cat(acts)
    assert strength[0] == pytest.approx(float(acts[acts > 0].mean()), rel=1e-5)
    variant = Variant(model, dictionary, [concept], texts=rows).set("c5", 1.0).set("c5", 2.0)
    assert [edit.value for edit in variant.edits.edits] == [2.0] and variant.edits.edits[
        0
    ].weights == strength
    assert not variant.reset().edits.edits
