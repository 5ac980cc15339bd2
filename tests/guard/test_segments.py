"""Where sentences end, and the text of tokens one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.guard import Sentences
from fairlead.guard.pieces import Pieces, PieceTable
from fairlead.models import load_model


@pytest.mark.parametrize(
    ("text", "following", "expected"),
    [
        ("He lives in Oslo.", " She", True),
        ("He lives in Oslo.", "", True),
        ("It costs 3.", "5", False),
        ("It costs 3.", " Then", True),
        ("Dr.", " Smith", False),
        ("Ask J.", " Smith", False),
        ("Use e.g.", " this", False),
        ("Really?", "!", False),
        ("Really?!", " Yes", True),
        ("Wait.", ".", False),
        ("He said 'no.'", " Then", True),
        ("one line\n", "next", True),
        ("no mark", " here", False),
        ("Ende\u3002", "\u6b21", False),
    ],
)
def test_a_sentence_ends_where_a_reader_would_say(text, following, expected):
    assert Sentences().ends(text, following) is expected


def test_only_marks_can_end_and_only_words_claim():
    segmenter = Sentences()
    assert segmenter.may_end(".") and segmenter.may_end("?\n") and not segmenter.may_end(" town")
    assert segmenter.is_claim("Yes.") and not segmenter.is_claim(" ...\n")


TOKENIZER = load_model("organism:pocket").tokenizer
TABLE = PieceTable(TOKENIZER)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_pieces_add_up_to_the_whole(ids):
    pieces = Pieces(TABLE)
    text = "".join([pieces.add(token) for token in ids]) + pieces.flush()
    assert text == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=12))
def test_pieces_of_any_text_are_that_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(TABLE)
    assert "".join([pieces.add(token) for token in ids]) + pieces.flush() == TOKENIZER.decode(
        ids, skip_special_tokens=True
    )
