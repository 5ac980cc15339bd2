"""The file of a catalogue: one SQLite database with full-text search, beside Parquet files of examples.

    CATALOGUE/run.json            how it was made
    CATALOGUE/catalogue.sqlite    meta, concepts (JSON records), neighbours, text (FTS5)
    CATALOGUE/examples.parquet    contexts of every concept, one row each
    CATALOGUE/dictionary/         where the dictionary was not in a folder of Fairlead's own

`meta` names the format, its version, the model, the dictionary and the corpus. The file is written once, whole, and read-only after.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.concepts.entries import Entry, Example
from fairlead.concepts.labels import stem
from fairlead.core.records import TokenContext
from fairlead.core.run import atomic_path

FORMAT = "fairlead.catalogue"
VERSION = 1
DATABASE = "catalogue.sqlite"
EXAMPLES = "examples.parquet"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE concepts (
  place INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, label TEXT NOT NULL, density REAL NOT NULL, score REAL, entry TEXT NOT NULL
);
CREATE TABLE neighbours (id TEXT NOT NULL, other TEXT NOT NULL, cosine REAL NOT NULL, together REAL NOT NULL, PRIMARY KEY (id, other));
CREATE TABLE words (
  stem TEXT NOT NULL, word TEXT NOT NULL, id TEXT NOT NULL, score REAL NOT NULL, PRIMARY KEY (stem, word, id)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE text USING fts5(id UNINDEXED, label, words, contexts, promoted, tokenize = 'porter unicode61');
"""


def write_database(
    path: Path,
    entries: Sequence[Entry],
    *,
    meta: Mapping[str, Any],
    neighbours: Sequence[tuple[str, str, float, float]] = (),
    texts: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write the database, all or nothing.

    Args:
        path: The file.
        entries: Concepts in the order in which they are listed.
        meta: Model, dictionary, corpus, ...; format and version are added.
        neighbours: (id, other, cosine, together).
        texts: Texts of each concept for the full-text search; those of its examples where None.
    """
    with atomic_path(path) as temporary:
        base = sqlite3.connect(temporary)
        try:
            base.executescript(_SCHEMA)
            known = {"format": FORMAT, "version": VERSION, **meta}
            base.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in known.items()])
            base.executemany(
                "INSERT INTO concepts VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        place,
                        entry.concept.id,
                        entry.concept.label,
                        entry.statistics.density,
                        entry.scores.value,
                        entry.model_dump_json(),
                    )
                    for place, entry in enumerate(entries)
                ],
            )
            base.executemany("INSERT OR REPLACE INTO neighbours VALUES (?, ?, ?, ?)", neighbours)
            base.executemany(
                "INSERT OR IGNORE INTO words VALUES (?, ?, ?, ?)",
                [
                    (stem(word), word, entry.concept.id, score)
                    for entry in entries
                    for word, score in entry.words
                ],
            )
            base.executemany(
                "INSERT INTO text VALUES (?, ?, ?, ?, ?)",
                [(entry.concept.id, *_searchable(entry, texts)) for entry in entries],
            )
            base.commit()
        finally:
            base.close()
    return path


def _searchable(entry: Entry, texts: Mapping[str, Sequence[str]] | None) -> tuple[str, str, str, str]:
    concept = entry.concept
    shown = ["".join(e.tokens) for e in concept.examples] if texts is None else texts.get(concept.id, ())
    promoted = " ".join(effect.token for effect in entry.promoted)
    return f"{concept.label} {entry.word_label}", " ".join(concept.tokens), "\n".join(shown), promoted


def write_examples(path: Path, examples: Mapping[str, Sequence[Example]]) -> Path:
    """Write the examples of all concepts as Parquet, all or nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(concept, example) for concept, shown in examples.items() for example in shown]
    table = pa.table(
        {
            "concept": pa.array([concept for concept, _ in rows], pa.string()),
            "kind": pa.array([example.kind for _, example in rows], pa.string()),
            "peak": pa.array([example.peak for _, example in rows], pa.float32()),
            "row": pa.array([example.context.example for _, example in rows], pa.int64()),
            "tokens": pa.array([list(example.context.tokens) for _, example in rows], pa.list_(pa.string())),
            "scores": pa.array([list(example.context.scores) for _, example in rows], pa.list_(pa.float32())),
        },
        metadata={"format": FORMAT, "version": str(VERSION)},
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_examples(path: Path, concepts: Sequence[str]) -> dict[str, list[Example]]:
    """The examples of some concepts, each in the order in which they were written."""
    import pyarrow.parquet as pq

    found: dict[str, list[Example]] = {concept: [] for concept in concepts}
    for row in pq.read_table(path, filters=[("concept", "in", list(concepts))]).to_pylist():
        context = TokenContext(
            tokens=tuple(row["tokens"]),
            scores=tuple(round(float(score), 4) for score in row["scores"]),
            example=row["row"],
        )
        found[row["concept"]].append(Example(kind=row["kind"], peak=row["peak"], context=context))
    return found
