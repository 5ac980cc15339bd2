"""One row of numbers over the vocabulary per predicted token, cached on disk: explain-away offsets and anchor references.

Dense float16 for small vocabularies; for large ones only the tokens that carry the probability mass are kept and the rest is lumped:

- offsets `log pC - log p0`: the union of the top k of both distributions and the token itself are exact; all others get
  `log (rest mass under C / rest mass under p0)`. Put in place of the exact offsets, the product `p0 * exp(offset)` still
  sums to one, and its total variation distance from pC is at most the rest mass under C, which is reported.
- references `log p0`: the top k; the rest is one lump, so that the KL divergence computed from it is a lower bound (data
  processing) and short of the true one only by what happens within the lump.

Tables are content-addressed: the file's name is the hash of everything that decides its content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fairlead.core.progress import say
from fairlead.core.run import atomic_path, sha256_json
from fairlead.training import processes

DENSE_VOCAB = 8192
DENSE_BYTES = 2 << 30
_FLOOR = 1e-8  # smallest lumped mass, so that its logarithm is finite
_CLAMP = 60.0  # offsets beyond this many nats are cut (float16 would hold them, but no student can use them)


class TokenTable:
    """Values over the vocabulary for the predicted tokens of encoded rows.

    Args:
        starts: `[row + 1]`, first token of each row in the table.
        values: `[token, vocab]`, or `[token, k]` with `ids`.
        ids: `[token, k]` vocabulary ids of `values`; None for a dense table.
        rest: `[token]` value of every id that is not kept; None for a dense table.
        info: How good it is (JSON numbers).
        extra: `[row]` one more number per row (explain-away: the summed rise of log p0(y)).
        per_token: `[token]` one more number per token (explain-away: KL(pC || p0) in nats).
    """

    def __init__(
        self,
        starts: Tensor,
        values: Tensor,
        *,
        vocab: int,
        ids: Tensor | None = None,
        rest: Tensor | None = None,
        info: dict[str, float] | None = None,
        extra: Tensor | None = None,
        per_token: Tensor | None = None,
    ) -> None:
        self.starts, self.values, self.ids, self.rest = starts, values, ids, rest
        self.extra, self.per_token = extra, per_token
        self.vocab, self.info = vocab, dict(info or {})
        self._bounds = starts.tolist()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def tokens(self, rows: Sequence[int]) -> Tensor:
        """Places in the table of the tokens of `rows`, in order."""
        bounds = self._bounds
        return (
            torch.cat([torch.arange(bounds[row], bounds[row + 1]) for row in rows])
            if rows
            else torch.arange(0)
        )

    def dense(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Float[Tensor, "token vocab"]:
        """Values of the tokens of `rows` over the whole vocabulary, float32."""
        where = self.tokens(rows)
        values = self.values[where].to(device).float()
        if self.ids is None:
            return values
        assert self.rest is not None
        full = self.rest[where].to(device).float()[:, None].expand(-1, self.vocab).clone()
        return full.scatter_(1, self.ids[where].to(device).long(), values)

    def sparse(
        self, rows: Sequence[int], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Kept ids `[token, k]`, values `[token, k]` and rest `[token]` of the tokens of `rows` (sparse tables only)."""
        assert self.ids is not None and self.rest is not None
        where = self.tokens(rows)
        return (
            self.ids[where].to(device).long(),
            self.values[where].to(device).float(),
            self.rest[where].to(device).float(),
        )

    def save(self, path: Path) -> None:
        """Write atomically (safetensors)."""
        tensors = {"starts": self.starts, "values": self.values.contiguous()}
        if self.ids is not None and self.rest is not None:
            tensors |= {"ids": self.ids.contiguous(), "rest": self.rest.contiguous()}
        if self.extra is not None:
            tensors["extra"] = self.extra
        if self.per_token is not None:
            tensors["per_token"] = self.per_token
        about = {"format": "fairlead.token_table", "version": "1", "vocab": str(self.vocab)}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={**about, "info": json.dumps(self.info)})

    @classmethod
    def load(cls, path: Path) -> TokenTable:
        """Read what `save` wrote."""
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            about = file.metadata()
        return cls(
            tensors["starts"],
            tensors["values"],
            vocab=int(about["vocab"]),
            ids=tensors.get("ids"),
            rest=tensors.get("rest"),
            info=json.loads(about["info"]),
            extra=tensors.get("extra"),
            per_token=tensors.get("per_token"),
        )


def is_dense(vocab: int, num_tokens: int) -> bool:
    """Whether a table of this size is kept whole."""
    return vocab <= DENSE_VOCAB and vocab * num_tokens * 2 <= DENSE_BYTES


def cut_tail(
    with_c: Float[Tensor, "token vocab"], without: Float[Tensor, "token vocab"], *, floor: float
) -> tuple[Tensor, Tensor]:
    """`with_c` set equal to `without` (an offset of zero) at tokens to which neither gives `floor`, and their mass under C `[token]`."""
    tail = torch.maximum(with_c, without).exp() < floor
    return torch.where(tail, without, with_c), with_c.exp().masked_fill(~tail, 0).sum(-1)


def lump_offsets(
    with_c: Float[Tensor, "token vocab"],
    without: Float[Tensor, "token vocab"],
    targets: Tensor,
    *,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Offsets of the tokens that carry the mass, and one for the rest.

    Returns:
        ids `[token, 2 top_k + 1]` int32 (an id may stand twice), offsets of the same shape, offset of the rest `[token]`, and mass of the
        rest under C `[token]`.
    """
    ids = torch.cat(
        [with_c.topk(top_k, -1).indices, without.topk(top_k, -1).indices, targets[:, None]], dim=1
    )
    kept = torch.zeros_like(with_c, dtype=torch.bool).scatter_(1, ids, True)
    rest_c = with_c.exp().masked_fill(kept, 0).sum(-1)
    rest_0 = without.exp().masked_fill(kept, 0).sum(-1)
    offsets = (with_c - without).gather(1, ids)
    return ids.int(), offsets, rest_c.clamp_min(_FLOOR).log() - rest_0.clamp_min(_FLOOR).log(), rest_c


def lump_reference(logprobs: Float[Tensor, "token vocab"], *, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and log-probabilities of the top k, and the log of the remaining mass `[token]`."""
    top = logprobs.topk(top_k, -1)
    rest = (1 - top.values.exp().sum(-1)).clamp_min(_FLOOR).log()
    return top.indices.int(), top.values, rest


class TableBuilder:
    """Collects rows in any order and makes the table; of several processes each one brings its share of the rows."""

    def __init__(self, counts: Sequence[int], vocab: int, *, top_k: int | None) -> None:
        self.vocab, self.top_k = vocab, top_k
        self.starts = torch.tensor([0, *counts]).cumsum(0)
        total = int(self.starts[-1])
        width = vocab if top_k is None else top_k
        self.values = torch.zeros(total, width, dtype=torch.float16)
        self.ids = None if top_k is None else torch.zeros(total, width, dtype=torch.int32)
        self.rest = None if top_k is None else torch.zeros(total, dtype=torch.float16)

    def tokens(self, row: int) -> slice:
        """Places of a row's tokens in the table."""
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def put(self, row: int, values: Tensor, ids: Tensor | None = None, rest: Tensor | None = None) -> None:
        """Store one row's tokens."""
        where = self.tokens(row)
        self.values[where] = values.clamp(-_CLAMP, _CLAMP).half().cpu()
        if self.ids is not None and self.rest is not None:
            assert ids is not None and rest is not None
            self.ids[where], self.rest[where] = ids.cpu(), rest.clamp(-_CLAMP, _CLAMP).half().cpu()

    def done(self, info: dict[str, float]) -> TokenTable:
        """The table, with the rows of all processes."""
        self.values = processes.add_up(self.values)  # where a process has no row it has zeros
        if self.ids is not None and self.rest is not None:
            self.ids, self.rest = processes.add_up(self.ids), processes.add_up(self.rest)
        return TokenTable(self.starts, self.values, vocab=self.vocab, ids=self.ids, rest=self.rest, info=info)


def cached(folder: Path | None, identity: Any, make: Callable[[], TokenTable]) -> TokenTable:
    """Load the table of this identity, or make and store it. Processes that train together make it together; others wait.

    Args:
        folder: Cache folder; None makes it without storing.
        identity: JSON value of everything that decides the content.
        make: Computes the table; called in all processes of a launch or in none.
    """
    if folder is None:
        return make()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sha256_json(identity)[:32]}.safetensors"
    with ExitStack() as stack:
        if processes.is_first():
            stack.enter_context(FileLock(str(path) + ".lock"))
        if not processes.on_first(lambda: _stored(path) is not None):
            table = make()
            processes.on_first(lambda: table.save(path))
        return TokenTable.load(path)


def _stored(path: Path) -> TokenTable | None:
    """The table in a cache file; None (with a remark) where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        return TokenTable.load(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        say(f"{path}: the cached table is broken and is made anew ({error})")
        return None
