"""The guard against its oracles: plain generation, one pass over the whole text, and generation from the text with what was put in."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from fairlead.core.claims import TokenSpan
from fairlead.core.errors import ConfigError, ModelError
from fairlead.guard import KINDS, Guard, Policy, Request
from fairlead.guard.stream import Lexicon
from fairlead.models import call_hook
from fairlead.models.generation import generate_ids, prompt_ids, stop_ids
from fairlead.probes import Probe, SpanProbe, SpanProbeConfig
from fairlead.probes.calibrating import Calibration
from fairlead.probes.kinds.linear import PooledHead
from fairlead.probes.reading import NUM_CARRIED, make_reading
from fairlead.probes.token_head import TokenHead


def tokens_of(guard, request, **_):
    """Token ids of one answer, beside the answer."""
    with guard.batch() as batch:
        waiting = guard.streams(request)
        (stream,) = waiting
        batch.admit(waiting, 1)
        while batch.streams:
            batch.step()
    return list(stream.row.answer), stream.result()


def tokens_of_claim(answer, claim, start=0):
    """The tokens of a claim, in row 0, where the answer begins at `start`."""
    edges = [0, *itertools.accumulate(map(len, answer.tokens))]
    first = max(i for i, edge in enumerate(edges) if edge <= claim.start)
    end = min(i for i, edge in enumerate(edges) if edge >= claim.end)
    return TokenSpan(0, start + first, start + end)


def test_an_observed_answer_is_the_plain_one(guard, pocket, questions):
    for settings in ({}, {"temperature": 1.0, "seed": 5}):
        plain = pocket.generate(questions, **settings)
        assert [a.text for a in guard.answer(questions, **settings)] == plain
        assert [a.text for a in guard.answer(questions, batch_size=3, **settings)] == plain
        assert ["".join(a.tokens) for a in guard.answer(questions, **settings)] == plain


def test_scores_are_those_of_one_pass_over_the_whole_text(guard, pocket, readout, questions):
    site = str(readout.sites[0])
    for question in questions[:8]:
        request = guard.request(question, policy=Policy(kind="correct"))
        ids, answer = tokens_of(guard, request)
        whole = torch.tensor([[*request.ids, *ids]])
        batch = SimpleNamespace(input_ids=whole, attention_mask=torch.ones_like(whole))
        acts = {site: pocket.capture(batch, [site])[site][:, len(request.ids) :]}
        expected = readout.token_scores(acts)[0].tolist()
        for given, score, want in zip(answer.given, answer.scores, expected, strict=True):
            assert (score is None) == given
            assert given or abs(score - want) < 1e-4
        for claim in answer.claims:
            assert answer.text[claim.start : claim.end] == claim.text
            want = float(readout.span_scores(acts, [tokens_of_claim(answer, claim)]))
            assert abs(claim.score - want) < 1e-4


@pytest.mark.parametrize(
    "policy", [Policy(kind="correct", max_interventions=3), Policy(kind="retract", then="go_on")]
)
def test_the_model_goes_on_as_if_the_text_had_stood_in_its_context(guard, pocket, questions, policy):
    """Oracle: generation from scratch with the answer so far and what was put in as part of the prompt."""
    num_acts, stops = 0, stop_ids(pocket)
    for question in questions:
        request = guard.request(question, policy=policy, max_new_tokens=64)
        ids, answer = tokens_of(guard, request)
        for act in answer.interventions:
            if act.kind == "flag":
                continue
            num_acts += 1
            assert answer.text[act.at :].startswith(act.text) and act.text.strip() == policy.injection
            place = max(i for i, given in enumerate(answer.given) if given and i >= act.token)
            after = next((i for i in range(act.token, len(ids)) if not answer.given[i]), len(ids))
            later = [a.token for a in answer.interventions if a.kind != "flag" and a.token > act.token]
            until = min(later, default=len(ids))
            found = generate_ids(
                pocket, [[*request.ids, *ids[:after]]], max_new_tokens=64 - after, stops=stops
            )[0]
            assert ids[after:until] == found[: until - after] and place >= after - 1
            if not later:
                assert ids[after:] == found, "and it ends where it would have ended"
    assert num_acts >= 5


def test_a_batch_of_different_policies_answers_like_single_ones(guard, questions):
    policies = [
        Policy(kind=KINDS[place % len(KINDS)], n=3, threshold=0.0 if place < len(KINDS) else None)
        for place in range(len(questions))
    ]
    together = guard.answer(questions, policy=policies, seed=0)
    assert {act.kind for answer in together for act in answer.interventions} == {
        "flag",
        "retract",
        "correct",
        "abort",
    }
    for size in (1, 4):
        again = guard.answer(questions, policy=policies, seed=0, batch_size=size)
        for one, two in zip(together, again, strict=True):
            assert (one.text, one.given, one.finish) == (two.text, two.given, two.finish)
            assert [act.kind for act in one.interventions] == [act.kind for act in two.interventions]


def test_no_pass_is_added(guard, pocket, questions):
    """One pass per prompt batch and one per token that is read; the text that is put in costs its own tokens only."""
    calls = []
    with call_hook(pocket, lambda ids, mask: calls.append(ids.shape)):
        ids, answer = tokens_of(
            guard, guard.request(questions[0], policy=Policy(kind="correct", threshold=0.0))
        )
    assert answer.interventions[0].kind == "correct" and sum(answer.given) > 3
    assert len(calls) == 1 + len(ids) and all(shape[1] == 1 for shape in calls[1:])


def test_policies_do_what_they_say(guard, questions):
    ask = questions[:6]
    plain = guard.answer(ask)
    by_kind = {
        kind: guard.answer(ask, policy=Policy(kind=kind, threshold=0.0))
        for kind in KINDS
        if kind != "best_of_n"
    }
    for place, answer in enumerate(plain):
        assert by_kind["flag"][place].text == answer.text and len(
            by_kind["flag"][place].interventions
        ) == len(answer.claims)
        first = answer.claims[0]
        assert by_kind["abort"][place].text == answer.text[: first.end]
        assert by_kind["abort"][place].finish == "abort"
        assert by_kind["retract"][place].text == answer.text[: first.end] + " I do not know."
        assert by_kind["retract"][place].finish == "retract"
        assert by_kind["correct"][place].text.startswith(answer.text[: first.end] + " Wait, let me check.")
        assert not by_kind["observe"][place].interventions
    own = guard.answer(ask[:1], policy=Policy(kind="retract", threshold=0.0, text="That is a guess."))[0]
    assert own.text == plain[0].text[: plain[0].claims[0].end] + " That is a guess."
    never = guard.answer(ask, policy=Policy(kind="correct", threshold=1.0))
    assert [answer.text for answer in never] == [answer.text for answer in plain]


def test_interventions_have_a_limit_and_need_room(guard, questions):
    many = guard.answer(
        questions[:4], policy=Policy(kind="correct", threshold=0.0, max_interventions=2), max_new_tokens=96
    )
    for answer in many:
        acts = [act for act in answer.interventions if act.kind == "correct"]
        assert len(acts) <= 2
        assert all(act.note for act in answer.interventions if act.kind == "flag")
    none = guard.answer(questions[:4], policy=Policy(kind="correct", threshold=0.0, max_interventions=0))
    assert all(act.kind == "flag" and "limit" in act.note for answer in none for act in answer.interventions)
    plain = guard.answer(questions[:1])[0]
    tight = guard.answer(
        questions[:1], policy=Policy(kind="correct", threshold=0.0), max_new_tokens=len(plain.tokens) + 2
    )[0]
    assert tight.text == plain.text and "no room" in tight.interventions[0].note
    cut = guard.answer(questions[:1], max_new_tokens=3)[0]
    assert cut.finish == "length" and cut.scores[-1] is None and len(cut.tokens) == 3
    assert cut.claims[0].text == "".join(cut.tokens[:2]), "the last token was never read"


def test_best_of_n_keeps_the_draw_that_scores_lowest(guard, questions):
    found = guard.answer(questions[:5], policy=Policy(kind="best_of_n", n=6), temperature=1.0)
    for answer in found:
        assert len(answer.rivals) == 6 and answer.worst == min(answer.rivals)
    assert any(len(set(answer.rivals)) > 1 for answer in found)


def test_stop_texts_end_an_answer_wherever_they_fall(guard, questions):
    plain = guard.answer(questions)
    for question, whole in zip(questions, plain, strict=True):
        for stop in (whole.text[4:7], whole.text[-1], " "):
            request = guard.request(question, stop=(stop, "never said"))
            _, answer = tokens_of(guard, request)
            assert answer.text == whole.text[: whole.text.index(stop)] and answer.finish == "stop"
            assert "".join(answer.tokens) == answer.text
            assert all(claim.end <= len(answer.text) for claim in answer.claims)


def test_rows_that_leave_do_not_disturb_the_others(guard, questions):
    expected = guard.answer(questions)
    with guard.batch(live=True) as batch:
        waiting = [s for place, q in enumerate(questions) for s in guard.streams(guard.request(q), key=place)]
        done = []
        while waiting or batch.streams:
            batch.admit(waiting, 4)
            done += batch.step()
            if batch.num_passes == 3:
                gone = batch.drop(lambda stream: stream.key % 2 == 1)
                assert gone
    for stream in done:
        answer, want = stream.result(), expected[stream.key]
        assert answer.text == want.text
        for one, two in zip(answer.scores, want.scores, strict=True):
            assert abs(one - two) < 1e-4, "scores token by token are those of the span"
    assert len(done) + len(gone) == len(questions)


def test_two_threads_share_a_model(guard, questions):
    expected = guard.answer(questions, policy=Policy(kind="correct"))
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(
                lambda size: guard.answer(questions, policy=Policy(kind="correct"), batch_size=size),
                (3, 5, 64),
            )
        )
    for answers in found:
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        for one, two in zip(answers, expected, strict=True):
            assert [claim.score for claim in one.claims] == pytest.approx(
                [claim.score for claim in two.claims], abs=1e-4
            )


def test_refusals(guard, pocket, readout, questions):
    with pytest.raises(ConfigError, match="2 policies for 1 prompts"):
        guard.answer(questions[:1], policy=[Policy(), Policy()])
    with pytest.raises(ConfigError, match="top_p"):
        guard.request("a", top_p=0.0)
    with pytest.raises(ModelError, match="shorten"):
        guard.request("word " * 500)
    other = Probe(readout.readout.direction, 0.0, "logistic", model_fingerprint="0" * 64)
    with pytest.raises(ModelError, match="another model"):
        Guard(pocket, other)
    asked = Guard(pocket, other, any_model=True).answer(questions[:2])
    assert [one.text for one in asked] == [one.text for one in Guard(pocket, readout).answer(questions[:2])]
    with pytest.raises(ConfigError, match="reads no activations"):
        Guard(pocket, object())
    with pytest.raises(ConfigError, match="kind"):
        Policy.make({"kind": "punish"})


def test_what_is_put_in_has_the_tokens_of_running_text(pocket, guard):
    lexicon: Lexicon = guard.lexicon
    whole = pocket.tokenizer("It is so. Wait, let me check.", add_special_tokens=False)["input_ids"]
    head = pocket.tokenizer("It is so.", add_special_tokens=False)["input_ids"]
    assert head + lexicon.continuation(" Wait, let me check.") == whole


def test_a_request_that_is_plain_text_keeps_its_space(guard, pocket, questions):
    ids = prompt_ids(pocket, "The town of", chat=False)
    request = Request(ids, plain=True, max_new_tokens=6)
    _, answer = tokens_of(guard, request)
    assert answer.text == pocket.generate(["The town of"], chat=False, max_new_tokens=6)[
        0
    ] or answer.text.startswith(" ")


class Carrying:
    """A readout whose token scores see the token before as well."""

    def __init__(self, site, width):
        generator = torch.Generator().manual_seed(4)
        self.site, self.own, self.before = site, *(torch.randn(2, width, generator=generator) / 8)

    @property
    def sites(self):
        return (self.site,)

    def token_scores(self, activations):
        hidden = activations[str(self.site)]
        return torch.sigmoid(
            hidden @ self.own + torch.nn.functional.pad(hidden @ self.before, (1, 0))[:, :-1]
        )

    def span_scores(self, activations, spans):
        hidden = activations[str(self.site)] @ self.own
        return torch.sigmoid(torch.stack([hidden[s.row, s.start : s.end].mean() for s in spans]))


@pytest.mark.parametrize("live", [False, True])
def test_what_a_readout_carries_over_from_the_token_before_is_there(pocket, readout, questions, live):
    probe = Carrying(readout.sites[0], pocket.d_model)
    made, site = Guard(pocket, probe), str(readout.sites[0])
    requests = [made.request(question) for question in questions]
    with made.batch(live=live) as batch:
        waiting = [stream for place, r in enumerate(requests) for stream in made.streams(r, key=place)]
        done = []
        while waiting or batch.streams:
            batch.admit(waiting, 4)
            done += batch.step()
    for stream in done:
        start = len(requests[stream.key].ids)
        whole = torch.tensor([[*requests[stream.key].ids, *stream.row.answer]])
        acts = pocket.capture(SimpleNamespace(input_ids=whole, attention_mask=torch.ones_like(whole)), [site])
        expected = probe.token_scores(acts)[0, start:].tolist()
        assert stream.result().scores == pytest.approx(expected, abs=1e-4)


def test_confidence_from_the_logits_of_the_pass_is_that_of_a_second_unembedding(pocket, questions, readout):
    """A probe that reads the model's confidence, also behind text that was put in, against the lens on the whole text."""
    reading = make_reading(pocket, readout.sites, confidence=True)
    shape = {
        "num_features": pocket.d_model + reading.num_confidence,
        "num_confidence": reading.num_confidence,
        "num_carried": NUM_CARRIED,
    }
    head, token_head = PooledHead(**shape), TokenHead(**shape)
    torch.manual_seed(0)
    for parameter in (*head.parameters(), *token_head.parameters()):
        torch.nn.init.normal_(parameter.data, std=0.1)
    probe = SpanProbe(
        reading, head.eval().requires_grad_(False), token_head.eval().requires_grad_(False), Calibration(), Calibration(),
        SpanProbeConfig(), "unsupported", "", "",
    )  # fmt: skip
    seen = [c.score for answer in Guard(pocket, probe).answer(questions[:6]) for c in answer.claims]
    made = Guard(pocket, probe, threshold=sorted(seen)[len(seen) // 2])
    flagged = 0
    for question in questions[:6]:
        request = made.request(question, policy=Policy(kind="correct"))
        ids, answer = tokens_of(made, request)
        flagged += len(answer.interventions)
        whole = torch.tensor([[*request.ids, *ids]])
        batch = SimpleNamespace(input_ids=whole, attention_mask=torch.ones_like(whole))
        acts = pocket.capture(batch, probe.sites)
        start = len(request.ids)
        expected = probe.token_scores(acts)[0, start:].tolist()
        for given, score, want in zip(answer.given, answer.scores, expected, strict=True):
            assert given or score == pytest.approx(want, abs=1e-4)
        for claim in answer.claims:
            span = tokens_of_claim(answer, claim, start)
            assert float(probe.span_scores(acts, [span])) == pytest.approx(claim.score, abs=1e-4)
    assert flagged, "nothing was put in: the test says less than it should"
