"""Span probes: they tell made-up claims on unseen people, a placebo does not; a span's score depends on its own tokens alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fairlead.core.claims import ClaimSpan, TokenSpan
from fairlead.core.errors import ConfigError, ModelError
from fairlead.core.nouns import SpanReadout
from fairlead.data import collate
from fairlead.data.template import encode_prompt
from fairlead.guard import Guard
from fairlead.models.adapters import make_adapters
from fairlead.probes import SpanProbeConfig, encode_answers, examples_of, load_span_probe
from fairlead.probes.baselines import compare_auroc, confidence_baselines, ledger_baseline, shuffled_baseline
from fairlead.probes.evaluating import evaluate
from fairlead.probes.fitting import fit_on, split
from fairlead.probes.harvesting import harvest
from fairlead.probes.kinds import kind_names
from fairlead.probes.parts import part_of
from fairlead.probes.reading import make_reading
from fairlead.training.rewards import Text, read_claims

SITE = "layers.3.resid_post"


def fit(pocket, found, examples, **settings):
    config = SpanProbeConfig.make(sites=(SITE,), **settings)
    return fit_on(found, examples, model=pocket, name="unsupported", config=config)


@pytest.fixture(scope="module")
def fitted(pocket, found, examples):
    return fit(pocket, found, examples, kind="attention")


@pytest.fixture(scope="module")
def read(pocket, answers, fitted):
    """Activations of a few answers with their encodings."""
    encoded = encode_answers(answers[:6], pocket.tokenizer, max_length=pocket.max_length)
    batch = collate([e.encoded for e in encoded], pad_id=pocket.pad_id)
    return encoded, pocket.capture(batch, fitted.probe.sites)


@pytest.mark.parametrize("kind", ["linear", "mean_difference", "attention", "span_max"])
def test_every_kind_tells_made_up_claims_and_its_placebo_does_not(pocket, found, examples, kind):
    probe = fit(pocket, found, examples, kind=kind)
    parts = split(found, examples, probe.probe.config)
    placebo = shuffled_baseline(found, examples, parts["fit"], parts["test"], probe.probe.config)
    groups = [examples[i].group for i, _ in probe.spans]
    gain = compare_auroc(probe.logits, placebo.scores, probe.labels, groups, num_resamples=100)
    assert probe.probe.metrics["auroc"] > 0.8
    assert gain.gain.low > 0.1, f"placebo has {gain.auroc:.2f}"


def test_kinds_are_listed():
    assert {"linear", "mean_difference", "attention", "span_max"} <= set(kind_names())
    with pytest.raises(ConfigError, match="there are linear"):
        from fairlead.probes.kinds import get_kind

        get_kind("oracle")


def test_an_entity_is_on_one_side_only(found, examples):
    parts = split(found, examples, SpanProbeConfig(seed=5))
    sides = {part: {examples[found.example[p]].group for p in places} for part, places in parts.items()}
    assert not sides["fit"] & sides["test"] and not sides["fit"] & sides["calibration"]
    assert not sides["test"] & sides["calibration"]


def test_it_is_a_span_readout_of_its_own_tokens_alone(fitted, read):
    encoded, activations = read
    probe = fitted.probe
    assert isinstance(probe, SpanReadout)
    span = TokenSpan(0, *encoded[0].spans[0])
    before = probe.span_scores(activations, [span])
    changed = {site: value.clone() for site, value in activations.items()}
    for value in changed.values():
        value[0, : span.start] += 1.0
        value[0, span.end :] -= 1.0
    torch.testing.assert_close(probe.span_scores(changed, [span]), before)
    for value in changed.values():
        value[0, span.start + 1] += 5.0
    assert not torch.allclose(probe.span_scores(changed, [span]), before), "the span itself must matter"


def test_scores_do_not_depend_on_the_batch(fitted, read):
    encoded, activations = read
    spans = [TokenSpan(row, *e.spans[0]) for row, e in enumerate(encoded)]
    together = fitted.probe.span_scores(activations, spans)
    for row, span in enumerate(spans):
        alone = {site: value[row : row + 1] for site, value in activations.items()}
        torch.testing.assert_close(fitted.probe.span_scores(alone, [span._replace(row=0)])[0], together[row])
    assert ((together >= 0) & (together <= 1)).all()


def test_one_reading_gives_the_same_as_two(fitted, read):
    encoded, activations = read
    spans = [TokenSpan(row, *e.spans[0]) for row, e in enumerate(encoded)]
    both = fitted.probe.span_and_token_scores(activations, spans)
    torch.testing.assert_close(both[0], fitted.probe.span_scores(activations, spans))
    torch.testing.assert_close(both[1], fitted.probe.token_scores(activations))


def test_a_token_is_read_from_itself_and_the_one_before(fitted, read):
    _, activations = read
    whole = fitted.probe.token_scores(activations)
    last_two = fitted.probe.token_scores({site: value[:, 5:7] for site, value in activations.items()})
    torch.testing.assert_close(last_two[:, 1], whole[:, 6])
    assert whole.shape == next(iter(activations.values())).shape[:2]


def test_scores_carry_a_gradient_to_the_activations_and_none_to_the_model(pocket, fitted, read):
    encoded, activations = read
    leaf = {site: value.clone().requires_grad_() for site, value in activations.items()}
    fitted.probe.span_scores(leaf, [TokenSpan(0, *encoded[0].spans[0])]).sum().backward()
    assert leaf["layers.5.resid_post"].grad.abs().sum() > 0
    assert all(p.grad is None for p in pocket.hf.parameters())


def test_save_and_load_give_the_same_scores(tmp_path, pocket, fitted, read):
    encoded, activations = read
    fitted.probe.save(tmp_path / "probe")
    again = load_span_probe(tmp_path / "probe", model=pocket)
    spans = [TokenSpan(row, *e.spans[0]) for row, e in enumerate(encoded)]
    torch.testing.assert_close(
        again.span_scores(activations, spans), fitted.probe.span_scores(activations, spans)
    )
    torch.testing.assert_close(again.token_scores(activations), fitted.probe.token_scores(activations))
    about = json.loads((tmp_path / "probe" / "probe.json").read_text("utf-8"))
    assert about["sites"] == [SITE, "embed", "layers.5.resid_post"] and about["data_sha256"]
    assert again.metrics == fitted.probe.metrics
    assert again.seen == fitted.probe.seen and len(again.seen) > 20
    del about["seen"]  # a probe of before entities were kept
    (tmp_path / "probe" / "probe.json").write_text(json.dumps(about), "utf-8")
    assert load_span_probe(tmp_path / "probe", model=pocket).seen == ()


def test_a_probe_of_another_model_is_an_error(tmp_path, pocket, fitted):
    fitted.probe.save(tmp_path / "probe")
    bias = next(pocket.hf.parameters())
    with torch.no_grad():
        old = bias.clone()
        bias.mul_(1.001)
    try:
        with pytest.raises(ModelError, match="fitted on another model"):
            load_span_probe(tmp_path / "probe", model=pocket)
        assert load_span_probe(tmp_path / "probe", model=pocket, any_model=True).name == "unsupported"
    finally:
        with torch.no_grad():
            bias.copy_(old)
    with pytest.raises(ConfigError, match="Next: pass the model"):
        load_span_probe(tmp_path / "probe", model=None)


def test_a_broken_probe_says_so(tmp_path, pocket, fitted):
    folder = fitted.probe.save(tmp_path / "probe")
    (folder / "probe.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="broken probe"):
        load_span_probe(folder, model=pocket)
    with pytest.raises(ConfigError, match="no such file"):
        load_span_probe(tmp_path / "elsewhere", model=pocket)


def test_same_seed_same_probe(pocket, found, examples, fitted):
    again = fit(pocket, found, examples, kind="attention")
    np.testing.assert_array_equal(again.logits, fitted.logits)
    assert part_of("Naltidil", SpanProbeConfig(seed=0)) == part_of("Naltidil", SpanProbeConfig(seed=0))


def test_the_evaluation_names_every_baseline(fitted, found, examples):
    record = evaluate(fitted, found, examples, num_resamples=30).record
    wanted = {"entropy", "max_softmax", "surprisal", "text_only", "span_text", "exposures", "shuffled"}
    assert set(record["baselines"]) == wanted
    assert record["baselines"]["text_only"]["auroc"] < 0.65, "names of unseen people must say nothing"
    for row in record["baselines"].values():
        value, low, high = row["gain"]
        assert low <= value <= high
    assert set(record["by"]) == {"greedy", "sampled"}
    json.dumps(record)


def test_confidence_baselines_are_the_models_own_numbers(pocket, found, examples, answers):
    """Entropy pooled by a baseline equals the entropy of the model's own logits before the span's tokens."""
    encoded = encode_answers([a for a in answers if a.claims][:1], pocket.tokenizer, max_length=256)[0]
    batch = collate([encoded.encoded], pad_id=pocket.pad_id)
    logprobs = pocket.forward(batch).float().log_softmax(-1)[0]
    start, end = encoded.spans[0]
    wanted = -(logprobs.exp() * logprobs).sum(-1)[start : end - 1]
    torch.testing.assert_close(found.spans.features[0][1:, -2], wanted.detach(), atol=1e-4, rtol=1e-4)
    told = -logprobs[torch.arange(start, end - 1), batch.input_ids[0, start + 1 : end]]
    torch.testing.assert_close(found.spans.features[0][1:, -3], told.detach(), atol=1e-4, rtol=1e-4)
    assert [b.name for b in confidence_baselines(found, [0, 1, 2], [3])] == [
        "surprisal",
        "entropy",
        "max_softmax",
    ]
    assert ledger_baseline(found, [e.model_copy(update={"meta": {}}) for e in examples], [0]) == []


def test_a_lora_probe_leaves_no_trace_and_survives_its_folder(tmp_path, pocket, examples):
    """Adapters change what is read inside `attached` only; they are kept only where they help on the calibration part."""
    from fairlead.probes import fit_span_probe
    from fairlead.probes.scoring import score_texts

    some = [e for e in examples if e.meta["way"] == "sampled"][::3]
    before = pocket.fingerprint
    fitted = fit_span_probe(pocket, some, sites=(SITE,), kind="lora", rank=2, lora_epochs=1)
    assert pocket.fingerprint == before and all(p.requires_grad for p in pocket.hf.parameters())
    assert bool(fitted.probe.adapters) == fitted.probe.details["adapted"]
    adapters = fitted.probe.adapters or make_adapters(pocket, rank=2, seed=1)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.copy_(0.02 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(0)))
    probe = replace(fitted.probe, adapters=adapters)
    probe.save(tmp_path / "lora")
    again = load_span_probe(tmp_path / "lora", model=pocket)
    texts = [score_texts(pocket, p, some[:4]) for p in (probe, again, replace(probe, adapters={}))]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2], "the adapters must be on while the text is read"
    own = Text(tuple(encode_prompt(some[0].messages, pocket.tokenizer)), some[0].response, claims_of(some[0]))
    rewarded, bare = (read_claims(pocket, p, [own])[0][0].score for p in (probe, replace(probe, adapters={})))
    assert rewarded == pytest.approx(texts[0][0].stretches[0][3], abs=1e-5), (
        "rewards read it as it was fitted"
    )
    assert rewarded != pytest.approx(bare, abs=1e-5)
    with pytest.raises(ConfigError, match="LoRA probe reads the model with its adapters on"):
        Guard(pocket, probe)


def claims_of(example):
    return tuple(
        ClaimSpan(start=s.start, end=s.end, text=example.response[s.start : s.end]) for s in example.stretches
    )


def test_a_token_that_is_read_alone_keeps_what_is_carried_over_to_it(pocket, answers):
    """Localise: with surprisal and the confidence before it, not with a mask in their place."""
    later = [  # claims that begin after some of the sentence
        a.model_copy(update={"claims": (a.claims[0].model_copy(update={"start": a.claims[0].end - 4}),)})
        for a in answers[:60]
        if a.claims and len(a.claims[0].text) > 8
    ]
    examples = examples_of(later, "localise")
    read = harvest(pocket, examples, make_reading(pocket, (SITE,), confidence=True))
    assert read.spans.num_carried == 0 and read.spans.num_confidence == 6
    head = fit_on(
        read,
        examples,
        model=pocket,
        name="claim",
        config=SpanProbeConfig.make(sites=(SITE,), adds="all"),
    ).probe.head
    token = read.spans.features[5][None]
    other = token.clone()
    other[..., -3] += 5.0
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert head.span_logits(token, mask) != head.span_logits(other, mask), "surprisal counts"
    names = [b.name for b in confidence_baselines(read, list(range(50)), [50])]
    assert names == ["surprisal", "entropy", "max_softmax"]
