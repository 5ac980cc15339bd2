"""Act on concepts: `concepts steer`, `autosteer`, `attribute`, `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fairlead.cli.concepts import CatalogueArgument, HtmlFile, ModelOption, Num, open_catalogue
from fairlead.cli.options import AsJson, ConfigFile, DataName, Device, Dtype, Out, Overwrite, Seed
from fairlead.cli.output import finish, run_folder, working

Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `concepts`."""
    group.command("steer")(concepts_steer)
    group.command("autosteer")(concepts_autosteer)
    group.command("attribute")(concepts_attribute)
    group.command("diff")(concepts_diff)


def concepts_steer(
    catalogue: CatalogueArgument,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Questions.", show_default=False)],
    *,
    concept: Annotated[list[str] | None, typer.Option(help="Id of a concept; may be repeated.")] = None,
    search: Annotated[
        str | None, typer.Option(help="Steer on the concept that this text finds first.")
    ] = None,
    strength: Annotated[
        float,
        typer.Option(help="In units of the concept's usual strength (add, clamp), or a factor (scale)."),
    ] = 2.0,
    mode: Annotated[str, typer.Option(help="add, scale, clamp or ablate.")] = "add",
    at: Annotated[
        str,
        typer.Option(
            help="all tokens, prompt, start (where the answer begins), answer, or later (the answer after its start)."
        ),
    ] = "all",
    when: Annotated[
        list[str] | None,
        typer.Option(
            help="Only when CONCEPT>NUMBER@OVER holds, OVER one of token, prompt, answer; may be repeated."
        ),
    ] = None,
    abort: Annotated[
        list[str] | None, typer.Option(help="End an answer when CONCEPT>NUMBER@OVER holds; may be repeated.")
    ] = None,
    edits: Annotated[Path | None, typer.Option(help="Load edits from this file.")] = None,
    save: Annotated[Path | None, typer.Option(help="Save the edits to this file.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Tokens = 48,
    model: ModelOption = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Answer questions with concepts added, scaled, clamped or ablated, beside the plain answers.

    JSON: `edits` (as saved), `answers`: `prompt`, `plain`, `steered`, `aborted`.

    Example:

        fairlead concepts steer runs/concepts "How much is 3 plus 4?" --search pirate --strength 2 --save edits.json

        fairlead concepts steer runs/concepts "How much is 3 plus 4?" --edits edits.json
    """
    from fairlead.cli.show_steering import show_steered
    from fairlead.concepts import EditSet, Variant, parse_condition
    from fairlead.core.errors import ConfigError

    _one_of("--mode", mode, ("add", "scale", "clamp", "ablate"))
    _one_of("--at", at, ("all", "prompt", "start", "answer", "later"))
    if edits is None and not concept and search is None and not abort:
        raise ConfigError("nothing to steer on. Next: pass --concept, --search, --edits or --abort.")
    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device)
        assert loaded is not None
        variant = Variant(loaded, found.load_dictionary(), found.concepts)
        if edits is not None:
            variant = Variant.from_edits(loaded, found.load_dictionary(), EditSet.load(edits), found.concepts)
        conditions = [parse_condition(text, found.get) for text in when or []]
        chosen = [found.get(one) for one in concept or []]
        if search is not None:
            hits = found.search(search, num=1, model=loaded)
            if not hits:
                raise ConfigError(f"--search '{search}' finds no concept. Next: use other words.")
            chosen.append(hits[0].concept)
        settings: dict[str, Any] = {"mode": mode, "at": at}
        for one in chosen:
            if conditions:
                variant.set_when(conditions, one, strength, **settings)
            else:
                variant.set(one, strength, **settings)
        for text in abort or []:
            variant.abort_when(parse_condition(text, found.get), text)
        if save is not None:
            variant.save(save)
        asked: dict[str, Any] = {"system": system, "max_new_tokens": max_new_tokens}
        plain = loaded.generate(prompts, **asked)
        steered = variant.generate(prompts, **asked)
        answers = [
            {"prompt": prompt, "plain": one, "steered": other.text, "aborted": other.aborted}
            for prompt, one, other in zip(prompts, plain, steered, strict=True)
        ]
        made = variant.edits
    finish(
        "concepts steer",
        as_json=as_json,
        run=catalogue,
        result={"edits": made, "answers": answers},
        show=lambda console: show_steered(console, made, answers),
    )


def concepts_autosteer(
    catalogue: CatalogueArgument,
    description: Annotated[
        str,
        typer.Argument(
            metavar="DESCRIPTION",
            help="The behaviour as a request: 'Talk like a pirate.'",
            show_default=False,
        ),
    ],
    data: DataName,
    *,
    off: Annotated[bool, typer.Option("--off", help="Turn it off where a prompt requests it.")] = False,
    request: Annotated[
        list[str] | None, typer.Option(help="Another wording of the request; may be repeated.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(help="Regular expression that tells the behaviour in an answer; a probe by default."),
    ] = None,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples",
            help="The answers in DATA show the behaviour: contrast with them, not with the model's own.",
        ),
    ] = False,
    search: Annotated[
        int, typer.Option(min=0, help="Concepts found by the description that are tried alone.")
    ] = 2,
    num_prompts: Annotated[int, typer.Option(min=16, help="Questions of DATA that are asked.")] = 64,
    max_loss_rise: Annotated[float, typer.Option(help="Allowed loss of coherence, nats per token.")] = 0.5,
    max_new_tokens: Tokens = 48,
    html: HtmlFile = None,
    model: ModelOption = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Find edits that turn a behaviour on (or off) from its description; strengths are calibrated by effect and coherence.

    JSON: `edits`, `report` (trials with effect and loss_rise, chosen, placebo, losses, samples).

    Example:

        fairlead concepts autosteer runs/concepts "Talk like a pirate." task/neutral.jsonl --num-prompts 16 --out runs/pirate-on
    """
    from fairlead.cli.show_steering import show_autosteer
    from fairlead.reports import write_steering
    from fairlead.studies.steering import find_edits

    folder = run_folder(out, "autosteer")
    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device)
        assert loaded is not None
        result = find_edits(
            loaded,
            found,
            description,
            data,
            out=folder,
            direction="off" if off else "on",
            requests=request or [],
            check=check,
            examples=examples,
            search=search,
            num_prompts=num_prompts,
            overwrite=overwrite,
            max_loss_rise=max_loss_rise,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        page = write_steering(html or folder / "steering.html", result.report, result.edits)
    finish(
        "concepts autosteer",
        as_json=as_json,
        run=folder,
        result={"edits": result.edits, "report": result.report, "page": page},
        show=lambda console: show_autosteer(console, result),
    )


def concepts_attribute(
    catalogue: CatalogueArgument,
    answer: Annotated[
        str, typer.Argument(metavar="ANSWER", help="The output to explain.", show_default=False)
    ],
    *,
    prompt: Annotated[str | None, typer.Option(help="Question that it answers (chat models).")] = None,
    system: Annotated[str | None, typer.Option(help="System message before it.")] = None,
    against: Annotated[str | None, typer.Option(help="Another answer; the difference is explained.")] = None,
    token: Annotated[
        int | None, typer.Option(help="Explain one token of the answer, counted from 0, instead of all.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="integrated (gradients), gradient (one point), or ablation (exact, slow).")
    ] = "integrated",
    steps: Annotated[int, typer.Option(min=1, help="Points of integrated gradients.")] = 16,
    num: Num = 12,
    model: ModelOption = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show which concepts caused an output: nats of its log-probability that each adds or costs.

    JSON: `output` (log-probability), `baseline`, `causes` (`concept`, `value`, `tokens`), `other`, `remainder`, `gap`, `tokens`.

    Example:

        fairlead concepts attribute runs/concepts "The sum is 12." --prompt "What is 5 plus 7?" --against "The sum is 13."
    """
    from fairlead.cli.show_steering import show_attribution
    from fairlead.concepts import attribute
    from fairlead.core.errors import ConfigError
    from fairlead.data import Message, Row, encode, token_text

    _one_of("--method", method, ("integrated", "gradient", "ablation"))
    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device)
        assert loaded is not None

        def encoded(text: str):
            row = Row(text=text)
            if prompt is not None or system is not None:
                row = Row(messages=(Message("user", prompt or ""), Message("assistant", text)))
            return encode([row], loaded.tokenizer, max_length=loaded.max_length, system=system)[0]

        text = encoded(answer)
        places = [place for place, wanted in enumerate(text.loss_mask) if wanted]
        if token is not None and not 0 <= token < len(places):
            raise ConfigError(
                f"--token {token}: the answer has {len(places)} tokens. Next: use 0 to {len(places) - 1}."
            )
        result = attribute(
            loaded,
            found.load_dictionary(),
            found.concepts,
            text,
            against=encoded(against) if against is not None else None,
            tokens=None if token is None else [places[token]],
            method=method,  # type: ignore[arg-type]
            steps=steps,
        )
        pieces = [token_text(loaded.tokenizer, one) for one in text.input_ids]
    summary = {
        name: getattr(result, name) for name in ("output", "baseline", "other", "remainder", "gap", "method")
    }
    finish(
        "concepts attribute",
        as_json=as_json,
        run=catalogue,
        result={**summary, "tokens": pieces, "causes": [cause._asdict() for cause in result.causes[:num]]},
        show=lambda console: show_attribution(console, result, pieces, num=num),
    )


def concepts_diff(
    catalogue: CatalogueArgument,
    after: Annotated[
        str,
        typer.Argument(
            metavar="AFTER", help="Model trained from the catalogue's: name or folder.", show_default=False
        ),
    ],
    data: DataName,
    *,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Amplification of the difference; may be repeated (1, 3 and 10 by default)."),
    ] = None,
    crosscoder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Crosscoder over both models: what does only one of them have?"),
    ] = None,
    num_texts: Annotated[int, typer.Option(min=6, help="Texts read by both models.")] = 200,
    num_prompts: Annotated[int, typer.Option(min=6, help="Prompts answered by both.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers; 0: the most probable.")] = 0.0,
    max_new_tokens: Tokens = 48,
    num: Num = 12,
    html: HtmlFile = None,
    model: ModelOption = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show what changed between two models: concepts on the same texts, in their own answers, and with the difference amplified.

    A crosscoder comes from `dict train BEFORE DATA --kind crosscoder --against AFTER`.

    JSON: `texts` and `answers` (by alpha): changes with `before`, `after`, `change`, `low`, `high`, `p`, `q`; the answers themselves;
    `difference`: the mean difference of activations along each concept (`along`, `cosine`, ...);
    `exclusive`: a crosscoder's latents with `side`, `share`, `nu_error`, `nu_reconstruction`, `exclusive`.

    Example:

        fairlead concepts diff runs/concepts organism:pocket task/neutral.jsonl --num-texts 12 --num-prompts 6 --alpha 3 --out runs/diff
    """
    from fairlead.cli.show_steering import show_diff
    from fairlead.models import load_model
    from fairlead.reports import write_diff
    from fairlead.studies.concept_diff import diff_concepts

    folder = run_folder(out, "diff")
    with working():
        found, loaded = open_catalogue(catalogue, model, dtype, device)
        assert loaded is not None
        result = diff_concepts(
            loaded,
            load_model(after, dtype=dtype, device=device),
            found,
            data,
            out=folder,
            crosscoder=crosscoder,
            alphas=tuple(alpha or (1.0, 3.0, 10.0)),
            num_texts=num_texts,
            num_prompts=num_prompts,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            overwrite=overwrite,
        )
        page = write_diff(html or folder / "diff.html", result)
    finish(
        "concepts diff",
        as_json=as_json,
        run=folder,
        result={
            "texts": result.texts[:num],
            "answers": result.answers,
            "exclusive": result.exclusive,
            "page": page,
        },
        show=lambda console: show_diff(console, result, num=num),
    )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    from fairlead.core.errors import ConfigError

    if value not in known:
        raise ConfigError(f"{option} is '{value}'. Next: use one of {', '.join(known)}.")
