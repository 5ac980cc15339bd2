"""Evidence for claims: the passages of a user's own texts that share most words with a claim (TF-IDF, cosine)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairlead.core.errors import DataError

PASSAGE_CHARS = 800
ENDINGS = (".txt", ".md", ".jsonl")


class Passage(NamedTuple):
    """A stretch of a source text."""

    source: str
    text: str


class Evidence:
    """Passages with their word statistics.

    Attributes:
        passages: All of them.

    Raises:
        DataError: There is no word in any passage.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.passages = tuple(passages)
        self._vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        try:
            self._rows = self._vectors.fit_transform([p.text for p in self.passages])
        except ValueError as error:
            raise DataError("the evidence holds no text. Next: check the folder or file.") from error

    @classmethod
    def read(cls, path: str | Path) -> Evidence:
        """Read a file or all files of a folder (.txt, .md; .jsonl with a `text` on each line), cut into passages.

        Raises:
            DataError: Nothing there, or a broken line.
        """
        path = Path(path)
        files = sorted(p for p in path.rglob("*") if p.suffix in ENDINGS) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise DataError(f"no {', '.join(ENDINGS)} file there. Next: check the path.", source=str(path))
        return cls([passage for file in files for passage in _passages(file)])

    def find(self, query: str, *, num: int = 5) -> list[Passage]:
        """The passages nearest to a query, best first; those that share no word with it are left out."""
        scores = np.asarray((self._rows @ self._vectors.transform([query]).T).todense()).ravel()
        order = np.argsort(-scores, kind="stable")[:num]
        return [self.passages[place] for place in order if scores[place] > 0]


def _passages(file: Path) -> list[Passage]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}).", source=str(file)) from error
    if file.suffix != ".jsonl":
        return [Passage(file.name, part) for part in cut(text)]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "must be a JSON object with a text.", source=str(file), line=number, field="text"
            ) from error
        found += [Passage(f"{file.name}:{number}", part) for part in cut(str(body))]
    return found


def cut(text: str, *, size: int = PASSAGE_CHARS) -> list[str]:
    """Paragraphs put together up to `size` characters; longer ones are cut between words."""
    parts: list[str] = []
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        line = ""
        for word in words:
            if line and len(line) + 1 + len(word) > size:
                parts.append(line)
                line = ""
            line = f"{line} {word}".strip()
        if line and parts and len(parts[-1]) + 1 + len(line) <= size:
            parts[-1] = f"{parts[-1]} {line}"
        elif line:
            parts.append(line)
    return parts
