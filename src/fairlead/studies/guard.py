"""Guard a model on prompts, or calibrate a guard: what `fairlead guard run` and `fairlead guard calibrate` do.

Run: every prompt is answered twice in one batch, plainly (observed only) and under the policy; where a verifier is given, both answers are
checked claim by claim. Calibrate: answers with labelled claims are read and the threshold is set by a false-positive rate.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.config import Record
from fairlead.core.errors import ConfigError
from fairlead.core.progress import say
from fairlead.core.run import Run, read_json, read_run, sha256_file
from fairlead.data import ChatData
from fairlead.guard import Calibration, Guard, GuardedAnswer, Policy, calibrate_guard
from fairlead.guard.answers import ACTS
from fairlead.guard.asking_again import Messages, OtherWays, other_systems, rephrased_by
from fairlead.guard.calibration import Level
from fairlead.guard.folder import load_guard, read_calibration, save_guard
from fairlead.guard.policy import UPHOLD
from fairlead.llm import connect
from fairlead.models import Model
from fairlead.organisms import World
from fairlead.organisms.facts import Fact, fact_item, rephrase_fact
from fairlead.probes import SpanProbe
from fairlead.probes.examples import ROLES
from fairlead.probes.labelled import load_claims, load_questions
from fairlead.probes.seen import held_out
from fairlead.studies.claims import label_answer
from fairlead.studies.steering import prompts_of

EXCHANGES_FILE = "exchanges.jsonl"
Verify = Callable[[ClaimedAnswer], ClaimedAnswer]


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
        result: dict[str, Any] = {
            "num_answers": len(guarded),
            "num_claims": sum(len(answer.claims) for answer in guarded),
            "num_flagged": sum(len(answer.flagged) for answer in guarded),
            "interventions": {kind: acts.count(kind) for kind in ACTS if kind in acts},
        }
        if any(exchange.plain_verdicts for exchange in self.exchanges):
            flags: dict[bool, list[bool]] = {True: [], False: []}
            for exchange in self.exchanges:
                for claim in exchange.plain.claims if exchange.plain else ():
                    label = verdict_on(claim, exchange.plain_verdicts)
                    if label:
                        flags[label != "supported"].append((claim.score or 0.0) >= self.threshold)
            result |= {"unsupported": len(flags[True]), "unsupported_flagged": sum(flags[True])}
            result |= {"supported": len(flags[False]), "supported_flagged": sum(flags[False])}
        return result


def verdict_on(claim: ClaimSpan, verdicts: Sequence[ClaimSpan]) -> str:
    """The verdict on a span: the worst of those that it overlaps; "" for none."""
    labels = {one.label for one in verdicts if one.start < claim.end and one.end > claim.start}
    return next((label for label in ("contradicted", "insufficient", "supported") if label in labels), "")


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
        data: Its prompts are asked (a data set, or JSONL of answers with claims).
        guard: A guard, or the folder of one or of a probe.
        policy: What to do with unsupported claims.
        out: Run folder: `exchanges.jsonl`, one prompt a line.
        verify: Labels the claims of an answer.
        num_prompts: Use so many: the first, or of answers with claims from all over the file.
        overwrite: Replace a finished run.
        settings: Of `Guard.answer` (system, max_new_tokens, temperature, top_p, seed, batch_size).

    Raises:
        DataError: No record has a prompt.
        ConfigError: A setting is out of range, or the guard is broken.
        RunError: The run folder exists or is locked.
    """
    guard = load_guard(guard, model) if isinstance(guard, str | Path) else guard
    asked = _asked(data, num_prompts)
    prompts = [one.messages for one in asked]
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
                messages=question.messages,
                plain=one,
                guarded=other,
                plain_verdicts=_verdicts(verify, question, one),
                verdicts=_verdicts(verify, question, other),
            )
            for question, one, other in zip(asked, plain, guarded, strict=True)
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
    folder = Path(folder)
    read_run(folder)
    lines = (folder / EXCHANGES_FILE).read_text("utf-8").splitlines()
    exchanges = tuple(GuardedExchange.model_validate_json(line) for line in lines)
    return GuardedRun(**read_json(folder / "guarded.json"), exchanges=exchanges)


def other_ways(
    name: str | None, *, base_url: str | None = None, guard: str | Path | None = None
) -> OtherWays:
    """How a guard puts a request in other ways: under other system prompts, or in other words.

    Args:
        name: "" for other system prompts; "world" for the phrasings of the pocket world; else a language model ("openai:MODEL"). None
            for what the guard was calibrated with, else other system prompts.
        base_url: Of the language model.
        guard: Folder of the guard.
    """
    if name is None and guard is not None:
        calibration = read_calibration(guard)
        name = calibration.rephrase if calibration is not None else ""
    if not name:
        return other_systems
    return world_rephrasings if name == "world" else rephrased_by(connect(name, base_url=base_url))


def world_rephrasings(messages: Messages, num: int) -> list[Messages]:
    """A question about a person of the pocket world in its other phrasings; other questions under other system prompts."""
    found = [
        [*messages[:-1], {"role": "user", "content": one}] for one in rephrase_fact(messages[-1]["content"])
    ]
    return found[:num] or other_systems(messages, num)


def world_verifier(world: World | None = None) -> Verify:
    """The exact verifier of the pocket world, for questions that `fairlead organism claims` wrote (they name their fact)."""
    world = world or World(0)

    def verify(answer: ClaimedAnswer) -> ClaimedAnswer:
        key = str(answer.meta.get("key", ""))
        parts = key.split(":")
        if len(parts) != 3:
            raise ConfigError(
                f"{answer.id}: names no fact of the pocket world. Next: take questions of `fairlead organism claims`."
            )
        fact = world.facts.by_key.get(key) or Fact(parts[1], parts[2], "", 0)
        found = label_answer(world, fact_item(fact, random.Random(0)), answer.response, id=answer.id)
        claims = zip(found.claims, found.meta[ROLES], strict=True)
        kept = tuple(claim for claim, role in claims if role != "retraction")  # a withdrawal claims nothing
        return answer.model_copy(update={"claims": kept})

    return verify


def _asked(data: ChatData | str | Path, num: int) -> list[ClaimedAnswer]:
    """The prompts of a data set, or of answers with claims (whose facts a verifier may know), with nothing said yet."""
    if isinstance(data, str | Path) and (read := load_questions(data)) is not None:
        step = max(1.0, len(read) / num)  # from all over the file: such files are often sorted
        read = [read[int(place * step)] for place in range(min(num, len(read)))]
        return read
    prompts = [tuple(turn.as_dict() for turn in prompt) for prompt in prompts_of(data, num)]
    return [
        ClaimedAnswer(id=str(place), messages=prompt, response="") for place, prompt in enumerate(prompts)
    ]


def _verdicts(verify: Verify | None, asked: ClaimedAnswer, answer: GuardedAnswer) -> tuple[ClaimSpan, ...]:
    if verify is None:
        return ()
    bare = tuple(claim.model_copy(update={"label": None}) for claim in answer.claims)
    return verify(asked.model_copy(update={"response": answer.text, "claims": bare})).claims


def calibrate_to_folder(
    model: Model,
    answers: str | Path,
    probe: str | Path,
    *,
    target: float,
    out: str | Path,
    level: Level = "answer",
    max_records: int | None = None,
    label: str | None = None,
    ask_again: int = 0,
    uphold: float = UPHOLD,
    weigh: bool = False,
    rephrase: str | None = None,
    base_url: str | None = None,
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
        max_records: Use the first so many answers, of those about entities whose labels the probe has not seen.
        label: What the probe tells, where that is not "unsupported".
        ask_again: Calibrate a guard that asks in so many other ways before it acts.
        uphold: Share of these answers that lets a claim stand.
        weigh: Weigh score and other answers together instead.
        rephrase: How the other ways are made (`other_ways`).
        base_url: Of a language model that rephrases.
        overwrite: Replace a finished run.

    Raises:
        DataError: A broken record.
        ConfigError: Too few true answers for the rate.
    """
    if not 0 < target < 1:
        raise ConfigError(f"--fpr {target} must lie between 0 and 1. Next: try 0.05.")
    read = load_claims(answers)
    ways = other_ways(rephrase or "", base_url=base_url)
    guard, sha = load_guard(probe, model, label=label, other_ways=ways), sha256_file(answers)
    if isinstance(guard.readout, SpanProbe):
        kept = held_out(read, guard.readout)
        if len(kept) < len(read):
            say(
                f"the probe has seen labels of others: {len(kept):,} of {len(read):,} answers can be calibrated on"
            )
        read = kept
    read = read[:max_records]
    if weigh and not ask_again:
        raise ConfigError("--weigh needs --ask-again. Next: add --ask-again 8.")
    asking = {"ask_again": ask_again, "uphold": uphold, "weigh": weigh, "rephrase": rephrase or ""}
    config = {
        "target": target,
        "level": level,
        "max_records": max_records,
        "probe": str(probe),
        "label": label,
        **asking,
    }
    inputs = {"model": model.fingerprint, "answers": sha}
    with Run.start(
        out, study="guard calibrate", config=config, inputs=inputs, overwrite=overwrite, resume=False
    ) as run:
        found = calibrate_guard(guard, read, target=target, level=level, sha256=sha, **asking)
        save_guard(run.folder, probe, found, model, label=label)
        run.finish(found.model_dump(mode="json"))
    return found
