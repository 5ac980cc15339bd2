"""A catalogue of concepts, opened: list, look up, search, neighbours, examples.

`fairlead.studies.concepts.build_catalogue` makes one; this reads it. It knows which model and dictionary it describes and refuses to be
used with others. Searching is in `fairlead.concepts.search`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairlead.concepts.entries import ConceptStatistics, Entry, Example, Hit, Neighbour
from fairlead.concepts.store import DATABASE, EXAMPLES, FORMAT, VERSION, read_examples
from fairlead.core.errors import CatalogueError
from fairlead.core.records import Concept

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model


class Catalogue:
    """The concepts of one dictionary of one model, with evidence. Make one with `Catalogue.open(folder)`.

    Attributes:
        folder: Where it lies.
        meta: Format, model, dictionary and corpus it was made from.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.meta = folder, meta

    @classmethod
    def open(
        cls, folder: str | Path, *, model: Model | None = None, dictionary: Dictionary | None = None
    ) -> Catalogue:
        """Open a catalogue folder.

        Args:
            folder: As written by `fairlead concepts build`.
            model: Checked against the model that the catalogue describes, where given.
            dictionary: Likewise.

        Raises:
            CatalogueError: No catalogue there, a broken one, one of a newer format, or one of another model or dictionary.
        """
        folder = Path(folder)
        path = folder / DATABASE
        if not path.is_file():
            raise CatalogueError(
                f"{folder}: holds no catalogue (no {DATABASE}). Next: pass a folder that `fairlead concepts build` wrote."
            )
        try:
            base = _connect(path)
            meta = {key: json.loads(value) for key, value in base.execute("SELECT key, value FROM meta")}
            base.close()
        except (sqlite3.Error, ValueError) as error:
            raise CatalogueError(
                f"{path}: broken file ({error}). Next: build the catalogue again."
            ) from error
        if meta.get("format") != FORMAT or meta.get("version", 0) > VERSION:
            raise CatalogueError(
                f"{path}: format {meta.get('format')} version {meta.get('version')} is not known here. Next: update fairlead."
            )
        found = cls(folder, meta)
        if model is not None:
            found.check_model(model)
        if dictionary is not None:
            found.check_dictionary(dictionary)
        return found

    @property
    def model_name(self) -> str:
        """Name or folder of the model."""
        return self.meta["model"]

    @property
    def model_fingerprint(self) -> str:
        """`Model.fingerprint` of the model."""
        return self.meta["model_fingerprint"]

    @property
    def dictionary_path(self) -> Path:
        """Folder of the dictionary: as it lay beside the catalogue, or where it was when the catalogue was built."""
        beside = self.folder / self.meta["dictionary"]
        return beside if beside.exists() else Path(self.meta["dictionary_path"])

    @property
    def dictionary_sha256(self) -> str:
        """`Dictionary.sha256` of the dictionary."""
        return self.meta["dictionary_sha256"]

    @property
    def site(self) -> str:
        """Where the dictionary reads."""
        return self.meta["site"]

    def check_model(self, model: Model) -> None:
        """Confirm that this is the model that the catalogue describes.

        Raises:
            CatalogueError: It is another.
        """
        if model.fingerprint != self.model_fingerprint:
            raise CatalogueError(
                f"{self.folder}: describes {self.model_name} (fingerprint {self.model_fingerprint[:12]}), not {model.name} "
                f"(fingerprint {model.fingerprint[:12]}). Next: pass that model, or build a catalogue of this one."
            )

    def check_dictionary(self, dictionary: Dictionary) -> None:
        """Confirm that this is the dictionary that the catalogue describes.

        Raises:
            CatalogueError: It is another.
        """
        if dictionary.sha256 != self.dictionary_sha256:
            raise CatalogueError(
                f"{self.folder}: describes dictionary {self.dictionary_sha256[:12]}, not {dictionary.sha256[:12]}. "
                f"Next: use the one in {self.dictionary_path}, or build a catalogue of this one."
            )

    def load_dictionary(self) -> Dictionary:
        """The dictionary, loaded once and checked.

        Raises:
            DictionaryError: Its folder is gone, or holds another by now.
        """
        return self._dictionary

    @cached_property
    def _dictionary(self) -> Dictionary:
        from fairlead.dictionaries import load_dictionary

        found = load_dictionary(self.dictionary_path)
        self.check_dictionary(found)
        return found

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All of every concept, the most telling first (see `studies.concepts`)."""
        rows = self.query("SELECT entry FROM concepts ORDER BY place")
        return tuple(Entry.model_validate_json(text) for (text,) in rows)

    @cached_property
    def _by_id(self) -> dict[str, Entry]:
        return {entry.concept.id: entry for entry in self.entries}

    @property
    def concepts(self) -> list[Concept]:
        """The concepts, in the order of `entries`."""
        return [entry.concept for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, concept_id: str) -> Entry:
        """All of one concept.

        Raises:
            CatalogueError: No such concept.
        """
        found = self._by_id.get(concept_id)
        if found is None:
            raise CatalogueError(
                f"{self.folder}: no concept '{concept_id}'. Next: take an id from `fairlead concepts search`."
            )
        return found

    def get(self, concept_id: str) -> Concept:
        """One concept.

        Raises:
            CatalogueError: No such concept.
        """
        return self.entry(concept_id).concept

    def statistics(self, concept_id: str) -> ConceptStatistics:
        """How a concept acts on the corpus.

        Raises:
            CatalogueError: No such concept.
        """
        return self.entry(concept_id).statistics

    def examples(self, concept_id: str) -> list[Example]:
        """The contexts of a concept: top, by quantile of its activation, and near misses.

        Raises:
            CatalogueError: No such concept, or the file of examples is missing or broken.
        """
        return self.examples_of([concept_id])[concept_id]

    def examples_of(self, concept_ids: Sequence[str]) -> dict[str, list[Example]]:
        """The same for several concepts, in one reading of the file."""
        for concept_id in concept_ids:
            self.entry(concept_id)
        path = self.folder / EXAMPLES
        try:
            return read_examples(path, concept_ids)
        except (OSError, ValueError, KeyError) as error:
            raise CatalogueError(
                f"{path}: cannot be read ({error}). Next: build the catalogue again."
            ) from error

    def neighbours(
        self, concept_id: str, num: int = 10, *, by: Literal["cosine", "together"] = "cosine"
    ) -> list[Neighbour]:
        """Concepts near one, nearest first.

        Args:
            concept_id: The concept.
            num: How many.
            by: "cosine" of the directions, or how often they act "together", on the same tokens.

        Raises:
            CatalogueError: No such concept.
        """
        self.entry(concept_id)
        order = {"cosine": "cosine", "together": "together"}[by]
        rows = self.query(
            f"SELECT other, cosine, together FROM neighbours WHERE id = ? ORDER BY {order} DESC LIMIT ?",
            concept_id,
            num,
        )
        return [Neighbour(self.get(other), cosine, together) for other, cosine, together in rows]

    def search(
        self, text: str, *, examples: Sequence[str] = (), num: int = 10, model: Model | None = None
    ) -> list[Hit]:
        """The concepts that a text, and examples of what it describes, find; best first.

        By words alone, or, with the model at hand, also by what acts unusually strongly on the text itself (see
        `fairlead.concepts.search`).

        Raises:
            CatalogueError: The model is not the one that the catalogue describes.
            ConfigError: The text, or an example, is empty.
        """
        from fairlead.concepts.search import search_concepts

        return search_concepts(self, text, examples=examples, num=num, model=model)

    def query(self, statement: str, *values: Any) -> list[Sequence[Any]]:
        """Rows of a read-only query on the database (see `fairlead.concepts.store` for the tables).

        Raises:
            CatalogueError: The file is broken.
        """
        try:
            base = _connect(self.folder / DATABASE)
            try:
                return base.execute(statement, values).fetchall()
            finally:
                base.close()
        except sqlite3.Error as error:
            raise CatalogueError(
                f"{self.folder / DATABASE}: cannot be read ({error}). Next: build the catalogue again."
            ) from error

    def __repr__(self) -> str:
        return f"Catalogue({str(self.folder)!r}, {self.meta.get('num_concepts')} concepts of {self.model_name} at {self.site})"


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{_quoted(path)}?mode=ro&immutable=1", uri=True)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path.resolve()))
