"""Guard a model on prompts, or calibrate a guard: what `fairlead guard run` and `fairlead guard calibrate` do.

Run: every prompt is answered twice in one batch, plainly (observed only) and under the policy; where a verifier is given, both answers are
checked claim by claim. Calibrate: answers with labelled claims are read and the threshold is set by a false-positive rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.config import Record, describe_validation
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.run import Run, sha256_file
from fairlead.data import ChatData
from fairlead.guard import Calibration, Guard, GuardedAnswer, Policy, calibrate_guard
from fairlead.guard.calibration import Level
from fairlead.guard.folder import load_guard, save_guard
from fairlead.models import Model
from fairlead.studies.steering import prompts_of

EXCHANGES_FILE = "exchanges.jsonl"
Verify = Callable[[Sequence[dict[str, str]], str], Sequence[ClaimSpan]]


class GuardedExchange(Record):
    """A prompt with its plain and its guarded answer.

    Attributes:
        messages: The prompt.
        plain: The answer as it would have been, observed only; None where nobody asked (a served answer).
        guarded: The answer under the policy.
        plain_verdicts: What the verifier says about the plain answer's claims; empty where none was asked.
        verdicts: The same of the guarded answer's.
    """

    messages: tuple[dict[str, str], ...]
    plain: GuardedAnswer | None = None
    guarded: GuardedAnswer
    plain_verdicts: tuple[ClaimSpan, ...] = ()
    verdicts: tuple[ClaimSpan, ...] = ()


class GuardedRun(Record):
    """What a guarded run found.

    Attributes:
        model: Its name.
        policy: What was done.
        threshold: Score from which claims are flagged.
        calibration: How the threshold was found; None for one that was simply given.
        exchanges: In the order of the prompts.
    """

    model: str
    policy: Policy
    threshold: float
    calibration: Calibration | None = None
    exchanges: tuple[GuardedExchange, ...]

    def summary(self) -> dict[str, Any]:
        """Counts over the answers."""
        guarded = [exchange.guarded for exchange in self.exchanges]
        acts = [act.kind for answer in guarded for act in answer.interventions]
        plain = [span for exchange in self.exchanges for span in exchange.plain_verdicts]
        found = [span for exchange in self.exchanges for span in exchange.verdicts]
        result: dict[str, Any] = {
            "num_answers": len(guarded),
            "num_claims": sum(len(answer.claims) for answer in guarded),
            "num_flagged": sum(len(answer.flagged) for answer in guarded),
            "interventions": {
                kind: acts.count(kind) for kind in ("flag", "retract", "correct", "abort") if kind in acts
            },
        }
        if plain or found:
            result["unsupported_plain"] = sum(bool(span.unsupported) for span in plain)
            result["unsupported_guarded"] = sum(bool(span.unsupported) for span in found)
        return result


def run_guard(
    model: Model,
    data: ChatData | str | Path,
    guard: Guard | str | Path,
    *,
    policy: Policy,
    out: str | Path,
    verify: Verify | None = None,
    num_prompts: int = 200,
    overwrite: bool = False,
    **settings: Any,
) -> GuardedRun:
    """Answer prompts plainly and guarded, and write both.

    Args:
        model: A causal model.
        data: Its prompts are asked.
        guard: A guard, or the folder of one or of a probe.
        policy: What to do with unsupported claims.
        out: Run folder: `exchanges.jsonl`, one prompt a line.
        verify: Labels the claims of an answer to a prompt.
        num_prompts: Use the first so many.
        overwrite: Replace a finished run.
        settings: Of `Guard.answer` (system, max_new_tokens, temperature, top_p, seed, batch_size).

    Raises:
        DataError: No record has a prompt.
        ConfigError: A setting is out of range, or the guard is broken.
        RunError: The run folder exists or is locked.
    """
    guard = load_guard(guard, model) if isinstance(guard, str | Path) else guard
    prompts = [[turn.as_dict() for turn in prompt] for prompt in prompts_of(data, num_prompts)]
    config = {
        "policy": policy.model_dump(mode="json"),
        "threshold": guard.threshold,
        "num_prompts": num_prompts,
        **settings,
    }
    inputs = {"model": model.fingerprint}
    with Run.start(
        out, study="guard run", config=config, inputs=inputs, overwrite=overwrite, resume=False
    ) as run:
        # prompt after prompt: both answers of one draw the same numbers where they are sampled
        plain = guard.answer(prompts, progress="plain answers", **settings)
        guarded = guard.answer(prompts, policy=policy, progress="guarded answers", **settings)
        exchanges = [
            GuardedExchange(
                messages=tuple(prompt),
                plain=one,
                guarded=other,
                plain_verdicts=tuple(verify(prompt, one.text)) if verify else (),
                verdicts=tuple(verify(prompt, other.text)) if verify else (),
            )
            for prompt, one, other in zip(prompts, plain, guarded, strict=True)
        ]
        found = GuardedRun(
            model=model.name,
            policy=policy,
            threshold=guard.threshold if policy.threshold is None else policy.threshold,
            calibration=guard.calibration,
            exchanges=tuple(exchanges),
        )
        with open(run.path(EXCHANGES_FILE), "w", encoding="utf-8") as handle:
            handle.writelines(exchange.model_dump_json() + "\n" for exchange in exchanges)
        run.write_json("guarded.json", found.model_dump(mode="json", exclude={"exchanges"}))
        run.finish(found.summary())
    return found


def read_guarded(folder: str | Path) -> GuardedRun:
    """The record of a guarded run.

    Raises:
        RunError: No such run, or it is broken.
    """
    from fairlead.core.run import read_json, read_run

    folder = Path(folder)
    read_run(folder)
    lines = (folder / EXCHANGES_FILE).read_text("utf-8").splitlines()
    exchanges = tuple(GuardedExchange.model_validate_json(line) for line in lines)
    return GuardedRun(**read_json(folder / "guarded.json"), exchanges=exchanges)


def read_claimed(path: str | Path, *, max_records: int | None = None) -> list[ClaimedAnswer]:
    """Answers with labelled claims from JSONL, one `ClaimedAnswer` a line.

    Raises:
        DataError: No such file, or a line is not one; names it.
    """
    path, found = Path(path), []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error}). Next: check the path.", source=str(path)) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(ClaimedAnswer.model_validate_json(line))
        except ValidationError as error:
            raise DataError(describe_validation(error, "answer"), source=str(path), line=number) from None
        if max_records is not None and len(found) == max_records:
            break
    if not found:
        raise DataError("holds no answers. Next: one answer with its claims a line.", source=str(path))
    return found


def calibrate_to_folder(
    model: Model,
    answers: str | Path,
    probe: str | Path,
    *,
    target: float,
    out: str | Path,
    level: Level = "answer",
    max_records: int | None = None,
    overwrite: bool = False,
) -> Calibration:
    """Set a probe's threshold by a false-positive rate and write the guard's folder.

    Args:
        model: A causal model.
        answers: JSONL of answers with labelled claims.
        probe: Folder of the probe.
        target: False-positive rate.
        out: Run folder.
        level: Rate of true answers, or of true claims.
        max_records: Use the first so many answers.
        overwrite: Replace a finished run.

    Raises:
        DataError: A broken record.
        ConfigError: Too few true answers for the rate.
    """
    if not 0 < target < 1:
        raise ConfigError(f"--fpr {target} must lie between 0 and 1. Next: try 0.05.")
    read = read_claimed(answers, max_records=max_records)
    guard, sha = load_guard(probe, model), sha256_file(answers)
    config = {"target": target, "level": level, "max_records": max_records, "probe": str(probe)}
    inputs = {"model": model.fingerprint, "answers": sha}
    with Run.start(
        out, study="guard calibrate", config=config, inputs=inputs, overwrite=overwrite, resume=False
    ) as run:
        found = calibrate_guard(guard, read, target=target, level=level, sha256=sha)
        source = Path(probe) / "probe" if (Path(probe) / "guard.json").is_file() else Path(probe)
        save_guard(run.folder, source, found, model)
        run.finish(found.model_dump(mode="json"))
    return found
