"""The guard: `guard calibrate`, `run`, `serve` and `view`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.options import AsJson, ConfigFile, DataName, Device, Dtype, ModelName, Out, Overwrite, Seed
from fairlead.cli.output import finish, run_folder, to_json, working

if TYPE_CHECKING:
    from rich.console import Console

PANEL = "Making things up"
group = typer.Typer(
    name="guard",
    help="Read a model while it talks, and act when it makes things up.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
ProbeFolder = Annotated[
    Path,
    typer.Option(
        "--probe", metavar="FOLDER", help="A probe, or a guard that was calibrated.", show_default=False
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="Score from which a claim is flagged; the calibrated one by default."
    ),
]
AskAgain = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=16,
        help="Before a claim is acted on, put the question in N other ways; what the answers repeat is upheld.",
        show_default="as calibrated, else 0",
    ),
]
Uphold = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of these answers that must repeat a claim.",
        show_default="as calibrated, else 0.66",
    ),
]
Rephrase = Annotated[
    str | None,
    typer.Option(
        help="Other ways: other words by a language model (openai:MODEL) or world; other system prompts by default.",
        show_default="as calibrated",
    ),
]
BaseUrl = Annotated[
    str | None, typer.Option(help="With --rephrase openai: the endpoint.", show_default=False)
]
AnyModel = Annotated[
    bool,
    typer.Option(
        "--any-model",
        help="Read a model that was trained from the probe's own; readings drift, so check them.",
    ),
]

Label = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="What the probe tells, where it is unwanted but not called 'unsupported'."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group to the table of contents."""
    app.add_typer(group, rich_help_panel=PANEL)


@group.command("calibrate")
def guard_calibrate(
    model: ModelName,
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help="JSONL of answers with labelled claims, best not those of the probe's fit.",
            show_default=False,
        ),
    ],
    *,
    probe: ProbeFolder,
    fpr: Annotated[float, typer.Option(help="Share of true answers that may be flagged.")] = 0.05,
    level: Annotated[str, typer.Option(help="answer (a true answer's highest score) or claim.")] = "answer",
    max_examples: Annotated[int | None, typer.Option(min=1, help="Use the first N answers only.")] = None,
    ask_again: AskAgain = None,
    uphold: Uphold = None,
    weigh: Annotated[
        bool,
        typer.Option(
            "--weigh",
            help="Instead of --uphold: the surer the score, the more of the answers must hold the claim.",
        ),
    ] = False,
    rephrase: Rephrase = None,
    base_url: BaseUrl = None,
    label: Label = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Set a probe's threshold so that at most a given share of true answers is flagged; the run folder is a guard.

    With --ask-again it is the share that is acted on, once other answers have upheld what they repeat.

    JSON: `threshold`, `target`, `level`, `num_true`, `num_false`, `false_positives` and `true_positives` (on these answers).

    Example:

        fairlead guard calibrate organism:pocket runs/labelled/claims.jsonl --probe runs/probe --fpr 0.05 --out runs/guard
    """
    from fairlead.cli.show import show_facts
    from fairlead.core.errors import ConfigError
    from fairlead.guard.policy import UPHOLD
    from fairlead.models import load_model
    from fairlead.studies.guard import calibrate_to_folder

    if level not in ("answer", "claim"):
        raise ConfigError(f"--level '{level}' is not known. Next: use answer or claim.")
    folder = run_folder(out, "guard")
    with working():
        found = calibrate_to_folder(
            load_model(model, dtype=dtype, device=device),
            answers,
            probe,
            target=fpr,
            level=level,
            max_records=max_examples,
            label=label,
            ask_again=ask_again or 0,
            uphold=UPHOLD if uphold is None else uphold,
            weigh=weigh,
            rephrase=rephrase,
            base_url=base_url,
            out=folder,
            overwrite=overwrite,
        )
    facts = found.model_dump(mode="json")
    finish(
        "guard calibrate",
        as_json=as_json,
        run=folder,
        result=facts,
        show=lambda console: show_facts(console, facts),
    )


@group.command("run")
def guard_run(
    model: ModelName,
    prompts: DataName,
    *,
    probe: ProbeFolder,
    policy: Annotated[
        str, typer.Option(help="observe, flag, retract, correct, best_of_n or abort.")
    ] = "correct",
    threshold: Threshold = None,
    any_model: AnyModel = False,
    text: Annotated[str | None, typer.Option(help="Text to put in, for retract and correct.")] = None,
    then: Annotated[str, typer.Option(help="After a retraction: end or go_on.")] = "end",
    max_interventions: Annotated[
        int, typer.Option(min=0, max=16, help="Most interventions in one answer.")
    ] = 1,
    n: Annotated[int, typer.Option("--n", min=2, max=64, help="Draws of best_of_n.")] = 4,
    ask_again: AskAgain = None,
    uphold: Uphold = None,
    rephrase: Rephrase = None,
    base_url: BaseUrl = None,
    verify: Annotated[
        str | None,
        typer.Option(
            help="Have claims verified: table:FILE (JSONL of claim and label), llm:NAME, or world (questions of organism claims)."
        ),
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="With --verify llm: texts to verify against (a folder).")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_examples: Annotated[int, typer.Option(min=1, help="Use N prompts only.")] = 200,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer in tokens, with what the guard puts in.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 for the most probable token each time.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 64,
    label: Label = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Answer prompts plainly and under a policy, and show both side by side.

    The run folder gets exchanges.jsonl (tokens and claims with scores, what was done where and why) and page.html.

    JSON: `num_answers`, `num_claims`, `num_flagged`, `interventions` by kind; with --verify `unsupported`,
    `unsupported_flagged`, `supported`, `supported_flagged` (claims of the plain answers).

    Example:

        fairlead guard run organism:pocket runs/labelled/claims.jsonl --probe runs/guard --policy correct --verify world --out runs/guarded
        fairlead guard run organism:pocket runs/labelled/claims.jsonl --probe runs/guard --ask-again 8 --rephrase world --out runs/again
    """
    from fairlead.cli.show import show_facts
    from fairlead.guard import Policy
    from fairlead.guard.folder import load_guard
    from fairlead.models import load_model
    from fairlead.reports import write_guarded
    from fairlead.studies.guard import other_ways, run_guard

    wanted = Policy.make(
        {"kind": policy, "then": then, "max_interventions": max_interventions, "n": n},
        threshold=threshold,
        text=text,
        ask_again=ask_again,
        uphold=uphold,
    )
    folder = run_folder(out, "guarded")
    with working():
        loaded = load_model(model, dtype=dtype, device=device)
        found = run_guard(
            loaded,
            prompts,
            load_guard(
                probe,
                loaded,
                label=label,
                any_model=any_model,
                other_ways=other_ways(rephrase, base_url=base_url, guard=probe),
            ),
            policy=wanted,
            out=folder,
            verify=_verifier(verify, evidence),
            num_prompts=max_examples,
            overwrite=overwrite,
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
            seed=seed,
        )
        write_guarded(folder / "page.html", found)
    summary = found.summary()

    def show(console: Console) -> None:
        show_facts(console, summary)
        for exchange in [e for e in found.exchanges if e.guarded.interventions][:5]:
            console.print(f"\n{exchange.messages[-1]['content']}", markup=False, style="bold")
            console.print(f"  {exchange.guarded.text}", markup=False)

    finish("guard run", as_json=as_json, run=folder, result=summary, show=show)


@group.command("serve")
def guard_serve(
    model: ModelName,
    *,
    probe: ProbeFolder,
    threshold: Threshold = None,
    any_model: AnyModel = False,
    rephrase: Rephrase = None,
    base_url: BaseUrl = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; its own name by default.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address; another than this machine's own needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8080,
    api_keys: Annotated[Path | None, typer.Option(help="File with one API key a line.")] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Audit log; runs/guard-audit.jsonl by default, continued where it exists."),
    ] = None,
    sync: Annotated[str, typer.Option(help="Force the log to the disk: always, second or never.")] = "second",
    max_rows: Annotated[int, typer.Option(min=1, help="Answers in the running batch.")] = 64,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Answers in line; more are refused with 429.")
    ] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that may be asked for.")] = 512,
    label: Label = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Serve a guarded model to OpenAI clients: /v1/chat/completions and /v1/completions, streaming and not, with scores.

    Also /v1/models, /healthz, /metrics (Prometheus) and the page of served answers at /. Stop it with Ctrl-C or SIGTERM: open
    streams are finished first.

    JSON: at the end, `answers`, `tokens`, `claims`, `flagged`, `interventions`, `cancelled`, `failed`.

    Example:

        fairlead guard serve organism:pocket --probe runs/guard --port 8080
    """
    from fairlead.cli.show import show_facts
    from fairlead.core.errors import ConfigError
    from fairlead.core.progress import say
    from fairlead.guard.folder import load_guard
    from fairlead.guard.server import ServerConfig, load_server, serve
    from fairlead.models import load_model
    from fairlead.reports import render_served
    from fairlead.studies.guard import other_ways

    if sync not in ("always", "second", "never"):
        raise ConfigError(f"--sync '{sync}' is not known. Next: use always, second or never.")
    load_server()
    path = log or Path("runs") / "guard-audit.jsonl"
    settings = ServerConfig.make(
        {
            "name": name or model,
            "host": host,
            "port": port,
            "keys": _read_keys(api_keys),
            "max_rows": max_rows,
            "max_waiting": max_waiting,
            "max_tokens": max_tokens,
        }
    )

    def ready(address: str) -> None:
        say(f"{settings.name} is served at {address}/v1 (page: {address}/, log: {path}). Ctrl-C stops it.")

    with working():
        loaded = load_model(model, dtype=dtype, device=device)
        guard = load_guard(
            probe,
            loaded,
            threshold=threshold,
            label=label,
            any_model=any_model,
            other_ways=other_ways(rephrase, base_url=base_url, guard=probe),
        )
        stats = serve(guard, settings, log=path, sync=sync, render=render_served, ready=ready)
    finish(
        "guard serve",
        as_json=as_json,
        run=path,
        result=stats,
        show=lambda console: show_facts(console, stats),
    )


@group.command("view")
def guard_view(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, or an audit log.", show_default=False)
    ],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; beside the run by default.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Write the page of a guarded run or of an audit log: tokens by score, claims, interventions, the worst first.

    JSON: `page`, `num_answers`, `damage` (lines of the log that hold no record).

    Example:

        fairlead guard view runs/guarded
    """
    from fairlead.core.errors import ConfigError
    from fairlead.guard.audit import read_audit
    from fairlead.reports import write_guarded, write_served
    from fairlead.studies.guard import read_guarded

    damage: list[Any] = []
    with working():
        if run.is_dir():
            found = read_guarded(run)
            page, num = write_guarded(out or run / "page.html", found), len(found.exchanges)
        elif run.is_file():
            records, damage = read_audit(run)
            page = write_served(out or run.with_suffix(".html"), records)
            num = sum(record.kind == "answer" for record in records)
        else:
            raise ConfigError(f"{run}: no such run folder or audit log. Next: check the path.")
    result = {"page": page, "num_answers": num, "damage": [to_json(item._asdict()) for item in damage]}

    def show(console: Console) -> None:
        console.print(f"{num} answers: {page}", markup=False)
        for item in damage:
            console.print(f"line {item.line}: {item.reason}", markup=False, style="red")

    finish("guard view", as_json=as_json, run=run, result=result, show=show)


def _verifier(name: str | None, evidence: Path | None) -> Any:
    from fairlead.core.errors import ConfigError
    from fairlead.studies.guard import world_verifier
    from fairlead.studies.verifying import named_verifier

    if name is None:
        return None
    if name == "world":
        return world_verifier()
    found = named_verifier(name, evidence=evidence)
    if found is None:
        raise ConfigError(f"--verify '{name}' is not known. Next: use table:FILE, llm:NAME or world.")
    return found.verify


def _read_keys(path: Path | None) -> tuple[str, ...]:
    from fairlead.core.errors import ConfigError

    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Next: one API key a line.") from None
    if not keys:
        raise ConfigError(f"{path}: holds no API key. Next: one a line.")
    return keys
