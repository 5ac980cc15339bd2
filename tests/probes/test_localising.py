"""A probe that tells where claims stand finds them in answers it has not seen, and what is no claim it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fairlead.core.errors import ConfigError
from fairlead.probes import examples_of, fit_span_probe
from fairlead.probes.claims import ProbeSplitter
from fairlead.probes.parts import part_of
from fairlead.studies.claims import pocket_claims
from fairlead.studies.rewards import as_splitter
from fairlead.training.rewards import Question


@pytest.fixture(scope="module")
def checked(pocket):
    """Answers that make a claim, say that they check it, and take it back or not."""
    return [a for a in pocket_claims(pocket, ways=("check",), share=0.4, seed=2) if a.claims]


@pytest.fixture(scope="module")
def probe(pocket, checked):
    examples = examples_of(checked, "localise")
    return fit_span_probe(pocket, examples, name="claim", adds="all", sites=("layers.3.resid_post",)).probe


def test_claims_are_found_where_they_stand_and_remarks_are_none(pocket, checked, probe, tmp_path):
    test = [a for a in checked if part_of(a.entity, probe.config) == "test"][:30]
    probe.save(tmp_path / "probe")
    split = as_splitter(tmp_path / "probe", pocket)
    hits = 0
    for answer in test:
        found = split(Question(answer.id, answer.messages), answer.response)
        assert all(answer.response[c.start : c.end] == c.text and c.value for c in found)
        assert [c.start for c in found] == sorted(c.start for c in found)
        assert not any("let me check" in c.text.lower() and len(c.text) < 25 for c in found)
        roles = zip(answer.claims, answer.meta["roles"], strict=True)
        wanted = next(c for c, role in roles if role == "claim")
        hits += any(
            min(c.end, wanted.end) - max(c.start, wanted.start) > 0.7 * (wanted.end - wanted.start)
            for c in found
        )
    assert hits >= 0.8 * len(test), f"{hits} of {len(test)} first claims are found"
    assert split(Question("x", ()), "  ") == []


def test_runs_of_tokens_become_stretches_without_white_space(pocket, probe):
    splitter = ProbeSplitter(pocket, probe, threshold=0.5)
    tokens, scores = ("Oh.", " A", " cat", ".", " Hm", " it"), (0.1, 0.9, 0.8, 0.2, 0.9, 0.9)
    assert list(splitter._stretches(tokens, scores)) == [(4, 9), (11, 16)]


def test_a_probe_of_something_else_is_refused(pocket, probe):
    with pytest.raises(ConfigError, match="not where claims stand"):
        ProbeSplitter(pocket, replace(probe, name="unsupported"))
