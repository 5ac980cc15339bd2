"""Find edits for a behaviour from its description: what `concepts autosteer` runs.

Steps: 1. candidates from the catalogue, searched with the description; 2. AutoSteer (`concepts.autosteer`); 3. files `edits.json` and
`steering.json`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fairlead.concepts import AutoSteered, Catalogue, autosteer
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.run import Run
from fairlead.data import ChatData, Message, Row, load_data
from fairlead.models import Model, load_model

EDITS_FILE = "edits.json"
STEERING_FILE = "steering.json"


def prompts_of(data: ChatData | str | Path, num: int) -> list[list[Message]]:
    """The first prompts of a data set; plain texts are questions.

    Raises:
        DataError: There is none.
    """
    return [prompt for prompt, _ in _answered(data, num)]


def examples_of(data: ChatData | str | Path, num: int) -> list[str]:
    """The answers to the prompts that `prompts_of` gives.

    Raises:
        DataError: A record has none.
    """
    found = _answered(data, num)
    for prompt, row in found:
        if row.messages is None or not row.response.strip():
            raise DataError(
                f"line {row.line}: '{prompt[-1].content[:60]}' has no answer, but the answers are the examples. Next: add it, "
                "or leave the examples out."
            )
    return [row.response for _, row in found]


def _answered(data: ChatData | str | Path, num: int) -> list[tuple[list[Message], Row]]:
    rows = (load_data(data) if isinstance(data, str | Path) else data).rows
    found = [
        (list(row.prompt_messages) if row.messages is not None else [Message("user", row.text or "")], row)
        for row in rows
    ]
    found = [(prompt, row) for prompt, row in found if prompt and prompt[-1].content.strip()][:num]
    if not found:
        raise DataError(
            "no record has a prompt. Next: pass chats, prompts with completions, or one question a line."
        )
    return found


def find_edits(
    model: Model | str | Path,
    catalogue: Catalogue | str | Path,
    description: str,
    data: ChatData | str | Path,
    *,
    out: str | Path,
    direction: Literal["on", "off"] = "on",
    requests: Sequence[str] = (),
    check: str | None = None,
    examples: bool = False,
    search: int = 2,
    num_prompts: int = 64,
    overwrite: bool = False,
    **settings: Any,
) -> AutoSteered:
    """Find edits for a behaviour and write them with the record of how they were found.

    Args:
        model: The model.
        catalogue: A catalogue of its concepts.
        description: The behaviour as a request.
        data: Its prompts are asked.
        out: Run folder.
        direction: Turn it on, or off where it is requested.
        requests: Other wordings of the request.
        check: Regular expression that recognises the behaviour in an answer; a probe where None.
        examples: The answers in the data show the behaviour: contrast with them, not with the model's own on request.
        search: Concepts that the description finds in the catalogue and that are tried by themselves.
        num_prompts: Prompts used.
        overwrite: Replace a finished run.
        settings: Of `autosteer`.

    Raises:
        CatalogueError: Of another model.
        DataError: A record without an answer, where the answers are the examples.
        ConfigError: A broken regular expression, or a setting out of range.
        RunError: The run folder exists or is locked.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    catalogue = Catalogue.open(catalogue, model=model) if isinstance(catalogue, str | Path) else catalogue
    pattern = _pattern(check)
    data = load_data(data) if isinstance(data, str | Path) else data
    prompts = prompts_of(data, num_prompts)
    shown = examples_of(data, num_prompts) if examples else None
    config = {"description": description, "direction": direction, "requests": list(requests), "check": check}
    config |= {"search": search, "num_prompts": num_prompts, "examples": examples, **settings}
    inputs = {"model": model.fingerprint, "dictionary": catalogue.dictionary_sha256}
    with Run.start(out, study="autosteer", config=config, inputs=inputs, overwrite=overwrite) as run:
        found = autosteer(
            model,
            catalogue.load_dictionary(),
            description,
            prompts,
            direction=direction,
            requests=requests,
            examples=shown,
            check=None if pattern is None else lambda _, answer: bool(pattern.search(answer)),
            candidates=[hit.concept for hit in catalogue.search(description, num=search, model=model)]
            if search
            else [],
            **settings,
        )
        run.write_json(EDITS_FILE, found.edits)
        run.write_json(STEERING_FILE, found.report)
        run.finish({"effect": found.report.best.effect, "reached": found.report.reached})
    return found


def _pattern(check: str | None) -> re.Pattern[str] | None:
    try:
        return None if check is None else re.compile(check)
    except re.error as error:
        raise ConfigError(f"check: '{check}' is no regular expression ({error}). Next: mend it.") from None
