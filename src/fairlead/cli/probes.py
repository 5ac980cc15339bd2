"""Is it making things up: `probe claims`, `probe fit`, `probe evaluate`, `probe score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.options import (
    FIELDS,
    AsJson,
    ConfigFile,
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
LabelledData = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="JSONL: answers with claims (`probe claims` and `organism claims` make them), or texts with `spans` or a `label`.",
        show_default=False,
    ),
]
ProbeFolder = Annotated[
    Path, typer.Argument(metavar="PROBE", help="Folder of a probe (RUN/probe).", show_default=False)
]
TaskName = Annotated[
    str,
    typer.Option(help="For answers with claims: classify (is it unsupported), localise, correct, retract."),
]
Positive = Annotated[
    str | None,
    typer.Option(metavar="LABEL", help="For other labels: the one that the probe shall tell from the rest."),
]
Tokens = Annotated[
    bool,
    typer.Option(
        "--tokens", help="Read token by token, text outside the spans is negative (of personal data, say)."
    ),
]
FitConfigFile = Annotated[Path | None, config_file_of("fairlead.probes.head:SpanProbeConfig", sites="site")]

group = typer.Typer(
    help="Probes that read from activations whether a claim is made up (or any other label of a stretch of text).",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the table of contents."""
    app.add_typer(group, name="probe", rich_help_panel=PANEL)


@group.command("claims")
def probe_claims(
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS", help="JSONL with `prompt` (or `messages`) and `response`.", show_default=False
        ),
    ],
    *,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="LLM",
            help="Language model that finds the claims (openai:NAME, scripted:FILE); every sentence is one otherwise.",
        ),
    ] = None,
    verify: Annotated[
        str,
        typer.Option(
            help="table:FILE (JSONL of claim and label), llm:NAME with --evidence, sheet (to fill in), sheet:FILE (filled in), ask, none."
        ),
    ] = "sheet",
    evidence: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Your texts: a folder or a .jsonl with `text`.")
    ] = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Split answers into claims and have each verified: supported, contradicted or insufficient.

    A language model as verifier reads the nearest passages of your evidence twice; where its two verdicts differ the claim is insufficient.

    JSON: `num_answers`, `num_claims`, `labels` (counts), `cost` (claims, calls, tokens, disagreements), `file`, `sheet`.

    Example:

        fairlead organism claims pocket --share 0.05 --out runs/claims

        fairlead probe claims runs/claims/claims.jsonl --verify sheet --out runs/sheet
    """
    from fairlead.cli.show import show_facts
    from fairlead.studies.verifying import claims_of

    folder = run_folder(out, "claims")
    with working():
        facts = claims_of(
            answers, split=split, verify=verify, evidence=evidence, out=folder, overwrite=overwrite
        )
    finish(
        "probe claims",
        as_json=as_json,
        run=folder,
        result=facts,
        show=lambda console: show_facts(console, facts),
    )


@group.command("fit")
def probe_fit(
    context: typer.Context,
    model: ModelName,
    data: LabelledData,
    *,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="linear (default), mean_difference, attention, span_max, lora. Repeatable: the best is kept."
        ),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            help="Where; repeatable. Residual stream after half and after all of the blocks by default."
        ),
    ] = None,
    confidence: Annotated[
        bool, typer.Option("--confidence/--no-confidence", help="Read the model's own confidence as well.")
    ] = True,
    task: TaskName = "classify",
    positive: Positive = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `dict harvest` wrote for these texts at the probe's sites: read in place of the model's passes."
        ),
    ] = None,
    tokens: Tokens = False,
    calibration: Annotated[str, typer.Option(help="auto, isotonic, platt, temperature, none.")] = "auto",
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: FitConfigFile = None,
) -> None:
    """Fit probes on labelled texts, calibrate them, and measure them beside every baseline on entities they have not seen.

    The run folder holds the best probe, `evaluation.json`, `scored.json` and the page `probe.html`. What is no option here (rank, kl, ramp,
    heads, epochs, shares, ...) is set by `--config FILE`.

    JSON: `probe` (its folder), `best`, `kinds`: for each `auroc`, `auroc_interval`, `ece`, `ece_before`, `baselines` (auroc and gain with
    its interval), `by`.

    Example:

        fairlead organism claims pocket --share 0.3 --out runs/labelled

        fairlead probe fit organism:pocket runs/labelled/claims.jsonl --kind linear --kind attention --out runs/probe
    """
    from fairlead.models import load_model
    from fairlead.probes import SpanProbeConfig
    from fairlead.reports.probe_page import write_probe_page
    from fairlead.studies.probes import PROBE, fit_probes

    folder = run_folder(out, "probe")
    settings = SpanProbeConfig.make(
        context.meta.get(FIELDS),
        sites=tuple(site) if site else None,
        confidence=confidence,
        calibration=calibration,
        seed=seed,
    )
    with working():
        found = fit_probes(
            load_model(model, dtype=dtype, device=device),
            data,
            out=folder,
            kinds=kind or ("linear",),
            task=task,  # type: ignore[arg-type]
            positive=positive,
            tokens=tokens,
            config=settings,
            store=store,
            overwrite=overwrite,
        )
        write_probe_page(folder / "probe.html", found)
    _finish("probe fit", found, folder, as_json=as_json, probe=folder / PROBE)


@group.command("evaluate")
def probe_evaluate(
    model: ModelName,
    probe: ProbeFolder,
    data: LabelledData,
    *,
    task: TaskName = "classify",
    positive: Positive = None,
    tokens: Tokens = False,
    any_model: Annotated[
        bool,
        typer.Option("--any-model", help="Read another model than the probe was fitted on (a trained one)."),
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Measure a saved probe on other labelled texts, on the entities that its split keeps for testing.

    JSON: as `fairlead probe fit`.

    Example:

        fairlead probe evaluate organism:pocket runs/probe runs/labelled/claims.jsonl --out runs/probe-again
    """
    from fairlead.models import load_model
    from fairlead.reports.probe_page import write_probe_page
    from fairlead.studies.probes import evaluate_probe

    folder = run_folder(out, "probe-evaluation")
    with working():
        found = evaluate_probe(
            load_model(model, dtype=dtype, device=device),
            probe,
            data,
            out=folder,
            task=task,  # type: ignore[arg-type]
            positive=positive,
            tokens=tokens,
            any_model=any_model,
            overwrite=overwrite,
        )
        write_probe_page(folder / "probe.html", found)
    _finish("probe evaluate", found, folder, as_json=as_json, probe=probe)


@group.command("score")
def probe_score(
    model: ModelName,
    probe: ProbeFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer.", show_default=False)],
    *,
    prompt: Annotated[str, typer.Option(help="What it answers.")] = "",
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Score one text: every sentence, and every token by itself.

    JSON: `sentences` (`start`, `end`, `text`, `score`), `tokens` (`text`, `score`).

    Example:

        fairlead probe score organism:pocket runs/probe "Naltidil keeps a dog." --prompt "Which pet does Naltidil have?"
    """
    from fairlead.models import load_model
    from fairlead.studies.probes import score_text

    with working():
        found = score_text(load_model(model, dtype=dtype, device=device), probe, text, prompt=prompt)
    facts = {
        "sentences": [
            {"start": a, "end": b, "text": text[a:b], "score": score} for a, b, _, score in found.stretches
        ],
        "tokens": [{"text": t, "score": s} for t, s in zip(found.tokens, found.scores, strict=True)],
    }

    def show(console: Any) -> None:
        for sentence in facts["sentences"]:
            console.print(f"{sentence['score']:.2f}  {sentence['text']}", markup=False)
        console.print(
            "  ".join(f"{t['text'].strip()} {t['score']:.2f}" for t in facts["tokens"]), markup=False
        )

    finish("probe score", as_json=as_json, run=None, result=facts, show=show)


def _finish(command: str, found: Any, folder: Path, *, as_json: bool, probe: Path) -> None:
    from fairlead.cli.show_probes import show_probes

    facts = {"probe": probe, "best": found.best, "kinds": found.records, "page": folder / "probe.html"}
    finish(
        command,
        as_json=as_json,
        run=folder,
        result=facts,
        show=lambda console: show_probes(console, found),
    )
