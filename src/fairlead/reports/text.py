"""Text of untrusted origin made safe and numbers made readable: the one door for both.

Labels, prompts and answers come from data sets and models. They reach a page in three ways, each with its own
guard: as HTML (jinja2's autoescape, after `clean`), as JSON inside a script element (`script_json`) and as text that
plotly draws, which understands a few tags (`plot_text`).
"""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
NBSP, MINUS, DASH = "\u00a0", "\u2212", "\u2013"


def clean(value: Any) -> Any:
    """Strings without control characters, lone surrogates and text-direction overrides; all else as it is."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return _CONTROL.sub("\ufffd", value.replace("\r\n", "\n"))
    return value


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters on one line, cut with an ellipsis."""
    text = " ".join(clean(text).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"


def plot_text(text: str, limit: int = 60) -> str:
    """Text for plotly, which reads tags and entities: escaped, one line, at most `limit` characters."""
    return html.escape(shorten(text, limit), quote=False)


def wrap_text(text: str, width: int = 46, lines: int = 3) -> str:
    """Text for a plotly hover box: escaped, broken into at most `lines` lines."""
    import textwrap

    parts = textwrap.wrap(" ".join(clean(text).split()), width)
    if len(parts) > lines:
        parts = [*parts[: lines - 1], shorten(" ".join(parts[lines - 1 :]), width)]
    return "<br>".join(html.escape(part, quote=False) for part in parts)


def script_json(value: Any) -> str:
    """JSON that is safe inside a `<script>` element: ASCII, no `<`, `>` or `&`; NaN and infinity become null."""
    text = json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda m: _SCRIPT[m.group()], text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def is_number(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share as per cent with one decimal, none from 10 % on where it is whole; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    number = 100 * value
    text = f"{abs(number):.1f}"
    if text.endswith(".0"):
        text = text[:-2]
    sign = MINUS if number < 0 and text != "0" else ("+" if signed and text != "0" else "")
    return f"{sign}{text}{NBSP}%"


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits - 1}e}"
    else:
        places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
        text = f"{value:.{min(places, 4)}f}"
    return text.replace("-", MINUS)


def fixed(value: float | None, places: int = 2) -> str:
    """A number with a fixed count of decimals; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{places}f}".replace("-", MINUS)


def listing(words: list[str] | tuple[str, ...]) -> str:
    """Words joined as in a sentence: "a, b and c"."""
    words = list(words)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + (" and " + words[-1] if words else "")
