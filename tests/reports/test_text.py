"""Untrusted text cannot leave its place, and numbers read the same everywhere."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.reports.text import clean, fixed, listing, number, percent, plot_text, script_json, shorten


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers(-5, 5),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_script_json_holds_no_markup_and_reads_back_the_same(value):
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029") and text.isascii()
    assert json.loads(text) == value


def test_script_json_turns_what_json_lacks_into_null():
    assert json.loads(script_json({"a": [math.nan, math.inf, 1.5], "b": (1,)})) == {
        "a": [None, None, 1.5],
        "b": [1],
    }


@given(st.text())
def test_plot_text_has_no_tag_and_one_line(text):
    shown = plot_text(text, 30)
    assert "<" not in shown and ">" not in shown and "\n" not in shown


def test_clean_removes_controls_overrides_and_surrogates():
    assert clean("a\x00b\u202ec\ud800d\ne") == "a\ufffdb\ufffdc\ufffdd\ne"
    assert clean(3) == 3


@pytest.mark.parametrize(
    ("value", "signed", "shown"),
    [
        (0.976, False, "97.6\u00a0%"),
        (1.0, False, "100\u00a0%"),
        (0.0, True, "0\u00a0%"),
        (0.012, True, "+1.2\u00a0%"),
        (-0.79, False, "\u221279\u00a0%"),
        (-0.0001, True, "0\u00a0%"),
        (None, False, "\u2013"),
        (math.nan, False, "\u2013"),
    ],
)
def test_percent(value, signed, shown):
    assert percent(value, signed=signed) == shown


def test_numbers_and_lists():
    assert (number(0.0310), number(-1234.5), number(0), number(1.2e-7)) == (
        "0.0310",
        "\u22121234",
        "0.00",
        "1.20e\u221207",
    )
    assert fixed(0.999) == "1.00" and fixed(None) == "\u2013"
    assert (listing([]), listing(["a"]), listing(["a", "b", "c"])) == ("", "a", "a, b and c")
    assert shorten("a  b\nc", 5) == "a b c" and shorten("abcdef", 4) == "abc\u2026"
