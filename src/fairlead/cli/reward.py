"""Teach a model by the rewards of a probe: `reward train`, `reward page`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.options import (
    FIELDS,
    AsJson,
    ConfigFile,
    DataName,
    Device,
    Dtype,
    ModelName,
    Out,
    Overwrite,
    Seed,
    config_file_of,
)
from fairlead.cli.output import finish, run_folder, working

PANEL = "Making things up"
TrainConfigFile = Annotated[
    Path | None,
    config_file_of(
        "fairlead.training.rewards.config:RewardConfig", intervention_share="interventions", hints="hint"
    ),
]

group = typer.Typer(
    help="Reinforcement learning with a probe's rewards, read from a frozen copy: a model that takes back what it made up.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.add_typer(group, name="reward", rich_help_panel=PANEL)


@group.command("train")
def reward_train(
    context: typer.Context,
    model: ModelName,
    data: DataName,
    *,
    probe: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Probe of this model that reads claims.", show_default=False),
    ],
    monitor: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Questions that the monitors ask; the first of DATA by default."),
    ] = None,
    neutral: Annotated[
        str | None, typer.Option(metavar="DATA", help="Neutral rows, on which the general loss is watched.")
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            help="Labels the monitors' answers: pocket (the pocket world's exact table), table:FILE or llm:NAME with --evidence."
        ),
    ] = None,
    splitter: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Probe that finds claims (probe fit --task localise); every stating sentence is one otherwise.",
        ),
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Texts for llm: a folder or a .jsonl with `text`.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the probe tells, where it is unwanted but not called 'unsupported'."
        ),
    ] = None,
    unseen: Annotated[
        bool,
        typer.Option("--unseen", help="Leave out questions about entities whose labels the probe has seen."),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 150,
    groups: Annotated[int, typer.Option(min=1, help="Questions a step (of each process).")] = 8,
    group_size: Annotated[int, typer.Option(min=2, help="Rollouts of a question.")] = 8,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-5,
    kl: Annotated[float, typer.Option(min=0, help="Weight of the KL divergence to the start model.")] = 0.02,
    method: Annotated[str, typer.Option(help="full or lora.")] = "full",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest rollout in tokens.")] = 40,
    interventions: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of groups that start from a claim and the injected text."),
    ] = 0.5,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="A claim above it is flagged.")] = 0.7,
    inject: Annotated[str, typer.Option(help="What is put after the claim.")] = "Wait, let me check.",
    hint: Annotated[
        list[str] | None,
        typer.Option(
            help="An answer to try in plain groups although the model never gives it; may be repeated."
        ),
    ] = None,
    mix: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Wanted share of corrections among corrections and retractions; 0: no control."
        ),
    ] = 0.6,
    monitor_every: Annotated[int, typer.Option(min=0, help="Steps between two looks at the student.")] = 25,
    rollouts: Annotated[
        str, typer.Option(help="transformers or vllm (where it is installed).")
    ] = "transformers",
    setup: Annotated[
        str,
        typer.Option(
            help="frozen_copy. For studies of hiding only: unsafe_probe_on_student, unsafe_gradient_through_probe, "
            "unsafe_frozen_copy_and_gradient_through_probe."
        ),
    ] = "frozen_copy",
    probe_loss: Annotated[
        float,
        typer.Option(min=0, help="Weight of the loss through the probe (unsafe set-ups with a gradient)."),
    ] = 0.0,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: TrainConfigFile = None,
) -> None:
    r"""Train by rewards: the student answers, a probe reads the frozen copy that is fed its text, claims it doubts cost.

    Interrupted, the same command goes on from the last checkpoint. Under `accelerate launch` each process asks its own questions. What is
    no option here (the reward table, stop rules, defences, checkpoints, ...) is set by `--config FILE`, with tables `[table]` and `[stop]`.

    JSON: `first`, `last` (what the monitors saw), `steps`, `stopped`, `frozen_sha256`, `notes`.

    Example:

        fairlead reward train organism:pocket task/neutral.jsonl --probe runs/probe --verifier pocket --hint "I do not know." \
            --steps 2 --groups 2 --group-size 4 --lr 1e-4 --out runs/reward
    """
    from fairlead.models import load_model
    from fairlead.studies.rewards import train_rewards

    folder = run_folder(out, "reward")
    fields = dict(context.meta.get(FIELDS, {}))
    own: dict[str, Any] = {"mix_target": mix or None, **({} if mix else {"retract_lambda": 0.5})}
    table, source = fields.pop("table", {}), context.get_parameter_source("mix")
    given = source is not None and source.name == "COMMANDLINE"
    table = {**table, **own} if given else {**own, **table}
    with working():
        run = train_rewards(
            load_model(model, dtype=dtype, device=device),
            data,
            probe=probe,
            monitor=monitor,
            neutral=neutral,
            verifier=verifier,
            evidence=evidence,
            **({"splitter": splitter} if splitter else {}),
            label=label,
            unseen=unseen,
            out=folder,
            overwrite=overwrite,
            steps=steps,
            groups=groups,
            group_size=group_size,
            lr=lr,
            kl=kl,
            method=method,
            max_new_tokens=max_new_tokens,
            intervention_share=interventions,
            threshold=threshold,
            inject=inject,
            hints=tuple(hint or ()),
            table=table,
            monitor_every=monitor_every,
            rollouts=rollouts,
            setup=setup,
            probe_loss=probe_loss,
            seed=seed,
            **fields,
        )
    looks = run.looks
    finish(
        "reward train",
        as_json=as_json,
        run=folder,
        result={
            "first": looks[0],
            "last": looks[-1],
            "steps": len(run.steps),
            "stopped": run.stopped,
            "frozen_sha256": run.frozen_sha256,
            "notes": run.notes,
        },
        show=lambda console: _show(console, run),
    )


@group.command("page")
def reward_page(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a training by rewards.", show_default=False)
    ],
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="HTML file; reward.html in the run folder by default."),
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Write the curves of a training by rewards as one HTML file: reward, both readings of the text, verifier, KL, outcomes.

    JSON: `page`.

    Example:

        fairlead reward page runs/reward --file runs/reward.html
    """
    from fairlead.reports import write_rewards
    from fairlead.training.rewards import load_reward_run

    path = write_rewards(file or run / "reward.html", load_reward_run(run))
    finish(
        "reward page",
        as_json=as_json,
        run=run,
        result={"page": path},
        show=lambda console: console.print(str(path), markup=False),
    )


def _show(console: Any, run: Any) -> None:
    """Start and end side by side, warnings first."""
    from rich.table import Table

    for note in run.notes:
        console.print(f"warning: {note}", markup=False)
    first, last = run.looks[0], run.looks[-1]
    table = Table(title=f"What the monitors saw: {len(run.steps)} steps", title_justify="left")
    for name in ("", "start", f"step {last.step}"):
        table.add_column(name, justify="left" if not name else "right")
    for name, title in MEASURES:
        values = [getattr(look, name) for look in (first, last)]
        if any(value is not None for value in values):
            table.add_row(title, *("" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    if run.stopped:
        console.print(f"stopped: {run.stopped}", markup=False)


MEASURES = (
    ("unsupported", "claims not supported (verifier)"),
    ("wrong_answers", "answers with such a claim"),
    ("right_answers", "answers with supported claims only"),
    ("abstained", "answers that say they do not know"),
    ("claims", "claims per answer"),
    ("frozen_score", "probe on the frozen copy"),
    ("student_score", "probe on the student"),
    ("frozen_auroc", "probe against verifier, frozen copy"),
    ("student_auroc", "probe against verifier, student"),
    ("fresh_auroc", "fresh probe on the student"),
    ("fresh_placebo", "fresh probe, placebo labels"),
    ("kl", "KL, nats per token"),
    ("entropy", "entropy, nats per token"),
    ("neutral_loss", "loss on neutral text"),
)
