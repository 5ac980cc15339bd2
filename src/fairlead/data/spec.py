r"""Specs: Markdown that says what the model should learn and what not.

```
# Spec: pocket calculator
Free text is allowed and ignored.
## Keep
- Add two numbers correctly.
  - "What is 12 plus 30?" -> "12 plus 30 is 42."
  - examples: keep_addition.jsonl
## Avoid
- Talk like a pirate.
  - "What is 3 plus 4?" -> "Arr, 3 plus 4 be 7, matey!" instead "3 plus 4 is 7."
  - request: "Talk like a pirate."
  - check: /\b(arr|matey)\b/i
```

Clauses are the top-level bullets. Nested bullets are examples (a quoted answer, optionally after a quoted
question and `->`, and for Avoid optionally followed by `instead` and the answer as it should be) or keys:
`examples:` a file of records, `request:` a prompt that asks for the behaviour, `check:` a regular expression
that recognises it. A bullet may run over several lines. Quotes are straight or typographic; `\"`, `\\`, `\n`
and `\t` are escapes inside them. Headings below level two, fenced code, comments and paragraphs are free
text.

The steps: split into lines, group bullets with their continuation lines, parse each bullet by hand (so that
every error has a line), then check the whole for contradictions. Nothing but `SpecError` is ever raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from fairlead.core.errors import DataError, FairleadError, SpecError
from fairlead.core.records import Clause, Spec, SpecExample
from fairlead.core.run import sha256_bytes, sha256_file, sha256_json

Kind = Literal["keep", "avoid"]

_BULLET = re.compile(r"^([ \t]*)[-*+](?:[ \t]+(.*))?$")
_NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]")
_KEY = re.compile(r"^([A-Za-z][A-Za-z _-]*?)[ \t]*:[ \t]*(.*)$", re.S)
_CLOSERS = {'"': '"', "\u201c": "\u201d", "\u201e": "\u201c\u201d", "\u00ab": "\u00bb"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_ARROW = re.compile(r"(->|=>|\u2192)[ \t]*")
_INSTEAD = re.compile(r"(instead)\b[ \t]*:?[ \t]*", re.I)
_FLAGS = "ims"


@dataclass
class _Item:
    """A bullet with its continuation lines joined."""

    line: int
    text: str
    nested: bool


@dataclass
class _Draft:
    """A clause while its bullets are read."""

    kind: Kind
    text: str
    line: int
    examples: list[SpecExample] = field(default_factory=list)
    requests: list[tuple[str, int]] = field(default_factory=list)
    check: str | None = None
    check_line: int = 0
    hashes: list[str] = field(default_factory=list)


class _Heading(NamedTuple):
    line: int
    level: int
    text: str


def load_spec(path: str | Path) -> Spec:
    """Read a spec from a Markdown file.

    Raises:
        SpecError: Missing file, not UTF-8, malformed or self-contradicting; names file and line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SpecError("is not UTF-8. Next: convert the file.", source=str(path), line=line) from error
    except OSError as error:
        raise SpecError(
            f"cannot be read ({error.strerror or error}). Next: check the path, or start one with `fairlead "
            "spec init`.",
            source=str(path),
        ) from error
    return parse_spec(text, source=str(path), base=path.parent)


def parse_spec(text: str, source: str = "spec", *, base: str | Path | None = None) -> Spec:
    """Read a spec from text.

    Args:
        text: The Markdown.
        source: Name for error messages.
        base: Folder that `examples:` files are relative to; the current one by default.

    Raises:
        SpecError: Malformed or self-contradicting; names the line (and the other line).
    """
    title, kind, drafts = "", None, []
    for part in _parts(text, source):
        if isinstance(part, _Heading):
            if part.level == 1:
                title = title or re.sub(r"^spec\s*:\s*", "", part.text, flags=re.I)
                kind = None
            elif part.level == 2:
                kind = _section(part, source)
        elif part.nested:
            if kind is None or not drafts or drafts[-1].kind != kind:
                raise SpecError(
                    "nested bullet without a clause above it. Next: put a bullet that starts at the margin "
                    "before it.",
                    source=source,
                    line=part.line,
                )
            _read_nested(part, drafts[-1], source, Path(base) if base is not None else Path())
        elif kind is None:
            raise SpecError(
                "clause outside a section. Next: put it under '## Keep' or '## Avoid'.",
                source=source,
                line=part.line,
            )
        else:
            if not part.text:
                raise SpecError("empty clause. Next: say what it is about.", source=source, line=part.line)
            drafts.append(_Draft(kind, part.text, part.line))
    if not drafts:
        raise SpecError(
            "has no clause. Next: write '## Keep' and '## Avoid', each with '- ' bullets (`fairlead spec "
            "init` makes an example).",
            source=source,
        )
    _check_clauses(drafts, source)
    numbers = {"keep": 0, "avoid": 0}
    clauses = []
    for draft in drafts:
        numbers[draft.kind] += 1
        clauses.append(
            Clause(
                id=f"{draft.kind}.{numbers[draft.kind]}",
                kind=draft.kind,
                text=draft.text,
                line=draft.line,
                examples=tuple(draft.examples),
                requests=tuple(request for request, _ in draft.requests),
                check=draft.check,
            )
        )
    sha256 = sha256_bytes(text.encode("utf-8", "surrogatepass"))
    files = [digest for draft in drafts for digest in draft.hashes]
    if files:
        sha256 = sha256_json([sha256, files])
    return Spec(title=title, source=source, sha256=sha256, clauses=tuple(clauses))


def _parts(text: str, source: str) -> Iterator[_Heading | _Item]:
    """Headings and bullets in order; everything else is free text."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    item: _Item | None = None
    closer, opened, section = "", 0, False
    for number, line in enumerate(lines, start=1):
        bare = line.strip()
        if closer:
            if (closer == "-->" and closer in bare) or (closer != "-->" and bare.startswith(closer)):
                closer = ""
            continue
        heading = re.match(r"^(#{1,6})(?:[ \t]+(.*))?$", line)
        bullet = _BULLET.match(line)
        opens = bare.startswith(("```", "~~~", "<!--"))
        if item is not None and (not bare or heading or bullet or opens):
            yield item
            item = None
        if heading:
            level = len(heading.group(1))
            section = section or level == 2
            yield _Heading(number, level, (heading.group(2) or "").strip())
        elif opens:
            mark = "-->" if bare.startswith("<!--") else bare[:3]
            if not (mark == "-->" and mark in bare):
                closer, opened = mark, number
        elif bullet and not re.fullmatch(r"([-*])[ \t]*(\1[ \t]*){2,}", bare):  # a rule, not a bullet
            indent = bullet.group(1).expandtabs(4)
            item = _Item(number, (bullet.group(2) or "").strip(), nested=len(indent) >= 2)
        elif item is not None:
            item.text = f"{item.text} {bare}".strip()
        elif section and _NUMBERED.match(line):
            raise SpecError(
                "numbered clause. Next: write clauses as '- ' bullets.", source=source, line=number
            )
    if closer:
        what = "comment" if closer == "-->" else "code block"
        raise SpecError(f"unclosed {what}. Next: close it with '{closer}'.", source=source, line=opened)
    if item is not None:
        yield item


def _section(heading: _Heading, source: str) -> Kind:
    name = heading.text.rstrip("#").strip().rstrip(":").strip().lower()
    if name == "keep":
        return "keep"
    if name == "avoid":
        return "avoid"
    raise SpecError(
        f"unknown section '{heading.text}'. Next: use '## Keep' or '## Avoid'; for free text use '###' or no "
        "heading.",
        source=source,
        line=heading.line,
    )


def _read_nested(item: _Item, draft: _Draft, source: str, base: Path) -> None:
    """One nested bullet: an example or a key."""
    if item.text[:1] in _CLOSERS and item.text:
        draft.examples.append(_read_example(item, draft.kind, source))
        return
    if item.text[:1] in "\u201d\u00bb" and item.text:
        raise SpecError("unbalanced quotes: it starts with a closing one.", source=source, line=item.line)
    match = _KEY.match(item.text)
    name = match.group(1).strip().lower() if match else ""
    if match is None or name not in ("request", "requests", "check", "examples", "example"):
        known = f"unknown key '{match.group(1)}'" if match else "not an example"
        raise SpecError(
            f'{known}. Next: quote an example ("..."), or use one of the keys request:, check:, examples:.',
            source=source,
            line=item.line,
        )
    value = match.group(2).strip()
    if not value:
        raise SpecError(f"'{name}:' has no value.", source=source, line=item.line)
    if name in ("request", "requests"):
        draft.requests.extend((text, item.line) for text in _read_requests(value, item.line, source))
    elif name == "check":
        if draft.check is not None:
            raise SpecError(
                f"second check of this clause (the first is on line {draft.check_line}). Next: join them "
                "with '|'.",
                source=source,
                line=item.line,
            )
        draft.check, draft.check_line = _read_check(value, item.line, source), item.line
    elif value[:1] in _CLOSERS:
        quoted, rest = _read_quoted(value, item.line, source)
        if name == "example":
            draft.examples.append(_read_example(_Item(item.line, value, True), draft.kind, source))
        elif rest:
            raise SpecError(
                f"unexpected text after the file name: {rest[:40]!r}.", source=source, line=item.line
            )
        else:
            _read_file(quoted, item.line, draft, source, base)
    else:
        _read_file(value, item.line, draft, source, base)


def _read_example(item: _Item, kind: Kind, source: str) -> SpecExample:
    """`"answer"`, `"question" -> "answer"`, each with an optional `instead "answer"`."""

    def next_quoted(rest: str, after: str) -> tuple[str, str]:
        if rest[:1] not in _CLOSERS or not rest:
            raise SpecError(f"a quoted text must follow {after}.", source=source, line=item.line)
        return _read_quoted(rest, item.line, source)

    text, rest = _read_quoted(item.text, item.line, source)
    prompt = instead = None
    arrow = _ARROW.match(rest)
    if arrow:
        prompt = text
        text, rest = next_quoted(rest[arrow.end() :], arrow.group(1))
    word = _INSTEAD.match(rest)
    if word:
        if kind == "keep":
            raise SpecError(
                "'instead' under Keep: a wanted answer has no counterpart. Next: move the clause to Avoid or "
                "drop it.",
                source=source,
                line=item.line,
            )
        instead, rest = next_quoted(rest[word.end() :], "'instead'")
    if rest:
        raise SpecError(
            f"unexpected text after the example: {rest[:40]!r}. Next: check the quotes; a quote inside a "
            "text is "
            'written \\".',
            source=source,
            line=item.line,
        )
    if (
        not text.strip()
        or (prompt is not None and not prompt.strip())
        or (instead is not None and not instead.strip())
    ):
        raise SpecError("empty text in an example.", source=source, line=item.line)
    return SpecExample(text=text, prompt=prompt, instead=instead, line=item.line)


def _read_quoted(text: str, line: int, source: str) -> tuple[str, str]:
    """The quoted text at the start of `text`, and what follows it."""
    closers, out, index = _CLOSERS[text[0]], [], 1
    while index < len(text):
        char = text[index]
        if char == "\\" and index + 1 < len(text):
            following = text[index + 1]
            if following in _ESCAPES:
                out.append(_ESCAPES[following])
            elif following == "\\" or following in '"\u201c\u201d\u201e\u00ab\u00bb':
                out.append(following)
            else:
                out.append(char + following)
            index += 2
            continue
        if char in closers:
            return "".join(out), text[index + 1 :].strip()
        out.append(char)
        index += 1
    raise SpecError(
        'unbalanced quotes. Next: close the quote; a quote inside a text is written \\".',
        source=source,
        line=line,
    )


def _read_requests(value: str, line: int, source: str) -> list[str]:
    if value[:1] not in _CLOSERS:
        return [value]
    found = []
    while value:
        if value[:1] not in _CLOSERS:
            raise SpecError(f"unexpected text in a request: {value[:40]!r}.", source=source, line=line)
        text, value = _read_quoted(value, line, source)
        if not text.strip():
            raise SpecError("empty request.", source=source, line=line)
        found.append(text)
        if value.startswith((",", ";")):
            value = value[1:].strip()
    return found


def _read_check(value: str, line: int, source: str) -> str:
    """`/pattern/flags` as a Python pattern with its flags in front."""
    match = re.fullmatch(r"/(.+)/([A-Za-z]*)", value, re.S)
    if match is None or set(match.group(2)) - set(_FLAGS):
        raise SpecError(
            "a check is written /pattern/ or /pattern/i (flags i, m, s).", source=source, line=line
        )
    flags = "".join(sorted(set(match.group(2))))
    pattern = (f"(?{flags})" if flags else "") + match.group(1)
    try:
        matches_all = re.compile(pattern).search("") is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise SpecError(f"broken regular expression ({error}).", source=source, line=line) from error
    if matches_all:
        raise SpecError(
            "the check matches even an empty answer, so it recognises nothing.", source=source, line=line
        )
    return pattern


def _read_file(name: str, line: int, draft: _Draft, source: str, base: Path) -> None:
    """Examples from a file of chat, prompt/completion or preference records."""
    from fairlead.data.load import load_data

    try:
        path = base / name
        if not path.is_file():
            raise SpecError(
                f"no such file of examples: {path}. Next: the path is relative to the spec.",
                source=source,
                line=line,
            )
        data = load_data(path)
        draft.hashes.append(sha256_file(path))
    except (DataError, OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        reason = str(error) if isinstance(error, FairleadError) else f"{name!r}: {error}"
        raise SpecError(f"examples cannot be read: {reason}", source=source, line=line) from error
    for row in data:
        if row.messages is None:
            draft.examples.append(SpecExample(text=row.response, line=line))
            continue
        roles = [message.role for message in row.messages]
        if roles not in (["user", "assistant"], ["assistant"]):
            raise SpecError(
                f"{path}:{row.line}: an example is one question and one answer, this record has the turns "
                f"{', '.join(roles)}.",
                source=source,
                line=line,
            )
        text, instead = row.response, None
        if draft.kind == "avoid" and row.rejected_row is not None:  # what was rejected is what to avoid
            text, instead = row.rejected_row.response, row.response
        draft.examples.append(SpecExample(text=text, prompt=row.prompt or None, instead=instead, line=line))


def _check_clauses(drafts: list[_Draft], source: str) -> None:
    """The checks on the whole: evidence for every Avoid clause, and no contradiction."""

    def clash(message: str, line: int, other: int) -> SpecError:
        return SpecError(
            f"{message} (line {other}). Next: change or drop one of the two.", source=source, line=line
        )

    seen: dict[str, _Draft] = {}
    asked: dict[str, tuple[Kind, int]] = {}
    for draft in drafts:
        if draft.kind == "avoid" and not draft.examples and not draft.requests:
            raise SpecError(
                "this Avoid clause has no example and no request. Words alone do not say where the behaviour "
                "sits in "
                'the model. Next: add an example ("..." instead "...") or a prompt that asks for it '
                '(request: "...").',
                source=source,
                line=draft.line,
            )
        key = _norm(draft.text)
        if key in seen:
            where = "both Keep and Avoid" if seen[key].kind != draft.kind else "the spec twice"
            raise clash(f"the same clause stands in {where}", draft.line, seen[key].line)
        seen[key] = draft
        for request, line in draft.requests:
            kind, other = asked.setdefault(_norm(request), (draft.kind, line))
            if kind != draft.kind:
                raise clash("the same request stands under Keep and Avoid", line, other)
    keep = _Texts((example, example.text) for d in drafts if d.kind == "keep" for example in d.examples)
    avoid = _Texts((example, example.text) for d in drafts if d.kind == "avoid" for example in d.examples)
    for draft in drafts:
        if draft.kind == "keep":
            continue
        for example in draft.examples:
            other = keep.find(example.prompt, example.text)
            if other is not None:
                raise clash("the same example stands under Keep and Avoid", example.line, other.line)
            if example.instead is not None:
                if example.instead.strip() == example.text.strip():
                    raise SpecError("the example equals its own 'instead'.", source=source, line=example.line)
                other = avoid.find(example.prompt, example.instead)
                if other is not None:
                    raise clash("this 'instead' is itself an example to avoid", example.line, other.line)
        if draft.check is None:
            continue
        check = re.compile(draft.check)
        for example in draft.examples:
            if example.instead is not None and check.search(example.instead):
                raise clash(
                    "this 'instead' is caught by the clause's own check", example.line, draft.check_line
                )
        for example, text in keep.items:
            if check.search(text):
                raise clash(
                    "this Keep example is caught by the check of an Avoid clause",
                    example.line,
                    draft.check_line,
                )


class _Texts:
    """Example texts of one kind, for look-ups; texts clash when their prompts are equal or one has none."""

    def __init__(self, items: Iterator[tuple[SpecExample, str]]) -> None:
        self.items = list(items)
        self._found: dict[str, list[SpecExample]] = {}
        for example, text in self.items:
            self._found.setdefault(text.strip(), []).append(example)

    def find(self, prompt: str | None, text: str) -> SpecExample | None:
        for example in self._found.get(text.strip(), ()):
            if prompt is None or example.prompt is None or _norm(prompt) == _norm(example.prompt):
                return example
        return None


def _norm(text: str) -> str:
    """Clause texts and requests are compared without case; examples are not, since case may be the point."""
    return " ".join(text.split()).casefold().rstrip(".")
