"""Decide: hold a menu against a spec, and write down what becomes of each concept, who decided and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead.concepts import judge_ask, judge_examples, judge_llm
from fairlead.core.errors import ConfigError, DictionaryError, JudgeError
from fairlead.core.records import Decision, Menu, Plan, Spec
from fairlead.core.run import Run, read_json, sha256_json
from fairlead.data.rows import Row, as_messages
from fairlead.data.spec import load_spec
from fairlead.dictionaries import Dictionary, load_dictionary
from fairlead.llm import LanguageModel, connect
from fairlead.models import Model, load_model

MENU_FILE = "menu.json"
PLAN_FILE = "plan.json"
BACKGROUND_FILE = "background.json"
SAMPLE_FILE = "sample.json"


def decide(
    menu: Menu | str | Path,
    spec: Spec | str | Path,
    *,
    judge: str = "examples",
    model: Model | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    llm: LanguageModel | str | None = None,
    base_url: str | None = None,
    ask: Callable[[str], str] | None = None,
    out: str | Path | None = None,
    max_lines: int = 40,
    seed: int = 0,
    overwrite: bool = False,
) -> Plan:
    """Decide keep, avoid or ignore for each line of a menu.

    Args:
        menu: A menu, or the run folder of a preview.
        spec: A spec, or its file.
        judge: "examples" (no language model), "llm" or "ask" (a person at the terminal).
        model: For the examples judge; None: the menu's model is loaded by its name.
        dictionary: For the examples judge; None: the menu's.
        llm: For the llm judge: a language model or its name, such as "openai:MODEL".
        base_url: For the llm judge: the endpoint.
        ask: For the ask judge: takes a prompt, returns the answer; None: the terminal.
        out: Run folder; None: nothing is kept.
        max_lines: Lines decided, from the top; the rest of the menu is ignored, which a note says.
        seed: Of the bootstrap behind the confidence.
        overwrite: Replace what stands at `out`.

    Raises:
        ConfigError: Unknown judge, or the llm judge without a language model.
        JudgeError: The judge gave no usable decision.
        DictionaryError: The menu's dictionary is gone, or was made for another model.
    """
    if judge not in ("examples", "llm", "ask"):
        raise ConfigError(f"judge is {judge!r}. Next: use 'examples', 'llm' or 'ask'.")
    folder, menu = _read_menu(menu)
    spec = spec if isinstance(spec, Spec) else load_spec(spec)
    top = menu.model_copy(update={"lines": menu.lines[:max_lines]})
    notes = []
    if len(menu.lines) > max_lines:
        notes.append(f"The last {len(menu.lines) - max_lines} lines of the menu were not judged.")

    if judge == "examples":
        start = model if isinstance(model, Model) else load_model(model or menu.model)
        decisions = judge_examples(
            start,
            _dictionary(menu, dictionary, folder),
            top,
            spec,
            background=_background(menu, folder),
            data=_rows(folder, SAMPLE_FILE),
            seed=seed,
        )
    elif judge == "llm":
        if llm is None:
            raise ConfigError(
                "the llm judge needs a language model. Next: pass --llm openai:MODEL (with --base-url for a local one)."
            )
        decisions = judge_llm(top, spec, connect(llm, base_url=base_url) if isinstance(llm, str) else llm)
    else:
        decisions = judge_ask(top, spec, ask=ask)

    plan = _plan(menu, spec, decisions, folder, notes)
    if out is not None:
        config = {
            "judge": judge,
            "llm": llm if isinstance(llm, str) else getattr(llm, "name", None),
            "max_lines": max_lines,
        }
        inputs = {
            "menu": sha256_json(menu.model_dump(mode="json")),
            "spec": spec.sha256 or sha256_json(spec.model_dump(mode="json")),
        }
        with Run.start(
            out, study="decide", config=config, inputs=inputs, seed=seed, overwrite=overwrite
        ) as run:
            run.write_json(PLAN_FILE, plan)
            run.record["summary"] = {
                "keep": [decision.label for decision in plan.kept()],
                "avoid": [decision.label for decision in plan.avoided()],
                "ignore": sum(decision.verdict == "ignore" for decision in plan.decisions),
            }
    return plan


def _read_menu(menu: Menu | str | Path) -> tuple[Path | None, Menu]:
    if isinstance(menu, Menu):
        known = Path(menu.dictionary).parent if menu.dictionary else None
        return (known if known is not None and (known / MENU_FILE).is_file() else None), menu
    path = Path(menu)
    path = path if path.name == MENU_FILE else path / MENU_FILE
    try:
        return path.parent, Menu.model_validate(read_json(path))
    except ValueError as error:
        if type(error).__module__.startswith("fairlead"):
            raise
        raise JudgeError(f"{path}: not a menu ({error}). Next: repeat the preview.") from error


def _dictionary(menu: Menu, given: Dictionary | str | Path | None, folder: Path | None) -> Dictionary:
    if isinstance(given, Dictionary):
        return given
    if given is not None:
        found = load_dictionary(given)
    elif folder is not None and (folder / "dictionary").is_dir():
        found = load_dictionary(folder / "dictionary")  # beside the menu, also when the run folder was moved
    elif menu.dictionary:
        found = load_dictionary(menu.dictionary)
    else:
        raise DictionaryError(
            "the menu's dictionary was not kept. Next: give the preview a run folder (out=...), or pass dictionary=..."
        )
    if menu.dictionary_sha256 and found.sha256 != menu.dictionary_sha256:
        raise DictionaryError(
            f"{found.source}: not the dictionary that the menu was made with. Next: pass that one, or repeat the preview."
        )
    return found


def _background(menu: Menu, folder: Path | None) -> list[Any]:
    """Ordinary texts kept by the preview; for the pocket model its neutral chats."""
    kept = _rows(folder, BACKGROUND_FILE)
    if kept:
        return kept
    if menu.model == "organism:pocket":
        from fairlead.organisms import World

        return [Row(messages=as_messages(record["messages"])) for record in World().neutral(96, seed=1000)]
    return []


def _rows(folder: Path | None, name: str) -> list[Any]:
    """Rows kept by the preview; none where it kept none."""
    if folder is None or not (folder / name).is_file():
        return []
    records = read_json(folder / name)
    return [
        Row(messages=as_messages(r["messages"])) if "messages" in r else Row(text=r["text"]) for r in records
    ]


def _plan(menu: Menu, spec: Spec, decisions: list[Decision], folder: Path | None, notes: list[str]) -> Plan:
    chosen = {decision.concept for decision in decisions if decision.verdict != "ignore"}
    avoided = {decision.clause for decision in decisions if decision.verdict == "avoid"}
    for clause in spec.of_kind("avoid"):
        if clause.id not in avoided:
            notes.append(f"No concept of the menu was matched with {clause.id} ('{clause.text}').")
    kept_dictionary = (
        folder / "dictionary" if folder is not None and (folder / "dictionary").is_dir() else None
    )
    return Plan(
        spec=spec,
        decisions=tuple(decisions),
        menu_path=str(folder) if folder is not None else None,
        dictionary=str(kept_dictionary) if kept_dictionary is not None else (menu.dictionary or None),
        site=menu.site,
        notes=tuple(notes),
        concepts=tuple(line.concept for line in menu.lines if line.concept.id in chosen),
        uptakes={line.concept.id: line.uptake for line in menu.lines if line.concept.id in chosen},
    )
