"""Explain-away offsets `log p0(.|C, x, y<t) - log p0(.|x, y<t)` at the response tokens of all data rows, cached by content.

Tokens to which neither distribution gives `floor` get no offset (`tables.cut_tail`). Beside the offsets stand what gates
need: per row the summed rise of log p0(y), per token the KL divergence of the distribution under C from the one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fairlead.core.progress import track
from fairlead.data import Encoded
from fairlead.training import processes
from fairlead.training.evidence import Evidence
from fairlead.training.logits import iter_logprobs
from fairlead.training.setup import Setup
from fairlead.training.tables import TableBuilder, TokenTable, cached, cut_tail, is_dense, lump_offsets


class Offsets(NamedTuple):
    """Offsets of one source of evidence.

    Attributes:
        table: `[token, vocab]`.
        rises: Summed rise of log p0(y) per row, `[row]`.
        nats: KL(pC || p0) per token, `[token]`, in the order of the table.
    """

    table: TokenTable
    rises: Tensor
    nats: Tensor


def make_offsets(setup: Setup, evidence: Evidence, *, top_k: int, floor: float) -> Offsets:
    """Offsets at the response tokens of all data rows."""
    plain, with_c = evidence.encode(setup, range(len(setup.rows)))
    counts = [item.num_loss_tokens for item in plain]
    vocab = setup.num_logits  # type: ignore[union-attr]
    dense = is_dense(vocab, sum(counts))
    k = min(top_k, vocab // 2)

    def make() -> TokenTable:
        builder = TableBuilder(counts, vocab, top_k=None if dense else 2 * k + 1)
        rises, nats = torch.zeros(len(plain)), torch.zeros(sum(counts))
        rest_mass, worst, tail_mass = 0.0, 0.0, 0.0
        # both encodings are sorted by their own length: pair the rows by going through the plain order
        order = sorted(range(len(plain)), key=lambda place: len(plain[place]))
        blocks = [order[start : start + 64] for start in range(0, len(order), 64)]
        for block in track(processes.share_of(blocks), "offsets", unit="batch"):
            before = _by_place(setup, None, plain, block)
            after = _by_place(setup, evidence, with_c, block)
            for place in block:
                without, targets = before[place]
                given, _ = after[place]
                rises[place] = float((given - without).gather(1, targets[:, None]).sum())
                nats[builder.tokens(place)] = (given.exp() * (given - without)).sum(-1).cpu()
                given, mass = cut_tail(given, without, floor=floor)
                tail_mass += float(mass.sum())
                if dense:
                    builder.put(place, given - without)
                else:
                    ids, offsets, rest, mass = lump_offsets(given, without, targets, top_k=k)
                    rest_mass, worst = rest_mass + float(mass.sum()), max(worst, float(mass.max()))
                    builder.put(place, offsets, ids, rest)
        num = max(sum(counts), 1)
        rest_mass, tail_mass = processes.add_up(torch.tensor([rest_mass, tail_mass])).tolist()
        table = builder.done(
            {
                "error_bound_mean": rest_mass / num,
                "error_bound_max": max(processes.gather(worst)),
                "left_alone_mean": tail_mass / num,
            }
        )
        table.extra, table.per_token = processes.add_up(rises), processes.add_up(nats)
        return table

    identity = [
        "offsets",
        2,
        setup.fingerprint,
        evidence.identity(),
        None if dense else k,
        floor,
        [[item.input_ids, item.loss_mask] for item in plain],
    ]
    table = cached(setup.cache, identity, make)
    assert table.extra is not None and table.per_token is not None
    return Offsets(table, table.extra, table.per_token)


def _by_place(
    setup: Setup, evidence: Evidence | None, encoded: Sequence[Encoded], block: list[int]
) -> dict[int, tuple[Tensor, Tensor]]:
    source = evidence or Evidence("none", "none")
    found = {}
    with source.active(setup) as module:
        picked = [encoded[place] for place in block]
        for places, logprobs, tokens in iter_logprobs(
            module, picked, pad_id=setup.pad_id, device=setup.model.device
        ):
            for place, values, targets in zip(places, logprobs, tokens, strict=True):
                found[block[place]] = (values, targets)
    return found
