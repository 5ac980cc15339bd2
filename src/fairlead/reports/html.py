"""Self-contained HTML pages: no network, no fonts, no files beside them.

Every page extends `templates/base.html`. A content security policy allows exactly the page's own scripts (by their hashes) and no
connection at all, so that text from data sets and models could not run or load anything even where an escape were missed. Colours
follow the reader's light or dark preference.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fairlead.core.run import atomic_path, versions
from fairlead.reports import palette, plots, text
from fairlead.reports.answers import highlight
from fairlead.reports.glossary import GLOSSARY
from fairlead.reports.numbers import measure_label, parts_of

MARKS = ("\u25cf", "\u25a0", "\u25c6", "\u25b2", "\u271a", "\u2605", "\u25bc", "\u2b1f")
STYLES = ("report.css", "catalogue.css", "guard.css", "probe.css")


def render_page(template: str, context: dict[str, Any], *, scripts: Sequence[str] = ()) -> str:
    """HTML text of a template that extends `base.html`.

    Args:
        template: Its name.
        context: What it shows; `title` is required.
        scripts: Texts of scripts to run at the end of the page, in order.
    """
    return (
        environment()
        .get_template(template)
        .render(
            context,
            versions=versions(),
            palette=palette,
            css=Markup("".join(asset(name) for name in STYLES)),
            scripts=[Markup(script) for script in scripts],
            hashes=[csp_hash(script) for script in scripts],
        )
    )


def write_text(path: str | Path, content: str) -> Path:
    """Write a page to one file, replaced atomically, and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(content, "utf-8")
    return path


def write_page(
    path: str | Path, template: str, context: dict[str, Any], *, scripts: Sequence[str] = ()
) -> Path:
    """`render_page`, written with `write_text`."""
    return write_text(path, render_page(template, context, scripts=scripts))


def environment() -> Environment:
    """The templates with everything escaped, strings cleaned of control characters, and the number formats."""
    env = Environment(
        loader=PackageLoader("fairlead.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=text.clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "percent": text.percent,
        "num": text.number,
        "fixed": text.fixed,
        "shorten": text.shorten,
        "listing": text.listing,
        "measure_label": measure_label,
        "visible_token": plots.visible_token,
    }
    env.globals |= {
        "highlight": highlight,
        "marks": MARKS,
        "parts_of": parts_of,
        "is_number": text.is_number,
        "words": {t.key: t.meaning for t in GLOSSARY},
    }
    return env


def asset(name: str) -> str:
    """Text of a file that stands beside the templates."""
    return (Path(__file__).parent / "templates" / name).read_text("utf-8")


def csp_hash(script: str) -> str:
    """What a content security policy calls a script that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
