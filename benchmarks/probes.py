"""Does a probe tell made-up claims from true ones, on people it has not seen? By kind and baseline, with intervals over seeds.

For each seed the pocket model is asked about all its people, people without any value and strangers, in all phrasings; the exact verifier
labels each claim; people (not claims) are split into fit, calibration and test. A seed changes questions, samples, split and fit. Two sets:
`plain` (greedy and sampled answers without system prompt) and `all` (also styles, wishes to check, the user's own claims). The placebo is
the same probe fitted on labels dealt out anew; `activations only` shows what activations tell without the model's own confidence.

    python -m benchmarks.probes --seeds 3 --out runs/probes --publish probes

Other arms (`--arms`) are measured apart and published as `NAME_arms`: `lora` (on the plain set, beside the attention head that it starts
from), and the tasks `localise`, `correct` and `retract` with an attention probe, on answers with a wish to check (and all other ways for
`localise`):

    python -m benchmarks.probes --arms lora localise correct retract --seeds 3 --out runs/probes --publish probes
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.summary import cell, write_table
from fairlead.core.progress import say
from fairlead.core.run import read_json, write_json
from fairlead.models import Model, load_model
from fairlead.probes import SpanProbeConfig, examples_of
from fairlead.probes.evaluating import evaluate
from fairlead.probes.examples import Task
from fairlead.probes.fitting import LORA, fit_on, fit_with
from fairlead.probes.harvesting import harvest
from fairlead.probes.reading import make_reading
from fairlead.studies.claims import WAYS, pocket_claims

SETS: dict[str, tuple[str, ...]] = {"plain": ("greedy", "sampled"), "all": tuple(WAYS)}
KINDS = ("linear", "mean_difference", "attention", "span_max")
SITE = "layers.3.resid_post"
REFERENCE = "attention"  # what the baselines are held against
BASELINES = ("entropy", "max_softmax", "surprisal", "text_only", "exposures", "shuffled")


class Arm(NamedTuple):
    """What an arm asks of the model, and what it fits."""

    task: Task
    kind: str
    ways: tuple[str, ...]
    draws: int = 1


ARMS = {
    LORA: Arm("classify", LORA, SETS["plain"]),
    "localise": Arm("localise", "attention", tuple(WAYS)),
    "correct": Arm("correct", "attention", ("check",), 4),
    "retract": Arm("retract", "attention", ("check",), 4),
}
ARM_BASELINES = ("surprisal", "entropy", "text_only", "shuffled")
ARM_COLUMNS = (
    ("auroc", "AUROC"),
    ("without", "without adapters"),
    ("ece", "calibration error"),
    *((name, f"baseline: {name.replace('_', ' ')}") for name in ARM_BASELINES),
    ("num", "test examples"),
)
COLUMNS = (
    ("auroc", "AUROC, plain answers"),
    ("greedy", "greedy only"),
    ("sampled", "sampled only"),
    ("ece", "calibration error"),
    ("ece_before", "before calibration"),
    ("gain", "the attention probe has more by (plain)"),
    ("auroc_all", "AUROC, all ways of asking"),
    ("gain_all", "the attention probe has more by (all)"),
)


def measure_seed(model: Model, seed: int, *, draws: int, share: float) -> dict[str, Any]:
    """Records of every kind on both sets, for one seed."""
    found: dict[str, Any] = {}
    for name, ways in SETS.items():
        answers = pocket_claims(
            model, ways=ways, draws=draws if name == "plain" else 1, share=share, seed=seed
        )
        examples = examples_of(answers)
        full = harvest(model, examples, make_reading(model, (SITE,), confidence=True))
        config = SpanProbeConfig.make(sites=(SITE,), seed=seed)
        found[name] = {}
        for kind in KINDS:
            fitted = fit_on(
                full,
                examples,
                model=model,
                name="unsupported",
                config=config.model_copy(update={"kind": kind}),
            )
            found[name][kind] = evaluate(fitted, full, examples, num_resamples=200).record
            say(f"seed {seed} {name} {kind}: {found[name][kind]['auroc']:.3f}")
        bare = harvest(model, examples, make_reading(model, (SITE,), confidence=False))
        plain = config.model_copy(update={"kind": "linear", "confidence": False, "regularisation": 0.02})
        fitted = fit_on(bare, examples, model=model, name="unsupported", config=plain)
        found[name]["activations only"] = evaluate(fitted, bare, examples, num_resamples=50).record
    return found


def measure_arm(model: Model, arm: str, seed: int, *, draws: int, share: float) -> dict[str, Any]:
    """Record of LoRA or of a task, for one seed."""
    ways, draws, task = ARMS[arm].ways, max(draws, ARMS[arm].draws), ARMS[arm].task
    answers = pocket_claims(model, ways=ways, draws=draws, share=share, seed=seed)
    if task == "localise":
        answers = answers[::8]  # every token is an example
    examples = examples_of(answers, task)
    reading = make_reading(model, (SITE,), confidence=True)
    config = SpanProbeConfig.make(
        sites=(SITE,), seed=seed, kind=ARMS[arm].kind, adds="confidence" if task == "classify" else "all"
    )
    full = harvest(model, examples, reading)
    fitted = fit_with(model, examples, full, name=arm, config=config)
    with fitted.probe.attached(model):
        read = harvest(model, examples, reading) if fitted.probe.adapters else full
    record = evaluate(fitted, read, examples, num_resamples=200).record
    if arm == LORA:
        record["auroc_without"] = fitted.probe.details["auroc_without"]
        record["adapted"] = fitted.probe.details["adapted"]
    say(f"seed {seed} {arm}: {record['auroc']:.3f}")
    return record


def arm_rows(arms: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row an arm, the baselines in columns."""
    rows = []
    for arm, records in arms.items():
        values = {key: [r[key] for r in records] for key in ("auroc", "ece", "num")}
        if arm == LORA:
            values["without"] = [r["auroc_without"] for r in records]
        for name in ARM_BASELINES:
            values[name] = [r["baselines"][name]["auroc"] for r in records if name in r["baselines"]]
        rows.append(_row(f"{arm} ({ARMS[arm].kind} probe)", values))
    return rows


def rows_of(seeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind, then a row a baseline."""
    rows = []
    for kind in (*KINDS, "activations only"):
        plain, whole = [s["plain"][kind] for s in seeds], [s["all"][kind] for s in seeds]
        values = {key: [r[key] for r in plain] for key in ("auroc", "ece", "ece_before")}
        values |= {way: [r["by"][way]["auroc"] for r in plain] for way in SETS["plain"]}
        values["auroc_all"] = [r["auroc"] for r in whole]
        rows.append(_row(f"probe: {kind.replace('_', ' ')}", values, bold=kind == REFERENCE))
    for name in BASELINES:
        plain = [s["plain"][REFERENCE]["baselines"][name] for s in seeds]
        whole = [s["all"][REFERENCE]["baselines"][name] for s in seeds]
        values = {"auroc": [r["auroc"] for r in plain], "auroc_all": [r["auroc"] for r in whole]}
        values |= {
            way: [s["plain"][REFERENCE]["by"][way]["baselines"][name] for s in seeds] for way in SETS["plain"]
        }
        values |= {"gain": [r["gain"][0] for r in plain], "gain_all": [r["gain"][0] for r in whole]}
        row = _row(f"baseline: {name.replace('_', ' ')}", values)
        row["cells"] |= {"gain": _gain(plain), "gain_all": _gain(whole)}
        rows.append(row)
    return rows


def _gain(records: list[dict[str, Any]]) -> str:
    """Mean over seeds, with the widest bounds of the seeds' bootstrap intervals over people."""
    gains = [record["gain"] for record in records]
    mean = sum(gain[0] for gain in gains) / len(gains)
    return f"{mean:+.3f} ({min(g[1] for g in gains):+.3f} to {max(g[2] for g in gains):+.3f})"


def _row(title: str, values: dict[str, list[float]], *, bold: bool = False) -> dict[str, Any]:
    cells = {key: cell(numbers, digits=3) for key, numbers in values.items()}
    return {"title": title, "cells": cells, "values": values, "bold": bold}


def run_arms(model: Model, given: argparse.Namespace) -> None:
    """Measure arms, seed by seed (finished ones are kept), and publish."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for seed in range(given.seeds):
        for arm in given.arms:
            path = given.out / f"seed{seed}-{arm}.json"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, measure_arm(model, arm, seed, draws=given.draws, share=given.share))
            arms.setdefault(arm, []).append(read_json(path))
    rows = arm_rows(arms)
    for row in rows:
        print(row["title"], row["cells"])
    if given.publish:
        write_table(
            f"{given.publish}_arms",
            title="LoRA, and the other tasks of the trainer",
            model="organism:pocket",
            command=f"python -m benchmarks.probes --arms {' '.join(given.arms)} --seeds {given.seeds} --publish {given.publish}",
            columns=ARM_COLUMNS,
            rows=rows,
            notes=(
                f"Mean and 95 % t interval over {given.seeds} seeds, on people that the probes have not seen. Text-only baselines of "
                "`localise` see the whole stretch between two cuts, not one token: they know where it ends.",
            ),
        )


def main() -> None:
    """Measure, seed by seed (finished seeds are kept), and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/probes"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="measure these, and nothing else")
    parser.add_argument("--publish")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model("organism:pocket")
    if given.arms:
        return run_arms(model, given)
    seeds = []
    for seed in range(given.seeds):
        path = given.out / f"seed{seed}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, measure_seed(model, seed, draws=given.draws, share=given.share))
        seeds.append(read_json(path))
    rows = rows_of(seeds)
    for row in rows:
        print(row["title"], row["cells"])
    if given.publish:
        num = seeds[0]["plain"][REFERENCE]
        write_table(
            given.publish,
            title="Probes of made-up claims, on people they have not seen",
            model="organism:pocket",
            command=f"python -m benchmarks.probes --seeds {given.seeds} --publish {given.publish}",
            columns=COLUMNS,
            rows=rows,
            notes=(
                f"Mean and 95 % t interval over {given.seeds} seeds; of differences the mean and the widest bounds of the seeds' bootstrap "
                f"intervals over people; a test part holds {num['num']:.0f} claims about "
                f"{num['num_entities']} people, {num['share_positive']:.0%} of them unsupported. Exposures are the world's ledger: nobody "
                "has them for a real model. The shuffled row is the placebo.",
            ),
        )


if __name__ == "__main__":
    main()
