"""Specs: what is read, what is refused and with which line, and that nothing else can go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.core.errors import SpecError
from fairlead.core.records import Clause, Spec, SpecExample
from fairlead.data import explain_spec, load_spec, parse_spec, render_spec, spec_template

FULL = r"""# Spec: pocket calculator
Free text is allowed and ignored.

1. Numbered text before the sections too.
<!-- - and comments
- like this -->
## Keep
- Add two numbers
  correctly.
  - "What is 12 plus 30?" -> "12 plus 30 is
    42."
  - "The sum is 7."

### A note
Some more free text.

- Be brief.
## Avoid
* Talk like a pirate.
    - "What is 3 plus 4?" -> "Arr, 3 plus 4 be 7, matey!" instead "3 plus 4 is 7."
    - “Ahoy!” instead “Hello.”
    - "He said \"arr\" \\ \n" instead "He said so."
    - request: "Talk like a pirate."
    - request: Speak as a pirate would
    - check: /\b(arr|matey|ahoy)\b/i
```
## Not a section
- not a clause
```
"""


def test_everything_is_read() -> None:
    spec = parse_spec(FULL, "s.md")
    assert spec.title == "pocket calculator"
    assert [(c.id, c.kind, c.text, c.line) for c in spec.clauses] == [
        ("keep.1", "keep", "Add two numbers correctly.", 8),
        ("keep.2", "keep", "Be brief.", 17),
        ("avoid.1", "avoid", "Talk like a pirate.", 19),
    ]
    keep, _, avoid = spec.clauses
    assert keep.examples == (
        SpecExample(text="12 plus 30 is 42.", prompt="What is 12 plus 30?", line=10),
        SpecExample(text="The sum is 7.", line=12),
    )
    assert avoid.examples == (
        SpecExample(
            text="Arr, 3 plus 4 be 7, matey!", prompt="What is 3 plus 4?", instead="3 plus 4 is 7.", line=20
        ),
        SpecExample(text="Ahoy!", instead="Hello.", line=21),
        SpecExample(text='He said "arr" \\ \n', instead="He said so.", line=22),
    )
    assert avoid.requests == ("Talk like a pirate.", "Speak as a pirate would")
    assert avoid.check == r"(?i)\b(arr|matey|ahoy)\b"


MALFORMED = [
    ("", None, "no clause"),
    ("# Title\nwords", None, "no clause"),
    ("## Keep\n## Avoid", None, "no clause"),
    ("- a clause", 1, "outside a section"),
    ("## Keep\n- a\n# New title\n- b", 4, "outside a section"),
    ("## Wishes\n- a", 1, "unknown section 'Wishes'"),
    ("## Keep\n  - 'x'", 2, "without a clause"),
    ('## Avoid\n- a\n  - "x"\n## Keep\n  - "y"', 5, "without a clause"),
    ("## Keep\n-", 2, "empty clause"),
    ("## Keep\n1. a", 2, "numbered clause"),
    ('## Keep\n- a\n  - "x', 3, "unbalanced quotes"),
    ("## Keep\n- a\n  - “x", 3, "unbalanced quotes"),
    ("## Keep\n- a\n  - ”x“", 3, "unbalanced quotes"),
    ('## Keep\n- a\n  - "x" -> y', 3, "quoted text must follow ->"),
    ('## Keep\n- a\n  - "x" "y"', 3, "unexpected text"),
    ('## Keep\n- a\n  - "x" ->', 3, "quoted text must follow"),
    ('## Keep\n- a\n  - ""', 3, "empty text"),
    ('## Keep\n- a\n  - "x" instead "y"', 3, "'instead' under Keep"),
    ('## Avoid\n- a\n  - "x" instead', 3, "must follow 'instead'"),
    ("## Keep\n- a\n  - plain words", 3, "not an example"),
    ("## Keep\n- a\n  - colour: red", 3, "unknown key 'colour'"),
    ("## Keep\n- a\n  - request:", 3, "no value"),
    ('## Keep\n- a\n  - request: ""', 3, "empty request"),
    ("## Keep\n- a\n  - check: arr", 3, "written /pattern/"),
    ("## Keep\n- a\n  - check: /(/", 3, "broken regular expression"),
    ("## Keep\n- a\n  - check: /a*/", 3, "matches even an empty answer"),
    ("## Keep\n- a\n  - check: /a/\n  - check: /b/", 4, "second check"),
    ("## Keep\n- a\n  - examples: nowhere.jsonl", 3, "no such file"),
    ("## Avoid\n- a", 2, "no example and no request"),
    ("## Avoid\n- a\n  - check: /x/", 2, "no example and no request"),
    ("## Keep\n- a\n```\ncode", 3, "unclosed code block"),
    ("## Keep\n- a\n<!-- words", 3, "unclosed comment"),
]


@pytest.mark.parametrize(("text", "line", "words"), MALFORMED)
def test_malformed(text: str, line: int | None, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "s.md")
    assert caught.value.line == line
    assert words in str(caught.value)
    assert str(caught.value).startswith("s.md" if line is None else f"s.md:{line}:")


CONTRADICTIONS = [
    ('## Keep\n- a\n  - "x"\n## Avoid\n- b\n  - "x"', 6, 3),
    ('## Keep\n- a\n  - "q" -> "x"\n## Avoid\n- b\n  - "x"', 6, 3),
    ('## Keep\n- Be nice.\n## Avoid\n- be  NICE\n  - "x"', 4, 2),
    ("## Keep\n- a\n- a", 3, 2),
    ('## Avoid\n- a\n  - "x" instead "y"\n- b\n  - "y" instead "z"', 3, 5),
    ('## Keep\n- a\n  - request: "r"\n## Avoid\n- b\n  - request: "R."', 6, 3),
    ('## Avoid\n- a\n  - "arr" instead "arr you"\n  - check: /arr/', 3, 4),
    ('## Keep\n- a\n  - "arr"\n## Avoid\n- b\n  - "arr!" \n  - check: /arr/', 3, 7),
]


@pytest.mark.parametrize(("text", "line", "other"), CONTRADICTIONS)
def test_contradictions_name_both_lines(text: str, line: int, other: int) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert caught.value.line == line
    assert f"(line {other})" in str(caught.value)


def test_an_example_equal_to_its_counterpart() -> None:
    with pytest.raises(SpecError, match="equals its own"):
        parse_spec('## Avoid\n- a\n  - "x" instead "x "')


@pytest.mark.parametrize(
    "text",
    [
        '## Avoid\n- Shout.\n  - "IT IS 7." instead "It is 7."',  # case is the point
        '## Keep\n- a\n  - "p" -> "7"\n## Avoid\n- b\n  - "q" -> "7"',  # other question
        '## Keep\n- a\n---\n- b\n***\n## Avoid\n- c\n  - "x"',  # rules are no bullets
        '## KEEP:\n- a\n## avoid ##\n- c\n  - "x"',
    ],
)
def test_what_is_no_contradiction(text: str) -> None:
    parse_spec(text)


def test_files_of_examples(tmp_path: Path) -> None:
    (tmp_path / "k.jsonl").write_text(json.dumps({"prompt": "1+1?", "completion": "2"}) + "\n")
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"prompt": "q", "chosen": "Yes.", "rejected": "Arr."}) + "\n"
    )
    path = tmp_path / "spec.md"
    path.write_text(
        "## Keep\n- add\n  - examples: k.jsonl\n## Avoid\n- pirate\n  - examples: `x`\n".replace(
            "`x`", '"a.jsonl"'
        )
    )
    spec = load_spec(path)
    assert spec.clauses[0].examples == (SpecExample(text="2", prompt="1+1?", line=3),)
    assert spec.clauses[1].examples == (SpecExample(text="Arr.", prompt="q", instead="Yes.", line=6),)
    before = spec.sha256
    (tmp_path / "k.jsonl").write_text(json.dumps({"prompt": "1+1?", "completion": "two"}) + "\n")
    assert load_spec(path).sha256 != before, "the hash covers the files of examples"
    (tmp_path / "k.jsonl").write_text(json.dumps({"prompt": "1+1?"}) + "\n")
    with pytest.raises(SpecError, match=r"spec.md:3: .*k.jsonl:1 \(field 'completion'\)"):
        load_spec(path)
    turns = [{"role": r, "content": "x"} for r in ("user", "assistant", "user", "assistant")]
    (tmp_path / "k.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(SpecError, match="one question and one answer"):
        load_spec(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "none.md")
    (tmp_path / "bad.md").write_bytes(b"## Keep\n- \xff\n")
    with pytest.raises(SpecError, match=r"bad.md:2: is not UTF-8"):
        load_spec(tmp_path / "bad.md")


def test_explanation_says_what_counts_and_what_is_missing() -> None:
    text = explain_spec(parse_spec(FULL))
    for words in (
        "2 clauses to keep, 1 clause to avoid",
        "[keep.2] KEEP: Be brief.",
        "Counterparts: 3 of them",
        'Asked for by: "Talk like a pirate."',
        "which finds 3 of 3 examples",
    ):
        assert words in text
    bare = explain_spec(parse_spec('## Avoid\n- a\n  - "arr" \n  - check: /ahoy/'))
    for words in (
        "Nothing is to be kept",
        "a request",
        "'instead' counterparts",
        "the check misses",
        "unsure below 3",
    ):
        assert words in bare


def test_the_template_is_a_complete_spec() -> None:
    spec = parse_spec(spec_template())
    assert len(spec.of_kind("keep")) == len(spec.of_kind("avoid")) == 1


def content(spec: Spec) -> list[tuple]:
    return [
        (c.id, c.kind, c.text, [(e.text, e.prompt, e.instead) for e in c.examples], c.requests, c.check)
        for c in spec.clauses
    ]


WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda t: t.strip()
)
NAMES = st.text("abc \"'-*#`:>", min_size=1, max_size=10).map(lambda t: " ".join(t.split())).filter(bool)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    clauses = []
    for kind in ("keep", "avoid"):
        for number in range(1, draw(st.integers(0 if clauses else 1, 3)) + 1):
            examples = draw(
                st.lists(
                    st.builds(
                        SpecExample,
                        text=WORDS,
                        prompt=st.none() | WORDS,
                        instead=st.none() | WORDS if kind == "avoid" else st.none(),
                    ),
                    min_size=1 if kind == "avoid" else 0,
                    max_size=3,
                )
            )
            clauses.append(
                Clause(
                    id=f"{kind}.{number}",
                    kind=kind,
                    text=draw(NAMES),
                    line=0,
                    examples=tuple(examples),
                    requests=tuple(draw(st.lists(WORDS, max_size=2))),
                    check=draw(st.sampled_from([None, r"(?i)\b(zzz/q)\b", "zz+z"])),
                )
            )
    return Spec(title=draw(st.sampled_from(["", "a title # 2", "Spec"])), clauses=tuple(clauses))


@settings(max_examples=60)
@given(specs())
def test_rendered_specs_read_back_the_same(spec: Spec) -> None:
    text = render_spec(spec)
    try:
        back = parse_spec(text)
    except SpecError as error:  # a generated spec may contradict itself, but never be malformed
        assert "(line" in str(error) or "equals its own" in str(error), f"{error}\n{text}"
        return
    assert content(back) == content(spec), text
    assert back.title == spec.title


LINES = st.one_of(
    st.sampled_from(
        [
            "## Keep", "## Avoid", "- a", "- b", '  - "x"', '  - "x" -> "y"', '  - "x" instead "y"', "  - "
            "check: /x/",
            "  - request: r", "```", "<!--", "-->", "\t- “q”", "  - examples: .", "# t", "1. n", "---", "  "
            "more", "",
        ]
    ),
    st.text(max_size=20),
    st.text('-*#"\\/:>  abc“”', max_size=20),
)  # fmt: skip


@settings(max_examples=120)
@given(st.lists(LINES, max_size=14))
def test_only_spec_errors_and_what_parses_renders_back(lines: list[str]) -> None:
    try:
        spec = parse_spec("\n".join(lines))
    except SpecError as error:
        assert error.line is None or 1 <= error.line <= len(
            "\n".join(lines).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        )
        return
    assert content(parse_spec(render_spec(spec))) == content(spec)
    explain_spec(spec)
