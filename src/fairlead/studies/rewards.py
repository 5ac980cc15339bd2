"""Train a model by the rewards of a probe: questions in, a student that was taught by a frozen copy out, and what the monitors saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.errors import ConfigError
from fairlead.core.nouns import SpanReadout
from fairlead.core.progress import say
from fairlead.core.run import sha256_file, sha256_json
from fairlead.data import ChatData, Row, encode, load_data
from fairlead.probes import load_span_probe, probe_folder
from fairlead.probes.labelled import load_questions
from fairlead.probes.seen import num_seen
from fairlead.probes.suitable import check_label
from fairlead.studies.train import as_neutral
from fairlead.training.processes import join, shared_run
from fairlead.training.rewards import (
    FreshProbe,
    Question,
    RewardConfig,
    RewardRun,
    Splitter,
    Verifier,
    fit_rewards,
    load_reward_run,
    questions_of,
    split_sentences,
)
from fairlead.training.rewards.trained import REWARD_FILE, STUDY

if TYPE_CHECKING:
    from fairlead.models import Model
    from fairlead.probes.claims import Verifier as ClaimVerifier

QuestionsLike = ChatData | Sequence[Question] | str | Path


def train_rewards(
    model: Model | str | Path,
    data: QuestionsLike,
    *,
    probe: SpanReadout | str | Path,
    out: str | Path,
    monitor: QuestionsLike | None = None,
    neutral: ChatData | Sequence[Row] | str | Path | None = None,
    splitter: Splitter | str | Path = split_sentences,
    verifier: Verifier | ClaimVerifier | str | None = None,
    evidence: str | Path | None = None,
    fresh: FreshProbe | None = None,
    label: str | None = None,
    unseen: bool = False,
    config: RewardConfig | None = None,
    resume: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> RewardRun:
    """Train a copy of a model by rewards and save it as a run.

    ```python
    run = fl.train_rewards(model, "questions.jsonl", probe="runs/probe", out="runs/reward", steps=150, lr=1e-4)
    ```

    Args:
        model: The start model (the frozen copy that the probe reads), or its name or folder.
        data: Questions: a data set with prompts, or its file.
        probe: Reads P(unsupported) of claims; a probe or its folder.
        out: Run folder.
        monitor: Questions that the monitors ask; the first of `data` where None.
        neutral: Neutral rows, on which the general loss is measured; none where None.
        splitter: Finds the claims of an answer; each stating sentence by default. The folder of a `localise` probe will do.
        verifier: Labels claims for the spot checks; "pocket" for the pocket world's, "table:FILE" or "llm:NAME" (see `as_verifier`).
        evidence: Texts for "llm".
        fresh: Fits a fresh probe for the monitors; one of the probe's own kind where None.
        label: What the probe tells, where it is unwanted but not called "unsupported".
        unseen: Leave out questions about entities whose labels the probe has seen.
        config: All settings at once.
        resume: Continue an unfinished run of the same settings.
        overwrite: Replace a finished run.
        settings: Fields of `RewardConfig` (over `config`).

    Raises:
        ConfigError: Unknown setting, a set-up that is not whole, or a probe that does not belong to the model.
        DataError: Rows without a question.
        RunError: The run folder exists, is locked or belongs to other settings.
        TrainingError: Too few questions, or a loss that is not finite.
    """
    from fairlead.models import load_model

    join()
    model = load_model(model) if isinstance(model, str | Path) else model
    splitter = as_splitter(splitter, model)
    check = as_verifier(verifier, splitter=splitter, evidence=evidence)
    questions, source = as_questions(data)
    asked = None if monitor is None else as_questions(monitor)[0]
    found = RewardConfig.make({**(config.model_dump() if config is not None else {}), **settings})
    readout, probe_name, probe_hash = as_readout(probe, model, label=label)
    if unseen:
        questions = [question for question in questions if not num_seen((question.entity,), readout)]
    notes = _notes(questions, readout)
    rows = as_neutral(neutral)
    encoded = encode(rows, model.tokenizer, max_length=model.max_length, on_long="drop") if rows else []
    about = {"model": model.name, "data": source, "probe": probe_name, **found.model_dump(mode="json")}
    inputs = {
        "model": model.fingerprint,
        "data": sha256_json([[q.id, list(q.messages)] for q in questions]),
        "monitor": sha256_json([[q.id, list(q.messages)] for q in asked or ()]),
        "neutral": sha256_json([row.as_record() for row in rows]) if rows else "",
        "probe": probe_hash,
    }
    with shared_run(
        out, study=STUDY, config=about, inputs=inputs, seed=found.seed, resume=resume, overwrite=overwrite
    ) as run:
        result = fit_rewards(
            model,
            questions,
            readout,
            config=found,
            folder=run.folder,
            monitor_questions=asked,
            splitter=splitter,
            verifier=check,
            neutral=encoded,
            fresh=fresh,
            resume=run.resumed,
        )
        trained = RewardRun(
            folder=run.final,
            base=model.name,
            base_fingerprint=inputs["model"],
            probe=probe_name,
            frozen_sha256=result.frozen_sha256,
            stopped=result.stopped,
            notes=(*notes, *result.notes),
            seconds=result.seconds,
            config=found,
        )
        run.write_json(REWARD_FILE, trained.record())
        last = result.looks[-1]
        run.finish({"steps": len(result.steps), "unsupported": last.unsupported, "stopped": result.stopped})
    return load_reward_run(run.final)


def _notes(questions: Sequence[Question], readout: SpanReadout) -> tuple[str, ...]:
    """What to say of questions whose people the probe has labels of: on them its rewards know the answer by heart."""
    num = num_seen((question.entity for question in questions), readout)
    if not num:
        return ()
    note = (
        f"{num:,} of {len(questions):,} questions are about entities whose labels fitted or calibrated the probe, where it is surer than "
        "elsewhere. Leave them out to see what the probe can teach (--unseen)."
    )
    say(f"note: {note}")
    return (note,)


def as_questions(data: QuestionsLike) -> tuple[list[Question], str]:
    """Questions and where they came from; of JSONL of answers, each question once.

    Raises:
        DataError: A row has no question.
    """
    if isinstance(data, str | Path):
        answered = load_questions(data)
        if answered is not None:
            asked = {
                sha256_json(list(one.messages)): Question(one.id, one.messages, one.entity, one.meta)
                for one in answered
            }
            return list(asked.values()), str(data)
        data = load_data(data)
    if isinstance(data, ChatData):
        return questions_of(data), data.source
    return list(data), "questions"


def as_readout(
    probe: SpanReadout | str | Path, model: Model, *, label: str | None = None
) -> tuple[SpanReadout, str, str]:
    """The probe, its name and its hash; checked against the model where it knows its own.

    Raises:
        ConfigError: It reads no spans, or tells something that is not unwanted.
        ModelError: It reads another model.
    """
    name, digest = "in memory", str(getattr(probe, "sha256", ""))
    if isinstance(probe, str | Path):
        folder = probe_folder(probe)
        name = str(probe)
        probe = load_span_probe(folder, model=model)
        digest = sha256_json(
            {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
        )
    if not isinstance(probe, SpanReadout):
        raise ConfigError(
            f"{name}: a {type(probe).__name__} reads no claims. Next: give a span probe (`fairlead probe fit`)."
        )
    check_label(probe, label, where=name)
    check = getattr(probe, "check", None)
    if callable(check):
        check(model)
    return probe, name, digest


def as_splitter(splitter: Splitter | str | Path, model: Model) -> Splitter:
    """A splitter as it is, or one that asks the `localise` probe in a folder.

    Raises:
        ConfigError: No probe there, or one that tells something else.
        ModelError: It reads another model.
    """
    if not isinstance(splitter, str | Path):
        return splitter
    from fairlead.probes.claims import ProbeSplitter

    found = ProbeSplitter(model, load_span_probe(splitter, model=model))
    return lambda question, response: found.claims(question.messages, response)


def as_verifier(
    verifier: Verifier | ClaimVerifier | str | None,
    *,
    splitter: Splitter = split_sentences,
    evidence: str | Path | None = None,
) -> Verifier | None:
    """A verifier by name, or any of the two kinds, as rewards ask it: of a question and an answer, for the answer's labelled claims.

    Args:
        verifier: "pocket", "table:FILE", "llm:NAME"; one of `fairlead.probes.claims`, which labels claims that were found; or a function
            of question and answer.
        splitter: Finds the claims that are to be labelled.
        evidence: Texts for "llm".

    Raises:
        ConfigError: Unknown name, or no evidence.
    """
    if verifier == "pocket":
        from fairlead.studies.pocket_claims import pocket_verifier

        return pocket_verifier()
    if isinstance(verifier, str):
        from fairlead.studies.verifying import named_verifier

        found = named_verifier(verifier, evidence=evidence)
        if found is None:
            raise ConfigError(
                f"unknown verifier '{verifier}'. Next: use pocket, table:FILE, llm:NAME, or pass a function in Python."
            )
        verifier = found
    label = getattr(verifier, "verify", None)
    if verifier is None or label is None:
        return cast("Verifier | None", verifier)

    def verify(question: Question, response: str) -> Sequence[ClaimSpan]:
        claims = tuple(splitter(question, response))
        answer = ClaimedAnswer(
            id=question.id,
            messages=question.messages,
            response=response,
            claims=claims,
            entity=question.entity,
        )
        return [claim for claim in label(answer).claims if claim.label is not None]

    return verify
