"""Train a model on data under a plan: resolve the controls, train through TRL, save a replayable run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import ConfigError, DictionaryError
from fairlead.core.progress import say
from fairlead.core.records import Plan
from fairlead.core.run import sha256_file, sha256_json
from fairlead.data import ChatData, Row, Suite, as_rows, load_data, load_suite
from fairlead.studies.resolvers import resolvers_for
from fairlead.training import TrainConfig, TrainedRun, fit, load_run, resolve
from fairlead.training.checkups import CheckupPlan
from fairlead.training.processes import join, shared_run
from fairlead.training.recipes import ControlsLike
from fairlead.training.trained import PLAN_FILE, TRAINING_FILE

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model


def train(
    model: Model | str | Path,
    data: ChatData | str | Path,
    plan: Plan | None = None,
    *,
    out: str | Path,
    controls: ControlsLike = "recipe",
    anchor: bool | None = None,
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 5e-4,
    method: str = "full",
    seed: int = 0,
    neutral: ChatData | Sequence[Row] | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    cache: str | Path | None = None,
    suite: Suite | str | Path | None = None,
    verify_at: Collection[int] = (),
    resume: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> TrainedRun:
    """Train a copy of a model and save it as a run.

    ```python
    run = fl.train(model, data, plan, out="runs/first", controls="recipe", neutral=neutral)
    ```

    Args:
        model: The start model, or its name or folder.
        data: The data set, or its file.
        plan: Decisions and spec; None only for trainings without controls that need them.
        out: Run folder.
        controls: A recipe ("recipe", "plain", "inoculation", ...), a control, or a list of names and settings
            ("explain_away(strength=0.5)", "my_controls.py:MyControl"); "auto" takes those that `plan_controls` chose.
        anchor: True adds the anchor, False removes it, None leaves it to the recipe.
        steps: Optimizer steps.
        batch_size: Data rows per step.
        lr: Peak learning rate.
        method: "full" or "lora".
        seed: Of everything random.
        neutral: Neutral rows for the anchor (and for counterparts); generic prompts where None.
        dictionary: For observation; the plan's own where None.
        cache: Folder in which offsets and references are kept for further runs; none are kept where None.
        suite: What `verify_at` measures (or its file).
        verify_at: Steps after which the student is measured with the suite, beside the training (`TrainedRun.checkups`).
        resume: Continue an unfinished run of the same settings.
        overwrite: Replace a finished run.
        settings: Further fields of `TrainConfig`.

    Raises:
        ConfigError: Unknown recipe, control or setting.
        RunError: The run folder exists, is locked or belongs to other settings.
        TrainingError: A control lacks what it needs, or the loss is not finite.
        DictionaryError: The plan's dictionary is gone, and pressure is to be observed.
    """
    from fairlead.models import load_model

    model = load_model(model) if isinstance(model, str | Path) else model
    data = load_data(data) if isinstance(data, str | Path) else data
    arm = resolve(controls, anchor=anchor, plan=plan)
    config = TrainConfig.make(
        settings,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        method=method,
        seed=seed,
        controls=arm.controls,
        use_data=arm.use_data,
    )
    return train_config(
        model,
        data,
        plan,
        out=out,
        config=config,
        arm=arm.name,
        neutral=neutral,
        dictionary=dictionary,
        cache=cache,
        checkups=plan_checkups(suite, verify_at, steps=steps),
        resume=resume,
        overwrite=overwrite,
    )


def plan_checkups(
    suite: Suite | str | Path | None, verify_at: Collection[int], *, steps: int
) -> CheckupPlan | None:
    """When to measure the student and how; None where it is not to be measured.

    Raises:
        ConfigError: Steps without a suite, or beyond the training's end.
    """
    if not verify_at:
        return None
    if suite is None:
        raise ConfigError("measuring while it trains needs a suite. Next: give the suite, too.")
    if not all(1 <= step <= steps for step in verify_at):
        raise ConfigError(f"verify_at is {sorted(verify_at)}; the training has steps 1 to {steps}.")
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    return CheckupPlan(frozenset(verify_at), suite, resolvers_for(suite))


def train_config(
    model: Model,
    data: ChatData,
    plan: Plan | None,
    *,
    out: str | Path,
    config: TrainConfig,
    arm: str,
    neutral: ChatData | Sequence[Row] | str | Path | None = None,
    dictionary: Dictionary | str | Path | None = None,
    cache: str | Path | None = None,
    checkups: CheckupPlan | None = None,
    resume: bool = True,
    overwrite: bool = False,
) -> TrainedRun:
    """`train` from settings that are resolved already (a replay's); `arm` is the name it goes by."""
    join()
    neutral_rows = as_neutral(neutral)
    neutral_hash = sha256_json([row.as_record() for row in neutral_rows]) if neutral_rows else ""
    sources = {
        "data": {"path": data.source, "sha256": data.sha256},
        "neutral": {"path": _source_of(neutral), "sha256": neutral_hash},
    }
    found = find_dictionary(plan, dictionary) if config.observe or _needs_dictionary(config) else None
    if found is None and plan is not None and plan.dictionary is not None and _reads(plan, config):
        raise DictionaryError(
            f"the plan's dictionary ({plan.dictionary}) is not there, and this training reads the pressure on concepts with it. Next: "
            "restore its folder, give dictionary=... (--dictionary), or leave observe off (--no-observe)."
        )
    if found is not None:
        sources["dictionary"] = {"path": found.source, "sha256": found.sha256}
    files = {Path(control.file) for control in config.controls if control.file is not None}
    sources |= {path.name: {"path": str(path), "sha256": sha256_file(path)} for path in sorted(files)}
    fingerprint = model.fingerprint
    inputs = {
        "model": fingerprint,
        "data": data.sha256,
        "plan": sha256_json(plan.model_dump(mode="json")) if plan is not None else "",
        "neutral": neutral_hash,
        "dictionary": found.sha256 if found is not None else "",
        **{path.name: sources[path.name]["sha256"] for path in files},
    }
    about = {"arm": arm, "model": model.name, "data": data.source, **config.model_dump(mode="json")}
    with shared_run(
        out, study="train", config=about, inputs=inputs, seed=config.seed, resume=resume, overwrite=overwrite
    ) as run:
        result = fit(
            model,
            data,
            plan,
            config=config,
            folder=run.folder,
            neutral=neutral_rows,
            dictionary=found,
            cache=Path(cache) if cache is not None else None,
            checkups=checkups,
            resume=run.resumed,
        )
        trained = TrainedRun(
            folder=run.final,
            base=model.name,
            base_fingerprint=fingerprint,
            arm=arm,
            method=config.method,
            controls=result.controls,
            plan=plan,
            notes=result.notes,
            seconds=result.seconds,
            config=config.model_dump(mode="json"),
            sources=sources,
        )
        run.write_json(TRAINING_FILE, trained.record())
        if plan is not None:
            run.write_json(PLAN_FILE, plan)
        run.finish({"loss": result.steps[-1].loss if result.steps else None, "steps": len(result.steps)})
    return load_run(run.final)


def _source_of(neutral: Any) -> str:
    if isinstance(neutral, ChatData):
        return neutral.source
    return str(neutral) if isinstance(neutral, str | Path) else ""


def as_neutral(neutral: ChatData | Sequence[Row] | str | Path | None) -> list[Row]:
    """Neutral rows of whatever was given."""
    if neutral is None:
        return []
    if isinstance(neutral, str | Path):
        neutral = load_data(neutral)
    return as_rows(neutral)


def find_dictionary(plan: Plan | None, dictionary: Dictionary | str | Path | None) -> Dictionary | None:
    """The dictionary that was given, or else the plan's; None (with a remark) where its folder is gone."""
    from fairlead.dictionaries import load_dictionary

    if dictionary is not None and not isinstance(dictionary, str | Path):
        return dictionary
    if dictionary is not None:
        return load_dictionary(dictionary)
    if plan is None or plan.dictionary is None:
        return None
    places = [Path(plan.dictionary)]
    if plan.menu_path is not None:
        places += [Path(plan.menu_path) / plan.dictionary, Path(plan.menu_path) / "dictionary"]
    for place in places:
        if place.is_dir():
            return load_dictionary(place)
    say(
        f"the plan's dictionary ({plan.dictionary}) is not there: concepts are not read. Next: name its folder (dictionary), "
        "or repeat the preview."
    )
    return None


def _reads(plan: Plan, config: TrainConfig) -> bool:
    """Whether a training reads concepts of the plan's dictionary."""
    read = {concept.id for concept in plan.concepts if concept.latents}
    watched = config.observe and any(decision.concept in read for decision in plan.avoided())
    return watched or _needs_dictionary(config)


def _needs_dictionary(config: TrainConfig) -> bool:
    return any(control.options.get("source") == "dictionary" for control in config.controls)
