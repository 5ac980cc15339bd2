r"""Labelled texts from JSONL files: answers with claims, and any other labelled stretch or whole text.

One JSON object a line. Where the text stands: `response` with `prompt` (a string) or `messages`, or `text` alone. What is labelled:

    {"claims": [...]}                                      what `fairlead probe claims` writes (`core.claims.ClaimedAnswer`)
    {"spans": [{"start": 0, "end": 12, "label": "supported"}]}   characters of the response; claims where all labels are claim labels
    {"label": "pos"}                                       the whole text

Optional: `id`, `entity` (splits keep it on one side), `meta`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from fairlead.core.claims import ClaimedAnswer, ClaimLabel, ClaimSpan
from fairlead.core.errors import DataError
from fairlead.core.run import atomic_path
from fairlead.probes.examples import Example, Stretch, Task, cut, examples_of

TASK_NAMES: dict[Task, str] = {
    "classify": "unsupported",
    "localise": "claim",
    "correct": "right",
    "retract": "right",
}
CLAIM_LABELS: tuple[str, ...] = get_args(ClaimLabel)


def load_claims(path: str | Path) -> list[ClaimedAnswer]:
    """Read answers with claims.

    Raises:
        DataError: No such file, a broken line (named with file, line and field), or no answer.
    """
    answers = [_answer(record, Path(path), line) for line, record in _records(Path(path))]
    if not answers:
        raise DataError("holds no answer. Next: check the file.", source=str(path))
    return answers


def load_answers(path: str | Path) -> list[ClaimedAnswer]:
    """Read answers that may have no claims yet (`prompt` or `messages`, and `response`).

    Raises:
        DataError: As `load_claims`.
    """
    path = Path(path)
    answers = [
        _answer(record if "claims" in record else {"spans": [], **record}, path, line)
        for line, record in _records(path)
    ]
    if not answers:
        raise DataError("holds no answer. Next: check the file.", source=str(path))
    return answers


def save_claims(answers: list[ClaimedAnswer], path: str | Path) -> Path:
    """Write answers with claims as JSONL, all or nothing."""
    path = Path(path)
    with atomic_path(path) as temporary:
        lines = (answer.model_dump_json() + "\n" for answer in answers)
        temporary.write_text("".join(lines), "utf-8")
    return path


def load_questions(path: str | Path) -> list[ClaimedAnswer] | None:
    """The prompts of JSONL of answers (labelled or not), with nothing said yet; None where the file is another kind of data set.

    Raises:
        DataError: As `load_claims`.
    """
    keys = _first_keys(Path(path))
    if not keys >= {"messages", "response"}:
        return None
    read = load_claims(path) if "claims" in keys else load_answers(path)
    return [one.model_copy(update={"response": "", "claims": ()}) for one in read]


def load_examples(
    path: str | Path, *, task: Task = "classify", positive: str | None = None, tokens: bool = False
) -> list[Example]:
    """Read what a probe is fitted on.

    Args:
        path: A JSONL file (see above).
        task: For answers with claims.
        positive: For other labels: the label that the probe shall tell from all others. Without it the file must hold claims, or
            labels that are true and false.
        tokens: Each token is an example of its own, and text outside the spans is negative (personal data, say, of which files hold the
            positive spans alone). For other labels than those of claims, which `localise` finds.

    Raises:
        DataError: As `load_claims`; also where the labels do not fit `positive`.
        ConfigError: No example of the task.
    """
    path = Path(path)
    records = list(_records(path))
    if positive is None and not tokens and records and all(_holds_claims(record) for _, record in records):
        return examples_of((_answer(record, path, line) for line, record in records), task)
    examples = [_example(record, path, line, positive) for line, record in records]
    if not examples:
        raise DataError("holds no example. Next: check the file.", source=str(path))
    if tokens:
        examples = [_by_token(example) for example in examples]
    labels = {stretch.label for example in examples for stretch in example.stretches}
    if len(labels) < 2:
        which = f"{positive!r}" if positive is not None else "true"
        raise DataError(
            f"every label {'is' if True in labels else 'is other than'} {which}: a probe needs both. Next: check --positive, or pass "
            "--tokens where text outside the spans is negative.",
            source=str(path),
        )
    return examples


def name_of(path: str | Path, *, task: Task = "classify", positive: str | None = None) -> str:
    """What the positive class of a file's examples is called: the label asked for, a task's own name, or "true"."""
    if positive is not None:
        return positive
    return TASK_NAMES[task] if all(_holds_claims(record) for _, record in _records(Path(path))) else "true"


def _first_keys(path: Path) -> frozenset[str]:
    if path.suffix != ".jsonl" or not path.is_file():
        return frozenset()
    try:
        with open(path, encoding="utf-8") as handle:
            first = json.loads(handle.readline())
    except ValueError:  # not JSON, or not UTF-8: the loader of data sets says what is wrong
        return frozenset()
    return frozenset(first) if isinstance(first, dict) else frozenset()


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}). Next: check the path.", source=str(path)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not JSON ({error}). Next: mend the line.", source=str(path), line=number
            ) from error
        if not isinstance(record, dict):
            raise DataError("must be a JSON object. Next: mend the line.", source=str(path), line=number)
        yield number, record


def _holds_claims(record: dict[str, Any]) -> bool:
    if "claims" in record:
        return True
    spans = record.get("spans")
    return isinstance(spans, list) and all(
        isinstance(span, dict) and span.get("label") in CLAIM_LABELS for span in spans
    )


def _answer(record: dict[str, Any], path: Path, line: int) -> ClaimedAnswer:
    try:
        if "claims" in record:
            return ClaimedAnswer.model_validate(record)
        messages, text = _text(record, path, line)
        spans = [
            _span(value, text, place, path, line) for place, value in enumerate(_spans(record, path, line))
        ]
        claims = []
        for place, (start, end, label) in enumerate(spans):
            if label not in CLAIM_LABELS:
                raise DataError(
                    f"is {label!r}; use one of {', '.join(CLAIM_LABELS)}.",
                    source=str(path),
                    line=line,
                    field=f"spans[{place}].label",
                )
            claims.append(ClaimSpan(start=start, end=end, text=text[start:end], label=label))
        return ClaimedAnswer(
            id=str(record.get("id", f"{path.stem}:{line}")),
            messages=messages,
            response=text,
            claims=tuple(claims),
            entity=str(record.get("entity", "")),
            meta=record.get("meta", {}),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or None
        raise DataError(
            f"{first['msg']}. Next: mend the line.", source=str(path), line=line, field=field
        ) from error


def _example(record: dict[str, Any], path: Path, line: int, positive: str | None) -> Example:
    messages, text = _text(record, path, line)
    if "spans" in record:
        found = [
            _span(value, text, place, path, line) for place, value in enumerate(_spans(record, path, line))
        ]
    elif "label" in record:
        found = [(0, len(text), record["label"])]
    else:
        raise DataError(
            "has neither 'claims' nor 'spans' nor 'label'. Next: add one.",
            source=str(path),
            line=line,
            field="label",
        )
    stretches = tuple(
        Stretch(start=start, end=end, label=_truth(label, positive, path, line))
        for start, end, label in found
    )
    meta = record.get("meta", {})
    return Example(
        id=str(record.get("id", f"{path.stem}:{line}")),
        messages=messages,
        response=text,
        stretches=stretches,
        entity=str(record.get("entity", "")),
        meta=meta if isinstance(meta, dict) else {},
    )


def _by_token(example: Example) -> Example:
    positive = [stretch for stretch in example.stretches if stretch.label]
    stretches = tuple(cut(positive, len(example.response)))
    return example.model_copy(update={"stretches": stretches, "token_level": True})


def _truth(label: Any, positive: str | None, path: Path, line: int) -> bool:
    if positive is not None:
        return str(label) == positive
    if isinstance(label, bool) or label in (0, 1):
        return bool(label)
    raise DataError(
        f"is {label!r}. Next: say which label the probe shall tell from the others (--positive).",
        source=str(path),
        line=line,
        field="label",
    )


def _text(record: dict[str, Any], path: Path, line: int) -> tuple[tuple[dict[str, str], ...], str]:
    key = "response" if "response" in record else "text"
    text = record.get(key)
    if not isinstance(text, str) or not text:
        raise DataError("must be a text that is not empty.", source=str(path), line=line, field=key)
    messages = record.get("messages")
    if messages is None:
        prompt = record.get("prompt")
        messages = [] if prompt is None else [{"role": "user", "content": prompt}]
    ok = isinstance(messages, list | tuple) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not ok:
        field = "messages" if record.get("messages") is not None else "prompt"
        raise DataError(
            "must be a text, or turns with role and content.", source=str(path), line=line, field=field
        )
    return tuple({"role": m["role"], "content": m["content"]} for m in messages), text


def _spans(record: dict[str, Any], path: Path, line: int) -> list[Any]:
    spans = record.get("spans")
    if not isinstance(spans, list):
        raise DataError("must be a list of spans.", source=str(path), line=line, field="spans")
    return spans


def _span(value: Any, text: str, place: int, path: Path, line: int) -> tuple[int, int, Any]:
    field = f"spans[{place}]"
    if not isinstance(value, dict):
        raise DataError(
            "must be an object with start, end and label.", source=str(path), line=line, field=field
        )
    for key in ("start", "end"):
        if not isinstance(value.get(key), int) or isinstance(value.get(key), bool):
            raise DataError(
                "must be a number of characters.", source=str(path), line=line, field=f"{field}.{key}"
            )
    if "label" not in value:
        raise DataError("is missing.", source=str(path), line=line, field=f"{field}.label")
    start, end = value["start"], value["end"]
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"characters {start} to {end} are not within the text's {len(text)}.",
            source=str(path),
            line=line,
            field=field,
        )
    if "text" in value and text[start:end] != value["text"]:
        raise DataError(
            f"the text there is {text[start:end]!r}.", source=str(path), line=line, field=f"{field}.text"
        )
    return start, end, value["label"]
