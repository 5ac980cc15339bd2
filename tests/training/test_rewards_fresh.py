"""The fresh probe of the monitors: it tells what carries over to other entities, and never an entity that it knows again."""

from __future__ import annotations

import random

import pytest
from reward_world import DoubtOf, label, questions, run, split

from fairlead.core.claims import ClaimSpan
from fairlead.data.template import encode_prompt
from fairlead.probes import Example, Stretch, fit_span_probe
from fairlead.training.rewards import FreshScore, Text, fresh_probe
from fairlead.training.rewards.fresh import entity_of

WORDS = [f"{kind}{k}" for kind in "ab" for k in range(8)]


def texts(model, answers):
    prompt = tuple(encode_prompt(questions()[0].messages, model.tokenizer))
    return [Text(prompt, a, (ClaimSpan(start=0, end=len(a), text=a, value=a),)) for a in answers]


@pytest.fixture
def asked(micro):
    """Sixteen entities, six claims of each, with a label drawn for each entity."""
    rng = random.Random(3)
    wrong = dict.fromkeys(WORDS, False) | dict.fromkeys(rng.sample(WORDS, 8), True)
    words = WORDS * 6
    return texts(micro.model, words), [wrong[word] for word in words], words


def test_labels_of_entities_leak_by_claims_and_not_by_entities(micro, asked):
    own, truth, words = asked
    fresh = fresh_probe(DoubtOf(micro.model, "b1"), draws=8)
    by_claims = fresh(micro.model, own, truth, [str(k) for k in range(len(own))])
    assert (by_claims.auroc or 0) > 0.78, "the same words with the same labels stand on both sides"
    by_entity = fresh(micro.model, own, truth, words)
    assert by_entity.auroc is not None and by_entity.auroc < 0.75, (
        "a label drawn for an entity says nothing of others"
    )
    assert by_entity.placebo is not None and 0.25 < by_entity.placebo < 0.75


def test_what_carries_over_is_found_and_its_placebo_is_chance(micro):
    answers = [f"{said} {word}" for word in WORDS for said in ("arr", "matey")]
    truth = [answer.startswith("arr") for answer in answers]
    fresh = fresh_probe(DoubtOf(micro.model, "b1"), draws=8)
    found = fresh(micro.model, texts(micro.model, answers), truth, [a.split()[1] for a in answers])
    assert (found.auroc or 0) > 0.95
    few = fresh(micro.model, texts(micro.model, answers[:6]), truth[:6], [a.split()[1] for a in answers[:6]])
    assert few == FreshScore(), "three claims of a label are too few"


def test_a_probe_is_fitted_anew_in_its_own_kind_with_confidence(micro, asked, monkeypatch):
    examples = [
        Example(
            id=str(k), response=word, entity=word, stretches=(Stretch(start=0, end=len(word), label=label),)
        )
        for k, (word, label) in enumerate(zip(asked[2], asked[1], strict=True))
    ]
    probe = fit_span_probe(
        micro.model, examples, kind="attention", sites=("layers.1.resid_post",), epochs=1, calibration="none"
    ).probe
    from fairlead.training.rewards import fresh as module

    seen = []
    measure = module._held_out_auroc
    monkeypatch.setattr(
        module, "_held_out_auroc", lambda s, held, c: seen.append((s, held, c)) or measure(s, held, c)
    )
    found = fresh_probe(probe, draws=2)(micro.model, *asked)
    assert found.auroc is not None and found.placebo is not None
    for spans, held, config in seen:
        assert config.kind == "attention" and spans.num_confidence == 6
        sides = [
            {g for g, h in zip(spans.groups, held, strict=True) if bool(h) is wanted}
            for wanted in (True, False)
        ]
        assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_monitors_pass_the_entities_and_write_both_numbers(micro, tmp_path):
    seen = []

    def fresh(model, own, truth, entities):
        seen.append((len(own), entities))
        return FreshScore(0.75, 0.5)

    asked = [q._replace(entity=f"person {k % 3}") for k, q in enumerate(questions())]
    asked[0] = asked[0]._replace(entity="")
    from fairlead.training.rewards import Monitor

    monitor = Monitor(
        micro.model,
        DoubtOf(micro.model, "b1"),
        asked * 4,
        splitter=split,
        verifier=label,
        fresh=fresh,
        max_new_tokens=5,
    )
    look = monitor.look(micro.copy(), 0)
    assert (look.fresh_auroc, look.fresh_placebo) == (0.75, 0.5)
    assert seen[0][1] == [entity_of(question) for question in asked * 4]
    assert entity_of(asked[0]) == "['s0']" and entity_of(asked[1]) == "person 1"
    default = run(micro.model, DoubtOf(micro.model, "b1"), tmp_path, steps=1, intervention_share=0.0)
    assert default.looks[0].fresh_placebo is None or 0 <= default.looks[0].fresh_placebo <= 1
