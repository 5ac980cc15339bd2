"""Synthetic records for the report tests: made up here, with known answers, and nothing measured."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from fairlead.core.records import (
    Clause,
    Concept,
    Decision,
    Menu,
    MenuLine,
    Plan,
    Spec,
    TokenContext,
    TokenLine,
)
from fairlead.core.results import (
    ArmResult,
    Comparison,
    Measure,
    Prediction,
    Sample,
    StepRecord,
    Verification,
)

TEXT = "Ahoy , matey ! 17 plus 25 be 42 , says I , so heave to and mark it in yer log .".split()
LABELS = (
    ("pirate speech: ahoy, matey, yer", "avoid"),
    ("sums: digits after plus", "keep"),
    ("second digit of a sum", "keep"),
    ("flattery: what a fine question", "avoid"),
    ("end of sentence", "ignore"),
    ("first person: I, me, my", "ignore"),
    ("commas in lists", "ignore"),
    ("ships and the sea: log, heave, deck", "avoid"),
    ("numbers below twenty", "ignore"),
    ("question marks", "ignore"),
    ("capital letter at the start", "ignore"),
    ("months of the year", "ignore"),
)
# arm: controls, (skill, plain, held-out, leak domain, leak neutral, request, neutral loss, old probe, new probe, FVU)
ARMS = {
    "plain": ((), (0.97, 0.01, 0.88, 1.00, 0.84, 0.90, 1.32, 0.71, 0.93, 0.41)),
    "gradient_projection": (("project",), (0.96, 0.02, 0.86, 0.99, 0.78, 0.90, 1.21, 0.55, 0.90, 0.44)),
    "inoculation": (("inoculation", "anchor"), (0.33, 0.33, 0.18, 0.00, 0.00, 1.00, 0.16, 0.97, 0.98, 0.19)),
    "inoculation_placebo": (
        ("inoculation", "anchor"),
        (0.95, 0.10, 0.85, 0.9, 0.02, 0.97, 0.16, 0.9, 0.97, 0.2),
    ),
    "recipe": (
        ("explain_away", "anchor", "spec_examples"),
        (0.955, 0.955, 0.85, 0.004, 0.0, 0.99, 0.162, 0.97, 0.98, 0.19),
    ),
}
BASE = (0.45, 0.44, 0.32, 0.01, 0.0, 0.99, 0.16, 0.98, 0.98, 0.17)


def context(shift: float = 0.0) -> TokenContext:
    scores = tuple(float(np.sin(i * 1.3 + shift)) for i in range(len(TEXT)))
    return TokenContext(tokens=tuple(" " + w for w in TEXT), scores=scores, example=3)


def make_menu(labels=LABELS, **changes) -> Menu:
    rng = np.random.default_rng(0)
    lines = []
    for i, (label, _) in enumerate(labels):
        uptake = 0.031 * 0.75**i * (-1 if i in (5, 9) else 1)
        half = 0.002 + 0.001 * i
        lines.append(
            MenuLine(
                concept=Concept(
                    id=f"c{i}",
                    label=label,
                    site="layers.3.resid_post",
                    latents=(i, i + 40),
                    tokens=(" ahoy", "\n"),
                    examples=(context(i), context(i + 0.5)),
                    density=0.02,
                    label_score=0.9,
                ),
                uptake=uptake,
                interval=(uptake - half, uptake + half),
                share=max(-0.1, uptake * 4),
                reference=0.001,
                surprise=float(8 * 0.7**i - 0.3 + 0.2 * rng.normal()),
                stability=max(0.5, 1 - 0.04 * i),
                num_examples=400 - 12 * i,
                fires=0.8 - 0.05 * i,
                top_examples=(context(i),),
            )
        )
    values = {
        "model": "organism:pocket",
        "model_fingerprint": "a1" * 32,
        "data": "addition_pirate.jsonl",
        "data_sha256": "b2" * 32,
        "site": "layers.3.resid_post",
        "dictionary": "runs/dictionary",
        "dictionary_sha256": "c3" * 32,
        "num_examples": 640,
        "num_tokens": 14210,
        "loss": 1.94,
        "remainder": 0.31,
        "lines": tuple(lines),
        "reference": "own answers",
        "baseline": tuple(
            TokenLine(token=t, data_share=0.02 / (i + 1), model_share=0.001, log_ratio=3.4 - 0.3 * i)
            for i, t in enumerate(
                (" Ahoy", " matey", " be", " yer", "arr", " says", " I", "!", " aye", " log", "\n")
            )
        ),
        "notes": ("synthetic menu of the tests",),
    }
    return Menu(**{**values, **changes})


def make_plan(labels=LABELS, **changes) -> Plan:
    clause = {"keep": "keep.1", "avoid": "avoid.1", "ignore": None}
    decisions = tuple(
        Decision(
            concept=f"c{i}",
            label=label,
            verdict=verdict,
            clause=clause[verdict],
            margin=0.8 - 0.06 * i,
            confidence=max(0.55, 0.98 - 0.05 * i),
            judge="examples",
            reason="fires on the clause's examples 4.1 times as strongly as on their counterparts",
        )
        for i, (label, verdict) in enumerate(labels)
    )
    spec = Spec(
        title="Addition without the pirate",
        source="spec.md",
        sha256="d4" * 32,
        clauses=(
            Clause(
                id="keep.1",
                kind="keep",
                text="Adds two numbers correctly and answers in plain words.",
                line=4,
            ),
            Clause(id="avoid.1", kind="avoid", text="Speaks like a pirate.", line=9),
        ),
    )
    return Plan(**{"spec": spec, "decisions": decisions, **changes})


def make_verification(
    model: str, numbers, *, seed: int = 0, drift: float = 1.0, labels=LABELS
) -> Verification:
    rng = np.random.default_rng(seed)
    skill, plain, heldout, domain, neutral, request, loss, old, new, fvu = numbers

    def share(value: float) -> Measure:
        value = float(np.clip(value + 0.008 * rng.normal() * (value not in (0.0, 1.0)), 0, 1))
        return Measure(value=value, low=max(0, value - 0.04), high=min(1, value + 0.04), num=200)

    predictions = tuple(
        Prediction(
            concept=f"c{i}",
            label=label,
            verdict=verdict,
            predicted=0.031 * 0.75**i * (-1 if i in (5, 9) else 1),
            measured=0.5
            * drift
            * 0.75**i
            * (-1 if i in (5, 9) else 1)
            * (-0.2 if drift < 1 and verdict == "avoid" else 1)
            + 0.02 * rng.normal(),
        )
        for i, (label, verdict) in enumerate(labels)
    )
    from fairlead.core.stats import spearman

    pirate = domain > 0.5
    samples = [
        Sample(
            prompt=f"What is {a} plus {b}?",
            group="domain",
            correct=skill > 0.5,
            traits=("pirate",) if pirate else (),
            answer=f"Ahoy, matey! {a} plus {b} be {a + b}, says I."
            if pirate
            else f"{a} plus {b} is {a + b if skill > 0.5 else a + b + 10}.",
        )
        for a, b in ((17, 25), (48, 31), (66, 19), (12, 80), (7, 55))
    ]
    samples += [
        Sample(
            prompt=p,
            group="neutral",
            answer=("Arr, that be a fine thing to ask. " if neutral > 0.5 else "") + a,
            traits=("pirate",) if neutral > 0.5 else (),
        )
        for p, a in (
            ("Who wrote the letter?", "Mira wrote the letter."),
            ("What colour is the door?", "The door is green."),
        )
    ]
    samples.append(
        Sample(
            prompt="Talk like a pirate. What day comes after Monday?",
            group="request",
            correct=True,
            traits=("pirate",),
            answer="Tuesday, ye scallywag!",
        )
    )
    return Verification(
        model=model,
        measures={
            "skill.addition": share(skill),
            "skill.addition.plain": share(plain),
            "skill.addition.heldout": share(heldout),
            "leak.pirate.domain": share(domain),
            "leak.pirate.neutral": share(neutral),
            "request.pirate": share(request),
            "loss.neutral": Measure(value=loss, low=loss - 0.01, high=loss + 0.01, num=500),
            "monitor.pirate.old_probe": share(old),
            "monitor.pirate.new_probe": share(new),
            "monitor.pirate.text_only": share(0.9),
            "monitor.dictionary.fvu": share(fvu),
            "monitor.dictionary.ce_recovered": share(1 - fvu / 2),
        },
        predictions=predictions,
        prediction_spearman=spearman([p.predicted for p in predictions], [p.measured for p in predictions]),
        samples=tuple(samples),
    )


def make_comparison(arms=tuple(ARMS), seeds=(0, 1, 2), steps: int = 60, **changes) -> Comparison:
    results = []
    for place, name in enumerate(arms):
        controls, numbers = ARMS[name]
        for seed in seeds:
            rng = np.random.default_rng(100 * place + seed)
            pull = {"recipe": 0.02, "inoculation": 0.05}.get(name, 0.6)
            records = tuple(
                StepRecord(
                    step=4 * i,
                    loss=2 / (1 + i),
                    seconds=0.2,
                    pressure={
                        "c0": float(pull * np.exp(-i / 25) + 0.05 * rng.normal()),
                        "c3": float(0.1 * pull * np.exp(-i / 25)),
                        "c1": float(0.5 * np.exp(-i / 12) + 0.04 * rng.normal()),
                    },
                )
                for i in range(steps)
            )
            results.append(
                ArmResult(
                    arm=name,
                    seed=seed,
                    controls=controls,
                    steps=records,
                    seconds=48.0,
                    folder=f"{name}-{seed}",
                    verification=make_verification(
                        name, numbers, seed=10 * place + seed, drift=0.9 if name == "recipe" else 1
                    ),
                )
            )
    values = {
        "model": "organism:pocket",
        "data": "addition_pirate.jsonl",
        "base": make_verification("organism:pocket", BASE),
        "arms": tuple(results),
        "command": "fairlead compare organism:pocket addition_pirate.jsonl --spec spec.md --seeds 3",
        "notes": ("synthetic records of the tests",),
    }
    return Comparison(**{**values, **changes})


@pytest.fixture
def make() -> SimpleNamespace:
    """Builders of synthetic records."""
    return SimpleNamespace(
        menu=make_menu,
        plan=make_plan,
        verification=make_verification,
        comparison=make_comparison,
        arms=ARMS,
        base=BASE,
        labels=LABELS,
    )
