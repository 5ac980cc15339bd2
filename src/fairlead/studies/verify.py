"""Verify a training: skill, leak, recoverability, general loss, predictions, monitorability, beside the start model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.errors import ConfigError, RunError
from fairlead.core.progress import say
from fairlead.core.records import Menu, Plan
from fairlead.core.results import Measure, Verification
from fairlead.core.run import read_json, read_run, write_json
from fairlead.data import ChatData, Row, load_data, load_suite
from fairlead.data.suite import Prompt, Suite
from fairlead.studies.resolvers import resolvers_for
from fairlead.studies.train import find_dictionary
from fairlead.training import TrainedRun, load_run
from fairlead.training.verification import (
    Predicted,
    ProbeData,
    Resolvers,
    make_probe_data,
    measure_answers,
    measure_dictionary,
    measure_losses,
    measure_predictions,
    measure_probes,
)

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model

VERIFICATION_FILE = "verification.json"
MENU_FILE = "menu.json"


@dataclass(frozen=True)
class Reference:
    """What the start model said, made once for all models that are compared with it.

    Attributes:
        answers: Its answers by prompt.
        probe_data: Its answers with and without each trait.
        measures: Its own measures.
    """

    answers: Mapping[Prompt, str]
    probe_data: ProbeData
    verification: Verification


def verify(
    run: TrainedRun | Model | str | Path,
    *,
    suite: Suite | str | Path | None = None,
    base: Model | None = None,
    data: ChatData | str | Path | None = None,
    neutral: ChatData | str | Path | None = None,
    menu: Menu | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    plan: Plan | None = None,
    reference: Reference | None = None,
    resolvers: Resolvers | None = None,
    max_new_tokens: int = 32,
    write: bool = True,
) -> Verification:
    """Measure a trained model.

    Args:
        run: A training run (or its folder), or a model.
        suite: What to measure (or its file); made of the plan's spec, `data` and `neutral` where None.
        base: The start model; loaded from the run's record where None.
        data: Rows on the topic that were NOT trained on, for the default suite.
        neutral: Rows on other topics, for the default suite.
        menu: The preview to compare with; the plan's where None.
        dictionary: For monitorability and predictions; the plan's where None.
        plan: For verdicts and the default suite; the run's where None.
        reference: What the start model said; made where None and the start model is known.
        resolvers: Ground truth of an organism, for suites that need it; found by the suite's needs where None.
        max_new_tokens: Longest answer.
        write: Write `verification.json` into the run's folder.

    Raises:
        ConfigError: There is nothing to make a suite of, or it needs an organism that is not known.
        RunError: The run is unfinished, or its start model is gone.
    """
    run = load_run(run) if isinstance(run, str | Path) else run
    trained = run if isinstance(run, TrainedRun) else None
    model = run.load_model() if isinstance(run, TrainedRun) else run
    plan = plan or (trained.plan if trained is not None else None)
    if base is None and trained is not None:
        base = trained.load_base()
    suite = resolve_suite(suite, plan, data=data, neutral=neutral)
    resolvers = resolvers or resolvers_for(suite)
    notes = [*suite.notes, *(trained.notes if trained is not None else ())]

    say(f"verify: {trained.arm if trained is not None else model.name}")
    measures, samples, answers = measure_answers(
        model, suite, resolvers=resolvers, max_new_tokens=max_new_tokens
    )
    measures |= measure_losses(model, suite)
    if base is not None and reference is None:
        reference = make_reference(base, suite, resolvers=resolvers, max_new_tokens=max_new_tokens)
    found = find_dictionary(plan, dictionary)
    if found is not None:
        measures |= measure_dictionary(model, found, neutral_rows_of(suite))
    predicted = Predicted((), None, None)
    if base is not None and reference is not None:
        notes += reference.probe_data.notes
        measures |= measure_probes(
            model, base, reference.probe_data, site=found.site if found is not None else None
        )
        preview = resolve_menu(menu, plan)
        if preview is not None and found is not None:
            prompts = suite.domain_prompts or [item.prompt for skill in suite.skills for item in skill.items]
            openings = [opening for check in suite.traits for opening in check.openings]
            if openings:  # plain text tells its contexts apart: read all of them
                prompts = list(dict.fromkeys([*prompts, *suite.neutral_prompts, *openings]))
            predicted = measure_predictions(
                (model, answers), (base, reference.answers), preview, found, prompts, plan=plan
            )
    verification = Verification(
        model=str(trained.folder) if trained is not None else model.name,
        measures=measures,
        predictions=predicted.lines,
        prediction_spearman=predicted.rank,
        rehearsal_spearman=predicted.rehearsal_rank,
        samples=samples,
        notes=tuple(dict.fromkeys(notes)),
    )
    if write and trained is not None:
        write_json(trained.folder / VERIFICATION_FILE, verification.model_dump(mode="json"))
    return verification


def make_reference(
    start: Model, suite: Suite, *, resolvers: Resolvers | None = None, max_new_tokens: int = 32
) -> Reference:
    """Measure the start model and keep what it said."""
    resolvers = resolvers or resolvers_for(suite)
    measures, samples, answers = measure_answers(
        start, suite, resolvers=resolvers, max_new_tokens=max_new_tokens
    )
    measures |= measure_losses(start, suite)
    probe_data = make_probe_data(start, suite, resolvers=resolvers, max_new_tokens=max_new_tokens)
    verification = Verification(
        model=start.name,
        measures=measures,
        samples=samples,
        notes=tuple(dict.fromkeys([*suite.notes, *probe_data.notes])),
    )
    return Reference(answers, probe_data, verification)


def base_verification(
    start: Model, reference: Reference, suite: Suite, *, dictionary: Dictionary | None = None
) -> Verification:
    """The start model's measures, with those of its own probes and dictionary."""
    measures: dict[str, Measure] = dict(reference.verification.measures)
    site = dictionary.site if dictionary is not None else None
    measures |= measure_probes(start, start, reference.probe_data, site=site)
    if dictionary is not None:
        measures |= measure_dictionary(start, dictionary, neutral_rows_of(suite))
    return reference.verification.model_copy(update={"measures": measures})


def resolve_suite(
    suite: Suite | str | Path | None,
    plan: Plan | None,
    *,
    data: ChatData | str | Path | None = None,
    neutral: ChatData | str | Path | None = None,
) -> Suite:
    """The suite that was given, or a default one.

    Raises:
        ConfigError: There is no suite and no plan to make one of.
    """
    if isinstance(suite, Suite):
        return suite
    if suite is not None:
        return load_suite(suite)
    if plan is None:
        raise ConfigError(
            "there is nothing to measure by. Next: pass a suite, or a run that was trained with a plan."
        )
    from fairlead.data import suite_from

    data = load_data(data) if isinstance(data, str | Path) else data
    neutral = load_data(neutral) if isinstance(neutral, str | Path) else neutral
    return suite_from(plan.spec, data, neutral=neutral)


def resolve_menu(menu: Menu | str | Path | None, plan: Plan | None) -> Menu | None:
    """The menu that was given, or the one that the plan was decided on; None where it is gone.

    Raises:
        RunError: A menu was given and cannot be read.
    """
    if isinstance(menu, Menu):
        return menu
    path = menu if menu is not None else (plan.menu_path if plan is not None else None)
    if path is None:
        return None
    file = Path(path) / MENU_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        if menu is not None:
            raise RunError(f"{path}: no menu there. Next: give the folder of a preview.")
        return None
    return Menu.model_validate(read_json(file))


def neutral_rows_of(suite: Suite) -> list[Row]:
    """The suite's neutral chats as rows (its Keep examples where it has none)."""
    return [chat.row for chat in (suite.neutral_chats or suite.keep_chats)]


def load_verification(folder: str | Path) -> Verification:
    """The verification in a run folder.

    Raises:
        RunError: There is none.
    """
    read_run(folder)
    return Verification.model_validate(read_json(Path(folder) / VERIFICATION_FILE))
