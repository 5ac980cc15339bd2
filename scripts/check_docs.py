"""Check that what README and docs name exists: commands and their options, public names, files, settings.

    python scripts/check_docs.py

mkdocs checks the links between pages; this checks the rest. Checked: every `fairlead ...` line of a code block
or in backticks (words and options), every `fl.NAME`, every repository path in backticks or in a link of README, and that
no document or source names a path of somebody's machine.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairlead.cli.tree import root

ROOT = Path(__file__).resolve().parents[1]
COMMAND = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?(fairlead(?: [^`#|]*)?)", re.M)
INLINE = re.compile(r"`(fairlead [^`]*)`")
NAME = re.compile(r"\bfl\.([a-zA-Z_]\w*)")
PATH = re.compile(r"`((?:src|tests|docs|scripts|benchmarks)/[\w./-]+)`")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
MACHINE = re.compile(r"(?<![\w.])/(?:work|farm|root|home|Users)/[a-z]")


def main() -> None:
    """Print what is wrong and exit with 1, or say how much was checked."""
    tree = root()
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wrong, counted = [], 0
    for file in files:
        for number, line, code in lines_of(file):
            where = f"{file.relative_to(ROOT)}:{number}"
            for text in (COMMAND if code else INLINE).findall(line):
                counted += 1
                wrong += [f"{where}: {problem}" for problem in command_problems(tree, text)]
            wrong += [
                f"{where}: fairlead has no '{n}'" for n in NAME.findall(line) if n not in public_names()
            ]
            wrong += [f"{where}: no file {p}" for p in PATH.findall(line) if not (ROOT / p).exists()]
            if file.parent == ROOT and not code:
                missing = [p for p in LINK.findall(line) if not (file.parent / p).exists()]
                wrong += [f"{where}: broken link {p}" for p in missing]
            wrong += [f"{where}: a path of one machine" for _ in MACHINE.findall(line)]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"documents: {len(files)} files, {counted} commands checked")


def lines_of(file: Path) -> Iterator[tuple[int, str, bool]]:
    """Numbered lines (shell lines that end in a backslash joined) and whether they stand in a code block."""
    code, held = False, ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
            continue
        if code and line.endswith("\\"):
            held += line[:-1]
            continue
        yield number, held + line, code
        held = ""


def public_names() -> list[str]:
    """Names of `import fairlead as fl`."""
    import fairlead

    return fairlead.__all__


def command_problems(tree: Any, text: str) -> Iterator[str]:
    """What is wrong with one command line of a document."""
    words = text.split()[1:]
    command, path = tree, ["fairlead"]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            if words[0].isupper() or words[0] in ("...", "COMMAND"):
                return
            yield f"no command '{' '.join([*path, words[0]])}'"
            return
        path.append(words[0])
        command = command.commands[words.pop(0)]
    known = {name for p in command.params for name in [*p.opts, *p.secondary_opts]} | {"--help", "-h"}
    for word in words:
        option = word.split("=")[0].strip("[],.;:")
        if option.startswith("--") and len(option) > 2 and option not in known:
            yield f"'{' '.join(path)}' has no option {option}"


if __name__ == "__main__":
    main()
