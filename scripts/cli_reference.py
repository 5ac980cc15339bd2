"""Write docs/cli.md from the help of every command; with --check, fail where it is out of date.

    python scripts/cli_reference.py [--check]

The page is made from the command tree itself (not from the printed boxes, whose width depends on the terminal).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fairlead.cli.tree import examples, help_text, root, walk

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """\
<!-- Written by scripts/cli_reference.py from the commands' own help: change the help, then run `make format`. -->

# Command line

Every command takes `--json`: its result as one JSON object on standard output, `{"command": ..., "run": FOLDER or
null, ...}` with the keys named under *JSON* below, and `{"error": {"type": ..., "message": ...}}` where it fails.
Progress goes to standard error. Without `--json` the last line of standard output is the run folder.

`--config FILE` reads defaults of the options from a `.toml` or `.json` file; the command line wins. Names are those
of the options (`max_examples`); a table named after a command holds settings for that command only, so one file can
serve a project:

```toml
device = "cpu"

[train]
steps = 400

[dict.train]
tokens = 1_000_000
```

A setting outside a table must be an option of every command that reads the file.

Exit codes: 0 done; 2 something to mend, with the next step in the message; 130 interrupted, repeat the command to
resume; 1 a bug. `FAIRLEAD_DEBUG=1` shows the traceback of any error.
"""


def render(command: Any, words: tuple[str, ...]) -> str:
    """One command's section."""
    text = help_text(command).replace("JSON:", "*JSON:*")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join(["fairlead", *words, *(a.metavar or a.name.upper() for a in arguments), "[OPTIONS]"])
    rows = [f"| `{a.metavar or a.name.upper()}` | {cell(a.help)} | |" for a in arguments]
    for option in options:
        default = "" if option.default is None or option.default is False else f"`{option.default}`"
        rows.append(
            f"| `{', '.join([*option.opts, *option.secondary_opts])}` | {cell(option.help)} | {default} |"
        )
    code = "\n".join(examples(command))
    return (
        f"### `fairlead {' '.join(words)}`\n\n{text}\n\n```\n{usage}\n```\n\n"
        f"| | | default |\n|---|---|---|\n" + "\n".join(rows) + f"\n\nExample:\n\n```sh\n{code}\n```\n"
    )


def cell(text: str | None) -> str:
    """Help text as a table cell."""
    return " ".join((text or "").split()).replace("|", "\\|")


def page() -> str:
    """The whole page."""
    tree = root()
    parts, panel = [HEAD], None
    for words, command in walk(tree):
        top = tree.commands[words[0]]
        if top.rich_help_panel != panel:
            panel = top.rich_help_panel
            parts.append(f"## {panel}\n")
        parts.append(render(command, words))
    return "\n".join(parts)


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where the page is out of date"
    )
    check = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE.name}: out of date. Next: python scripts/cli_reference.py (or make format)")


if __name__ == "__main__":
    main()
