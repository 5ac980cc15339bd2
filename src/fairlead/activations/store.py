"""Activations kept on disk: several sites, aligned with their tokens, harvested once and read by whoever needs them.

A store is a folder named by what is in it (hash over model, texts, sites and dtype) under a folder of the user's choice, so that the same
harvest is found again and another one never lies in its place. `index.json` holds the plan; `shard-NNNNN.safetensors` hold, text after
text, `input_ids [tokens]`, `loss_mask [tokens]` (tokens of answers) and for every site `[tokens, d]` in the model's dtype. Shards are
written atomically: an interrupted harvest goes on with those that are missing. Reading maps the files into memory; nothing is loaded
that is not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from fairlead.activations.harvest import iter_site_activations
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.processes import is_first, num_processes, on_first, share_of, wait
from fairlead.core.progress import Meter
from fairlead.core.run import atomic_path, read_json, sha256_json, sha256_json_list, write_json
from fairlead.core.site import Site
from fairlead.data import ChatData, Encoded, PackedTexts, Row, TextsOnDemand

if TYPE_CHECKING:
    from fairlead.models import Model

INDEX_FILE = "index.json"
FORMAT = "fairlead.activations"
VERSION = 2  # 1: without the mask of answer tokens; still read, every token then counts as one
_TOKENS, _MASK = "input_ids", "loss_mask"


class StoredTokens(NamedTuple):
    """Tokens of a shard with their activations.

    Attributes:
        acts: Site to `[n, d]`, mapped from the file.
        input_ids: `[n]` long.
        row: `[n]` long, index of each token's text.
        position: `[n]` long, position of the token in its text.
    """

    acts: dict[str, Tensor]
    input_ids: Tensor
    row: Tensor
    position: Tensor


class _Shard(NamedTuple):
    file: str
    first: int  # text
    end: int


class ActivationStore:
    """A finished store; `ActivationStore.harvest` makes one.

    Attributes:
        folder: Where it lies.
        sites: Names of the sites.
        lengths: Tokens of each text.
        texts: Hash of the texts' tokens.
        model_fingerprint: Of the model it was harvested from.
        model_name: Its name.

    Raises:
        DataError: No store there, broken, unfinished or of a newer format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.sites: tuple[str, ...] = tuple(index["sites"])
        self.lengths: list[int] = index["lengths"]
        self.texts: str = index["texts"]
        self.model_fingerprint: str = index["model_fingerprint"]
        self.model_name: str = index["model_name"]
        self._shards = [_Shard(*shard) for shard in index["shards"]]
        missing = [shard.file for shard in self._shards if not (self.folder / shard.file).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self._shards)} shards are missing. Next: harvest again with the same settings; "
                "it goes on where it stopped.",
                source=str(self.folder),
            )
        self._open: dict[str, Any] = {}
        self._shard_of = [
            place for place, shard in enumerate(self._shards) for _ in range(shard.first, shard.end)
        ]
        self._start: list[int] = []
        for shard in self._shards:
            place = 0
            for row in range(shard.first, shard.end):
                self._start.append(place)
                place += self.lengths[row]

    @staticmethod
    def is_one(folder: str | Path) -> bool:
        """Whether a store lies in this folder."""
        return (Path(folder) / INDEX_FILE).is_file()

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.lengths)

    @classmethod
    def harvest(
        cls,
        model: Model,
        data: ChatData | Sequence[Encoded],
        sites: Sequence[str | Site],
        root: str | Path,
        *,
        max_length: int | None = None,
        batch_size: int = 64,
        shard_tokens: int = 65_536,
        together: bool = False,
    ) -> ActivationStore:
        """Run the model over the texts and keep what it holds at the sites; a store that is there already is opened.

        Args:
            model: The model; one pass, ended at the deepest site.
            data: Chats or encoded texts.
            sites: Where.
            root: Folder in which the store's own folder is made.
            max_length: Longer texts are cut (only where `data` is not encoded yet); None: the model's limit.
            batch_size: Texts per forward pass.
            shard_tokens: Tokens of a file, about.
            together: The processes of this launch share the work; each calls this with the same arguments.

        Raises:
            ConfigError: No site.
            DataError: No text.
            SiteError: No such site.
            RunError: The disk is full or the place cannot be written.
        """
        if isinstance(data, ChatData):
            limit = max_length or model.max_length
            encoded: Sequence[Encoded] = PackedTexts.encode(data, model.tokenizer, max_length=limit)
        else:
            encoded = data
        names = list(dict.fromkeys(str(Site.parse(site)) for site in sites))
        if not names:
            raise ConfigError("sites is empty. Next: name at least one site, such as 'layers.0.resid_post'.")
        if not encoded:
            raise DataError("no text to harvest. Next: pass data with at least one row.")
        for name in names:
            model.resolved.place(name)
        texts = sha256_json_list(list(row.input_ids) for row in encoded)
        index = {
            "format": FORMAT,
            "version": VERSION,
            "model_fingerprint": model.fingerprint,
            "model_name": model.name,
            "texts": texts,
            "masks": sha256_json_list([int(flag) for flag in row.loss_mask] for row in encoded),
            "sites": names,
            "dtype": str(model.dtype).removeprefix("torch."),
            "lengths": [len(row) for row in encoded],
            "shards": [list(shard) for shard in _plan(encoded, shard_tokens)],
        }
        parts = ("version", "model_fingerprint", "texts", "masks", "sites", "dtype", "shards")
        folder = Path(root) / sha256_json([index[part] for part in parts])[:16]
        together = together and num_processes() > 1

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / INDEX_FILE).is_file():
                write_json(folder / INDEX_FILE, index)

        on_first(begin) if together else begin()
        shards = [_Shard(*shard) for shard in index["shards"]]
        _harvest_shards(
            model, encoded, names, folder, share_of(shards) if together else shards, batch_size=batch_size
        )
        if together:
            wait()
        return cls(folder)

    def check(self, model: Model) -> None:
        """Confirm that the store was harvested from this model.

        Raises:
            DataError: From another one.
        """
        if self.model_fingerprint != model.fingerprint:
            raise DataError(
                f"harvested from {self.model_name} (fingerprint {self.model_fingerprint[:12]}), not from {model.name} "
                f"(fingerprint {model.fingerprint[:12]}). Next: harvest this model's activations.",
                source=str(self.folder),
            )

    def check_site(self, site: str | Site) -> None:
        """Confirm that a site is in the store.

        Raises:
            ConfigError: It is not.
        """
        if str(Site.parse(site)) not in self.sites:
            raise ConfigError(
                f"{self.folder}: holds {', '.join(self.sites)}, not {site}. Next: choose one of these or harvest it."
            )

    def iter_rows(self, rows: Sequence[int], sites: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Of each of these texts, in the order of the files: its index, and site to activations `[length, d]`."""
        for row in sorted(rows):
            file = self._file(self._shard_of[row])
            start = self._start[row]
            yield row, {site: file.get_slice(site)[start : start + self.lengths[row]] for site in sites}

    @property
    def encoded(self) -> Sequence[Encoded]:
        """The texts, read from the files when they are asked for; their rows are not kept."""
        return _StoredTexts(self)

    def ids(self, row: int) -> np.ndarray:
        """Tokens of a text, `[length]`."""
        start = self._start[row]
        tokens = self._file(self._shard_of[row]).get_slice(_TOKENS)
        return tokens[start : start + self.lengths[row]].numpy()

    def iter_ids(self) -> Iterator[np.ndarray]:
        """Tokens of every text, in order, a shard at a time."""
        for place, shard in enumerate(self._shards):
            lengths = self.lengths[shard.first : shard.end]
            yield from np.split(self._file(place).get_tensor(_TOKENS).numpy(), np.cumsum(lengths)[:-1])

    def loss_mask(self, row: int) -> list[bool]:
        """Which tokens of a text belong to an answer; all, where the store is older than the mask."""
        file = self._file(self._shard_of[row])
        if _MASK not in file.keys():  # noqa: SIM118 - not a dict
            return [True] * self.lengths[row]
        start = self._start[row]
        return file.get_slice(_MASK)[start : start + self.lengths[row]].tolist()

    def iter_tokens(self, sites: Sequence[str | Site] | None = None) -> Iterator[StoredTokens]:
        """All tokens in order, a shard at a time.

        Args:
            sites: None: all.

        Raises:
            ConfigError: A site that the store lacks.
        """
        names = self.sites if sites is None else [str(Site.parse(site)) for site in sites]
        for name in names:
            self.check_site(name)
        for place, shard in enumerate(self._shards):
            file = self._file(place)
            lengths = torch.tensor(self.lengths[shard.first : shard.end])
            row = torch.arange(shard.first, shard.end).repeat_interleave(lengths)
            position = torch.cat([torch.arange(int(length)) for length in lengths])
            yield StoredTokens(
                {name: file.get_tensor(name) for name in names},
                file.get_tensor(_TOKENS).long(),
                row,
                position,
            )

    def _file(self, place: int) -> Any:
        name = self._shards[place].file
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, "pt")
            except (SafetensorError, OSError) as error:
                raise DataError(
                    f"broken shard ({error}). Next: remove it and harvest again.",
                    source=str(self.folder / name),
                ) from error
        return self._open[name]


class _StoredTexts(TextsOnDemand):
    """The texts of a store as rows of tokens."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store.lengths)

    @override
    def text(self, index: int) -> Encoded:
        return Encoded(self._store.ids(index).tolist(), self._store.loss_mask(index), index, Row(text=""))


def _plan(encoded: Sequence[Encoded], shard_tokens: int) -> list[_Shard]:
    """Consecutive texts, about `shard_tokens` tokens a shard."""
    shards, first, held = [], 0, 0
    for row, item in enumerate(encoded):
        held += len(item)
        if held >= shard_tokens or row == len(encoded) - 1:
            shards.append(_Shard(f"shard-{len(shards):05d}.safetensors", first, row + 1))
            first, held = row + 1, 0
    return shards


def _harvest_shards(
    model: Model,
    encoded: Sequence[Encoded],
    names: Sequence[str],
    folder: Path,
    shards: Sequence[_Shard],
    *,
    batch_size: int,
) -> None:
    wanted = [shard for shard in shards if not (folder / shard.file).is_file()]
    if not wanted:
        return
    total = sum(len(encoded[row]) for shard in wanted for row in range(shard.first, shard.end))
    meter = Meter("harvest", total, "tokens") if is_first() else None
    try:
        for shard in wanted:
            texts = encoded[shard.first : shard.end]
            order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
            starts = torch.tensor([0, *map(len, texts)]).cumsum(0).tolist()
            held: dict[str, Tensor] = {
                _TOKENS: torch.tensor(
                    [token for text in texts for token in text.input_ids], dtype=torch.int32
                ),
                _MASK: torch.tensor([flag for text in texts for flag in text.loss_mask], dtype=torch.bool),
            }
            place = 0
            for found in iter_site_activations(
                model, [texts[i] for i in order], names, batch_size=batch_size
            ):
                for number, length in enumerate(found.lengths):
                    start = starts[order[place + number]]
                    for name in names:
                        value = found.acts[name][number, :length]
                        if name not in held:
                            held[name] = torch.empty(starts[-1], value.shape[-1], dtype=value.dtype)
                        held[name][start : start + length] = value
                place += len(found.lengths)
                if meter is not None:
                    meter.advance(sum(found.lengths))
            with atomic_path(folder / shard.file) as temporary:
                save_file(held, temporary)
    finally:
        if meter is not None:
            meter.close()


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / INDEX_FILE).is_file():
        raise DataError(
            "no activation store. Next: make one with ActivationStore.harvest.", source=str(folder)
        )
    index = read_json(folder / INDEX_FILE)
    if index.get("format") != FORMAT or index.get("version", VERSION + 1) > VERSION:
        raise DataError(
            f"format {index.get('format')} version {index.get('version')} is not known here. Next: update fairlead.",
            source=str(folder / INDEX_FILE),
        )
    return index
