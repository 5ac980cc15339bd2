"""Claims of anybody's answers: split, verified, written down; the linear script behind `fairlead probe claims`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.core.claims import ClaimedAnswer
from fairlead.core.errors import ConfigError
from fairlead.core.progress import say, track
from fairlead.core.run import Run, sha256_file
from fairlead.llm import connect
from fairlead.probes.claims import (
    Cost,
    Evidence,
    EvidenceVerifier,
    HumanVerifier,
    TableVerifier,
    Verifier,
    read_sheet,
    splitter,
    write_sheet,
)
from fairlead.probes.labelled import load_answers, save_claims

CLAIMS, SHEET = "claims.jsonl", "sheet.jsonl"


def claims_of(
    answers: str | Path,
    *,
    out: str | Path,
    split: str | None = None,
    verify: str = "sheet",
    evidence: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Split answers into claims, have them verified, write `claims.jsonl`.

    Args:
        answers: JSONL with prompts and responses; claims that a record has already are kept as they are.
        out: Run folder.
        split: Language model that finds the claims; every sentence is one otherwise.
        verify: `table:FILE`, `llm:NAME`, `sheet` (written, to be filled in), `sheet:FILE`, `ask` or `none`.
        evidence: Texts for `llm`.
        overwrite: Replace a finished run.

    Raises:
        ConfigError: Unknown verifier, or `llm` without evidence.
        DataError: A broken line.
        LLMError: An endpoint failed.
    """
    verifier = _verifier(verify, evidence)
    settings = {"split": split, "verify": verify, "evidence": None if evidence is None else str(evidence)}
    with Run.start(
        out,
        study="probe claims",
        config=settings,
        inputs={"answers": sha256_file(answers)},
        overwrite=overwrite,
    ) as run:
        spent = Cost()
        cut = splitter(connect(split) if split else None, cost=spent)
        given = load_answers(answers)
        parts = [answer if answer.claims else cut(answer) for answer in track(given, "splitting")]
        found = [part if isinstance(part, ClaimedAnswer) else part.answer for part in parts]
        dropped = sum(len(part.dropped) for part in parts if not isinstance(part, ClaimedAnswer))
        if dropped:
            say(f"note: {dropped} quotations do not stand in their answers and were left out")
        if verifier is not None:
            found = [verifier.verify(answer) for answer in track(found, "verifying")]
        elif verify.startswith("sheet:"):
            found = read_sheet(found, verify.removeprefix("sheet:"))
        save_claims(found, run.path(CLAIMS))
        sheet = verify == "sheet" and write_sheet(found, run.path(SHEET)) > 0
        labels = Counter(str(claim.label) for answer in found for claim in answer.claims)
        cost: dict[str, Any] = asdict(verifier.cost) if verifier is not None else {}
        if split:
            cost["splitting"] = {"calls": spent.calls, "tokens": spent.tokens}
        facts: dict[str, Any] = {
            "num_answers": len(found),
            "num_claims": sum(labels.values()),
            "num_dropped": dropped,
            "labels": dict(sorted(labels.items())),
            "cost": cost,
        }
        run.record["summary"] = facts
    return {**facts, "file": run.final / CLAIMS, "sheet": run.final / SHEET if sheet else None}


def named_verifier(verify: str, *, evidence: str | Path | None = None) -> Verifier | None:
    """The verifier `table:FILE`, or `llm:NAME` with evidence; None for any other name.

    Raises:
        ConfigError: `llm` without evidence.
        DataError: A broken table.
    """
    kind, _, name = verify.partition(":")
    if kind == "table" and name:
        return TableVerifier.read(name)
    if kind == "llm" and name:
        if evidence is None:
            raise ConfigError("a language model verifies against your texts. Next: pass --evidence FOLDER.")
        return EvidenceVerifier(connect(name), Evidence.read(evidence))
    return None


def _verifier(verify: str, evidence: str | Path | None) -> Verifier | None:
    found, (kind, _, name) = named_verifier(verify, evidence=evidence), verify.partition(":")
    if found is not None:
        return found
    if verify == "ask":
        return HumanVerifier()
    if verify in ("sheet", "none") or (kind == "sheet" and name):
        return None
    raise ConfigError(
        f"verify is {verify!r}. Next: use table:FILE, llm:NAME, sheet, sheet:FILE, ask or none."
    )
