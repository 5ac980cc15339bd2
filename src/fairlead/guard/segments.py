"""Where a claim ends while an answer is being written: at the end of a sentence, unless another segmenter says otherwise."""

from __future__ import annotations

import re
from typing import Protocol, runtime_checkable

_MARKS = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\n]")
_CLOSED = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]\u201d\u2019*_]*\s*$|\n\s*$")
_ABBREVIATED = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|dr|mr|mrs|ms|prof|st|no|vs|ca|approx|e\.g|i\.e|cf|fig|vol|jr|sr)\.\s*$",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w")


@runtime_checkable
class Segmenter(Protocol):
    """Says where spans end, token by token; spans follow each other without gaps."""

    def may_end(self, piece: str) -> bool:
        """Whether a span can end behind a token with this text; asked once for every token of the vocabulary."""
        ...

    def ends(self, text: str, following: str) -> bool:
        """Whether the span `text` ends, given the text of the token that follows."""
        ...

    def is_claim(self, text: str) -> bool:
        """Whether a span that has ended is worth a score."""
        ...


class Sentences:
    """Sentences: a full stop, question mark, exclamation mark or line break, where a new word follows.

    Not behind a number's point ("3.5"), an initial or a common abbreviation.
    """

    def may_end(self, piece: str) -> bool:
        """Whether the token holds a mark that can end a sentence."""
        return bool(_MARKS.search(piece))

    def ends(self, text: str, following: str) -> bool:
        """Whether the sentence is closed and what follows begins another."""
        if not _CLOSED.search(text):
            return False
        if text.rstrip(" \t") != text or text.endswith("\n"):
            return True
        if following and not following[0].isspace():
            return (
                not following[0].isalnum() and not _MARKS.match(following) and following[0] not in "\"')]*_"
            )
        return not _ABBREVIATED.search(text)

    def is_claim(self, text: str) -> bool:
        """Whether it holds a letter or digit at all."""
        return bool(_WORD.search(text))
