"""Conditions and edits from a line of text, for command lines: `c40>5@prompt`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast, get_args

from fairlead.concepts.edits import Condition, Over
from fairlead.core.errors import ConfigError
from fairlead.core.records import Concept

_FORM = re.compile(r"^\s*([\w-]+)\s*(>|<=)\s*([-+\d.eE]+)\s*(?:@\s*(\w+))?\s*$")


def parse_condition(text: str, find: Callable[[str], Concept]) -> Condition:
    """Read `CONCEPT>THRESHOLD@OVER` (or `<=`), OVER one of token (default), prompt, answer.

    Args:
        text: Such as "c40>5@prompt".
        find: Gives a concept by id; its errors pass through.

    Raises:
        ConfigError: Another form.
    """
    match = _FORM.match(text)
    over = (match.group(4) or "token") if match else ""
    try:
        threshold = float(match.group(3)) if match else 0.0
    except ValueError:
        match, threshold = None, 0.0
    if match is None or over not in get_args(Over):
        raise ConfigError(
            f"'{text}' is no condition. Next: write CONCEPT>THRESHOLD or CONCEPT<=THRESHOLD, and @token, @prompt or @answer after it, "
            "for example c40>5@prompt."
        )
    concept = find(match.group(1))
    return Condition(
        latents=concept.latents,
        threshold=threshold,
        over=cast("Over", over),
        above=match.group(2) == ">",
        concept=concept.id,
        label=concept.label,
    )
