"""Offsets and references over the vocabulary: exact where dense, bounded where lumped, content-addressed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fairlead.training.controls.anchor import kl_from_table
from fairlead.training.tables import TableBuilder, TokenTable, cached, cut_tail, lump_offsets, lump_reference

V = 40


def distributions(seed: int, tokens: int = 7, spread: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(tokens, V, generator=generator) * spread).log_softmax(-1) for _ in range(2)]


def dense_of(ids, values, rest):
    return rest[:, None].expand(-1, V).clone().scatter_(1, ids.long(), values)


@given(st.integers(0, 10_000), st.integers(1, 15))
def test_the_reported_bound_holds(seed, top_k):
    given_c, without = distributions(seed)
    targets = torch.randint(V, (7,), generator=torch.Generator().manual_seed(seed))
    ids, values, rest, mass = lump_offsets(given_c, without, targets, top_k=top_k)
    product = (without + dense_of(ids, values, rest)).log_softmax(-1).exp()
    distance = 0.5 * (product - given_c.exp()).abs().sum(-1)
    assert (distance <= mass + 1e-5).all(), (distance, mass)
    exact = (given_c - without).gather(1, targets[:, None])
    lumped = dense_of(ids, values, rest).gather(1, targets[:, None])
    assert torch.allclose(exact, lumped, atol=1e-5), "the target's own offset must be exact"


def test_the_tail_of_both_distributions_gets_no_offset():
    given_c, without = distributions(3)
    cut, mass = cut_tail(given_c, without, floor=0.05)
    offset, tail = cut - without, (given_c.exp() < 0.05) & (without.exp() < 0.05)
    assert tail.any() and not tail.all()
    assert float(offset[tail].abs().max()) == 0.0
    assert torch.equal(offset[~tail], (given_c - without)[~tail])
    assert torch.allclose(mass, (given_c.exp() * tail).sum(-1), atol=1e-6)
    untouched, none = cut_tail(given_c, without, floor=0.0)
    assert torch.equal(untouched, given_c) and float(none.sum()) == 0.0
    *_, rest, _ = lump_offsets(cut, without, torch.zeros(7, dtype=torch.long), top_k=20)
    assert float(rest.abs().max()) < 1e-5, (
        "beyond the top 20 of 40 nothing has 5 %: the lump is left alone as well"
    )


def test_keeping_everything_is_exact():
    given_c, without = distributions(1)
    ids, values, rest, mass = lump_offsets(given_c, without, torch.zeros(7, dtype=torch.long), top_k=V)
    assert torch.allclose(dense_of(ids, values, rest), given_c - without, atol=1e-6)
    assert float(mass.max()) == 0.0


@given(st.integers(0, 10_000))
def test_the_lumped_kl_is_a_lower_bound(seed):
    reference, student = distributions(seed)
    exact = float((reference.exp() * (reference - student)).sum(-1).mean())
    for top_k in (2, 10, V - 1):
        ids, values, rest = lump_reference(reference, top_k=top_k)
        builder = TableBuilder([7], V, top_k=top_k)
        builder.put(0, values, ids, rest)
        lumped = float(kl_from_table(builder.done({}), [0], student))
        assert lumped <= exact * 1.01 + 0.02, (top_k, lumped, exact)
    assert abs(lumped - exact) < 0.02 * exact + 0.02, "all but one token kept: nearly exact"


def test_rows_come_back_in_the_order_asked_for():
    builder = TableBuilder([2, 0, 3], V, top_k=None)
    first, last = torch.full((2, V), 1.0), torch.full((3, V), 2.0)
    builder.put(2, last)
    builder.put(0, first)
    table = builder.done({})
    assert torch.equal(table.dense([2, 1, 0]), torch.cat([last, first]))


def test_a_table_is_made_once_and_read_back(tmp_path):
    calls = []

    def make() -> TokenTable:
        calls.append(1)
        builder = TableBuilder([2], V, top_k=3)
        values = torch.tensor([[1.0, 2.0, 3.0]] * 2)
        builder.put(0, values, torch.tensor([[0, 1, 2]] * 2).int(), torch.tensor([-1.0, -2.0]))
        table = builder.done({"error_bound_max": 0.25})
        table.extra = torch.tensor([4.0])
        return table

    first = cached(tmp_path, ["a", 1], make)
    second = cached(tmp_path, ["a", 1], make)
    cached(tmp_path, ["a", 2], make)
    assert len(calls) == 2
    assert torch.equal(first.dense([0]), second.dense([0])) and second.info == {"error_bound_max": 0.25}
    assert second.extra is not None and second.extra.tolist() == [4.0]
    assert second.dense([0])[1, 10] == -2.0
