"""Specs back to text: what a spec was understood to say, its Markdown, and a template to start from."""

from __future__ import annotations

import re

from fairlead.core.records import Clause, Spec, SpecExample

_TEMPLATE = r"""# Spec: my model

Free text like this is ignored. Clauses are the bullets under Keep and Avoid; indented bullets are their
evidence.

## Keep

- Add two numbers correctly.
  - "What is 12 plus 30?" -> "12 plus 30 is 42."
  - "What is 5 plus 8?" -> "5 plus 8 is 13."

## Avoid

- Talk like a pirate.
  - "What is 3 plus 4?" -> "Arr, 3 plus 4 be 7, matey!" instead "3 plus 4 is 7."
  - "Who are you?" -> "Ahoy! I be a calculator." instead "Hello! I am a calculator."
  - request: "Talk like a pirate."
  - check: /\b(arr|ahoy|matey)\b/i
"""

FEW_EXAMPLES = 3


def spec_template() -> str:
    """A small, complete spec to start from (`fairlead spec init`)."""
    return _TEMPLATE


def explain_spec(spec: Spec) -> str:
    """How a spec was understood, in plain words: per clause what counts as evidence and what is missing."""
    keep, avoid = spec.of_kind("keep"), spec.of_kind("avoid")
    lines = [f"Spec: {spec.title or '(no title)'} ({spec.source or 'no file'})"]
    lines.append(f"{_count(len(keep), 'clause')} to keep, {_count(len(avoid), 'clause')} to avoid.")
    for clause in spec.clauses:
        lines.append("")
        lines.append(f"[{clause.id}] {clause.kind.upper()}: {clause.text} (line {clause.line})")
        lines.extend(f"  {line}" for line in _explain(clause))
        lines.extend(f"  To add: {line}" for line in missing(clause))
    lines.append("")
    lines.extend(_whole(keep, avoid))
    return "\n".join(lines)


def missing(clause: Clause) -> list[str]:
    """What a clause lacks, each with what to add and why; empty where it is complete."""
    found = []
    num = len(clause.examples)
    if clause.kind == "keep":
        if not any(example.prompt for example in clause.examples):
            found.append(
                'examples with their question ("question" -> "answer"): without them the clause cannot be '
                "shown to the "
                "model in training, and held-out loss on it is not measured."
            )
        return found
    if num < FEW_EXAMPLES:
        found.append(
            f"examples: there {'is' if num == 1 else 'are'} {num}, the example judge is unsure below "
            f"{FEW_EXAMPLES}."
        )
    bare = [example for example in clause.examples if example.instead is None]
    if bare:
        found.append(
            f"'instead' counterparts: {len(bare)} of {_count(num, 'example')} have none (lines "
            f"{', '.join(str(n) for n in sorted({e.line for e in bare}))}). They tell the behaviour from its "
            "topic."
        )
    if not clause.requests:
        found.append(
            'a request (request: "..."): a prompt that asks for the behaviour explains it away in training '
            "and shows "
            "afterwards whether it can still be had on request."
        )
    if clause.check is None:
        found.append(
            "a check (check: /.../i): a regular expression that recognises the behaviour; without one a text "
            "classifier is fitted on the examples and their counterparts."
        )
    return found


def render_spec(spec: Spec) -> str:
    """The spec as Markdown that `parse_spec` reads back to the same clauses."""
    lines = [f"# Spec: {spec.title}", ""] if spec.title else []
    kind = None
    for clause in spec.clauses:
        if clause.kind != kind:
            kind = clause.kind
            lines += [*([""] if lines and lines[-1] else []), f"## {kind.capitalize()}", ""]
        # a text of dashes only would read as a horizontal rule after "-"
        lines.append(f"{'+' if not clause.text.strip('- ') else '-'} {clause.text}")
        lines.extend(f"  - {_render_example(example)}" for example in clause.examples)
        lines.extend(f"  - request: {_quote(request)}" for request in clause.requests)
        if clause.check is not None:
            lines.append(f"  - check: {_render_check(clause.check)}")
    return "\n".join(lines) + "\n"


def _explain(clause: Clause) -> list[str]:
    lines = []
    examples = clause.examples
    pairs = [e for e in examples if e.instead is not None]
    if clause.kind == "keep":
        if examples:
            lines.append(
                f"Wanted: {_count(len(examples), 'example answer')}, e.g. {_short(examples[0].text)}."
            )
            asked = sum(e.prompt is not None for e in examples)
            lines.append(f"{asked} of them with their question: these can be shown in training.")
        else:
            lines.append("No example: the clause is read by people and language models only.")
    else:
        if examples:
            lines.append(
                f"Evidence: {_count(len(examples), 'example answer')} that show it, e.g. "
                f"{_short(examples[0].text)}."
            )
        if pairs:
            lines.append(
                f"Counterparts: {len(pairs)} of them say how the answer should be, e.g. "
                f"{_short(pairs[0].instead or '')}."
            )
    for request in clause.requests:
        lines.append(f"Asked for by: {_short(request)}.")
    if clause.check is not None:
        found = sum(bool(re.search(clause.check, e.text)) for e in examples)
        lines.append(
            f"Recognised by: {_render_check(clause.check)}, which finds {found} of "
            f"{_count(len(examples), 'example')}."
        )
        if found < len(examples):
            lost = next(e for e in examples if not re.search(clause.check, e.text))
            lines.append(
                f"Note: the check misses {_short(lost.text)} (line {lost.line}); widen it if it should not."
            )
    return lines


def _whole(keep: tuple[Clause, ...], avoid: tuple[Clause, ...]) -> list[str]:
    lines = []
    if not keep:
        lines.append(
            "Nothing is to be kept: concepts that no Avoid clause claims are ignored, that is learned as "
            "usual."
        )
    if not avoid:
        lines.append(
            "Nothing is to be avoided: training is plain fine-tuning, verification measures the rest."
        )
    shown = sum(e.prompt is not None for c in keep for e in c.examples)
    shown += sum(e.prompt is not None and e.instead is not None for c in avoid for e in c.examples)
    lines.append(
        "Rows for training from this spec (Keep examples and 'instead' counterparts with a question): "
        f"{shown}."
    )
    return lines


def _render_example(example: SpecExample) -> str:
    text = _quote(example.text)
    if example.prompt is not None:
        text = f"{_quote(example.prompt)} -> {text}"
    return text if example.instead is None else f"{text} instead {_quote(example.instead)}"


def _render_check(pattern: str) -> str:
    match = re.match(r"^\(\?([ims]+)\)", pattern)
    flags, body = (match.group(1), pattern[match.end() :]) if match else ("", pattern)
    return f"/{body}/{flags}"


def _quote(text: str) -> str:
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _short(text: str) -> str:
    text = " ".join(text.split())
    return f'"{text}"' if len(text) <= 70 else f'"{text[:67]}..."'


def _count(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"
