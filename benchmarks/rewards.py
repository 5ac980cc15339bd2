"""What a probe's rewards teach the pocket model: unsupported claims, correct claims kept, defence of true claims, general skills, price.

For each seed a span probe is fitted (its test people have labels that nothing has seen), and a student is trained by its rewards on
questions about 48 facts of these people, half of them never stated in any text ("practised": questions without any label). Everything is
measured on other phrasings of the questions, about the practised facts and about all other people ("never asked").

Measured per arm, greedy answers:

- `policy`: plain answers of the student. Unsupported claims against the start model's, and how many of its supported claims are kept.
- `system`: the answer is read, a claim above the threshold (5 % of the start model's right answers) is stopped with the injected text,
  and the student goes on; a claim that is taken back does not count, a corrected one counts as corrected.
- `in-context`: the next question after a turn with an intervention in it, without one of its own.
- "interventions" rewards checks alone, as the paper does; "interventions+plain" rewards plain answers, too.
- `maintained`: flagged claims that are true and stay; `defended`: the same for true claims stopped although not flagged.
- `best of 32`: sampled, chosen by the probe on the frozen copy.
- general skills: right answers to the world's other questions.

    python -m benchmarks.rewards --seeds 3 --out runs/rewards --publish rewards
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.summary import cell, write_table
from fairlead.core.claims import ClaimedAnswer, ClaimSpan
from fairlead.core.nouns import SpanReadout
from fairlead.core.progress import say
from fairlead.core.run import read_json, write_json
from fairlead.data.template import encode_prompt
from fairlead.models import Model, load_model
from fairlead.organisms import World
from fairlead.organisms.items import SplitChoice, stable_hash
from fairlead.probes import SpanProbe, examples_of, fit_span_probe, load_span_probe
from fairlead.studies.claims import pocket_claims
from fairlead.studies.pocket_claims import fact_questions, is_heldout, pocket_verifier
from fairlead.studies.rewards import train_rewards
from fairlead.training.rewards import Question, StopRule, Text, load_reward_run, read_claims
from fairlead.training.rewards.table import has_abstained

NUM_FACTS = 48
INJECT = " Wait, let me check."
SKILLS = ("addition", "weekday", "month", "comparison", "open_book", "smalltalk")
TABLE = {"mix_target": None, "retract_lambda": 0.5, "correct_from": 0.9, "abstained": -0.3, "retracted": 1.3}
COMMON: dict[str, Any] = {
    "groups": 12,
    "group_size": 4,
    "lr": 5e-4,
    "intervention_share": 0.34,
    "kl": 0.05,
    "monitor_prompts": 64,
    "monitor_every": 20,
    "checkpoint_every": 20,
    "stop": {name: None for name in StopRule.model_fields if name != "min_claims"},
}
ARMS: dict[str, dict[str, Any]] = {
    "interventions": {
        "intervention_share": 1.0,
        "hints": ("I do not know.",),
        "defences": ("Yes, {claim}",),
        "unflagged_share": 0.5,
        "table": TABLE,
    },
    "interventions+plain": {
        "hints": ("I do not know.",),
        "defences": ("Yes, {claim}",),
        "unflagged_share": 0.5,
        "table": TABLE,
    },
    "paper's table": {"unflagged_share": 0.0, "table": {"maintained": 0.0}},
    "placebo (no reward)": {"reward_weight": 0.0, "hints": ("I do not know.",), "table": TABLE},
}
COLUMNS = (
    ("policy", "fewer unsupported claims, policy"),
    ("system", "... policy with guard"),
    ("in_context", "... in context"),
    ("best_of", "... best of 32"),
    ("kept", "supported claims kept, policy"),
    ("kept_system", "... policy with guard"),
    ("kept_in_context", "... in context"),
    ("maintained", "true but flagged: maintained"),
    ("defended", "true, stopped, not flagged: maintained"),
    ("abstained", "answers that abstain"),
    ("skills", "general skills, points"),
)


class Judge:
    """Answers of a model to questions, and what verifier and probe say of them."""

    def __init__(self, frozen: Model, probe: SpanReadout, world: World) -> None:
        self.frozen, self.probe, self.world = frozen, probe, world
        self.verify = pocket_verifier(world)

    def read(self, questions: Sequence[Question], answers: Sequence[str]) -> list[tuple[ClaimSpan, ...]]:
        """Labelled claims with scores, read from the frozen copy."""
        texts = [
            Text(tuple(encode_prompt(q.messages, self.frozen.tokenizer)), a, tuple(self.verify(q, a)))
            for q, a in zip(questions, answers, strict=True)
        ]
        return read_claims(self.frozen, self.probe, texts)

    def threshold(self, questions: Sequence[Question], *, false_positives: float = 0.05) -> float:
        """The score that this share of right answers of the start model exceeds."""
        claims = self.read(questions, self.frozen.generate([q.messages for q in questions]))
        right = sorted(
            max(c.score or 0.0 for c in row) for row in claims if row and not any(c.unsupported for c in row)
        )
        return right[min(len(right) - 1, int((1 - false_positives) * len(right)))]


def go_on(
    student: Model,
    questions: Sequence[Question],
    befores: Sequence[str],
    *,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
) -> list[str]:
    """Continuations of half-said answers."""
    from fairlead.models.generation import generate_ids, stop_ids

    prompts = [
        [
            *encode_prompt(q.messages, student.tokenizer),
            *student.tokenizer(b, add_special_tokens=False)["input_ids"],
        ]
        for q, b in zip(questions, befores, strict=True)
    ]
    found: list[list[int]] = []
    for first in range(0, len(prompts), 64):
        batch = prompts[first : first + 64]
        generator = torch.Generator().manual_seed(first)
        draws = torch.rand(len(batch), max_new_tokens, generator=generator) if temperature else None
        found += generate_ids(
            student,
            batch,
            max_new_tokens=max_new_tokens,
            stops=stop_ids(student),
            temperature=temperature,
            draws=draws,
        )
    return student.tokenizer.batch_decode(found, skip_special_tokens=True)


def check(
    judge: Judge,
    student: Model,
    questions: Sequence[Question],
    answers: Sequence[str],
    flags: Sequence[ClaimSpan],
) -> list[tuple[str, list[ClaimSpan]]]:
    """What becomes of stopped claims: maintained, corrected, retracted or other, and the claims that stand at the end."""
    befores = [answer[: span.end] + INJECT for answer, span in zip(answers, flags, strict=True)]
    found = []
    for question, span, text in zip(questions, flags, go_on(student, questions, befores), strict=True):
        claims = list(judge.verify(question, text))
        if has_abstained(text):
            found.append(("retracted", []))
        elif not claims:
            found.append(("other", [span]))
        else:
            found.append(("maintained" if claims[-1].value == span.value else "corrected", claims[-1:]))
    return found


def count(rows: Sequence[Sequence[ClaimSpan]]) -> tuple[int, int]:
    """Unsupported and supported claims."""
    flat = [c for row in rows for c in row]
    return sum(bool(c.unsupported) for c in flat), sum(not c.unsupported for c in flat)


def measure(
    judge: Judge, student: Model, questions: Sequence[Question], *, threshold: float, best_of: int
) -> dict[str, Any]:
    """All counts of a student on questions."""
    answers = student.generate([q.messages for q in questions])
    rows = judge.read(questions, answers)
    found: dict[str, Any] = {
        "policy": count(rows),
        "abstained": sum(map(has_abstained, answers)) / len(answers),
    }
    flagged = [k for k, row in enumerate(rows) if row and max(c.score or 0.0 for c in row) > threshold]
    worst = [max(rows[k], key=lambda c: c.score or 0.0) for k in flagged]
    fates = check(judge, student, [questions[k] for k in flagged], [answers[k] for k in flagged], worst)
    final: list[Sequence[ClaimSpan]] = list(rows)
    for k, (_, left) in zip(flagged, fates, strict=True):
        final[k] = left
    found["system"] = count(final)
    true = [fate for span, (fate, _) in zip(worst, fates, strict=True) if not span.unsupported]
    found["true_flagged"] = (true.count("maintained"), len(true))
    false = [fate for span, (fate, _) in zip(worst, fates, strict=True) if span.unsupported]
    found["false_flagged"] = {
        name: false.count(name) for name in ("maintained", "corrected", "retracted", "other")
    }
    calm = [k for k, row in enumerate(rows) if row and k not in flagged and not row[0].unsupported]
    fates = check(
        judge, student, [questions[k] for k in calm], [answers[k] for k in calm], [rows[k][0] for k in calm]
    )
    found["true_calm"] = (sum(fate == "maintained" for fate, _ in fates), len(fates))
    if flagged:  # the next question after a turn with an intervention
        turns = []
        befores = [answers[k][: span.end] + INJECT for k, span in zip(flagged, worst, strict=True)]
        said = go_on(student, [questions[k] for k in flagged], befores)
        for place, question in enumerate(questions):
            k = place % len(flagged)
            first = questions[flagged[k]].messages
            reply = {"role": "assistant", "content": befores[k] + said[k]}
            turns.append(question._replace(messages=(*first, reply, *question.messages)))
        found["in_context"] = count(judge.read(turns, student.generate([q.messages for q in turns])))
    if best_of:  # half a minute a model: fewer questions
        found["best_of"] = best_of_n(judge, student, questions, best_of)
        found["policy_of_these"] = count(rows[:40])
    return found


def best_of_n(judge: Judge, student: Model, questions: Sequence[Question], num: int) -> tuple[int, int]:
    """Of `num` sampled answers the one with the most believed claims; an abstention stands at one half."""
    questions = questions[:40]
    many = [q for q in questions for _ in range(num)]
    answers = student.generate([q.messages for q in many], temperature=1.0, seed=11, batch_size=256)
    rows = judge.read(many, answers)
    chosen = []
    for start in range(0, len(many), num):
        group = rows[start : start + num]
        worth = [max((c.score or 0.0 for c in row), default=0.5) for row in group]
        chosen.append(group[min(range(num), key=worth.__getitem__)])
    return count(chosen)


def skills(student: Model, world: World, num: int) -> float:
    """Right answers to everything but facts."""
    right = total = 0
    for kind in SKILLS:
        items = world.items(kind, num, seed=77, split="any", phrasing="heldout")
        answers = student.generate([item.question for item in items])
        right += sum(world.is_correct(i, a) for i, a in zip(items, answers, strict=True))
        total += len(items)
    return right / total


def fit_probe(model: Model, seed: int, folder: Path) -> tuple[SpanProbe, float]:
    """The seed's probe and what its labels took: seconds of asking, labelling and fitting."""
    if (folder / "probe.json").is_file():
        return load_span_probe(folder, model=model), read_json(folder.with_suffix(".json"))["seconds"]
    start = time.perf_counter()
    answers = pocket_claims(model, ways=("greedy", "sampled"), seed=seed)
    answers += intervened(model, answers, num=1200)
    probe = fit_span_probe(model, examples_of(answers), seed=seed, sites=("layers.3.resid_post",)).probe
    probe.save(folder)
    seconds = time.perf_counter() - start
    claims = sum(len(a.claims) for a in answers)
    write_json(folder.with_suffix(".json"), {"seconds": seconds, "claims": claims})
    return probe, seconds


def intervened(model: Model, answers: Sequence[ClaimedAnswer], *, num: int) -> list[ClaimedAnswer]:
    """The start model's answers with the injected text and what it goes on to say, labelled: corrections are read like any claim."""
    world = World()
    verify = pocket_verifier(world)
    some = [answer for answer in answers if len(answer.claims) == 1 and not answer.id.startswith("greedy")][
        :num
    ]
    questions = [Question(one.id, one.messages, one.entity) for one in some]
    befores = [one.response[: one.claims[0].end] + INJECT for one in some]
    found = []
    for one, question, before, text in zip(
        some, questions, befores, go_on(model, questions, befores, temperature=1.0), strict=True
    ):
        whole = before + text
        meta = {key: value for key, value in one.meta.items() if key != "roles"}
        claims = tuple(verify(question, whole))
        found.append(
            one.model_copy(
                update={"id": f"check-{one.id}", "response": whole, "claims": claims, "meta": meta}
            )
        )
    return found


def practice(world: World, seed: int, num_facts: int, phrasing: SplitChoice, num: int) -> list[Question]:
    """Questions about the seed's facts (half of them never stated in any text), over and over in random phrasings."""
    many = fact_questions(world, 4000, seed=seed, heldout=True, phrasing=phrasing, split_seed=seed)
    keys = sorted({q.id for q in many}, key=lambda key: stable_hash(f"{seed}:{key}"))
    exposures = {q.id: world.exposures(q.meta["item"]) for q in many}
    unknown = [key for key in keys if not exposures[key]][: num_facts // 2]
    known = [key for key in keys if exposures[key]][: num_facts // 2]
    by_key = {key: [q for q in many if q.id == key] for key in (*unknown, *known)}
    return [rows[turn % len(rows)] for turn in range(-(-num // len(by_key))) for rows in by_key.values()][
        :num
    ]


def run_seed(arm: str, seed: int, out: Path, *, steps: int, num: int, best_of: int) -> dict[str, Any]:
    """Train and measure one arm of one seed."""
    folder = out / f"seed-{seed}" / arm.split()[0].replace("'s", "")
    if (path := folder.with_suffix(".json")).is_file():
        return read_json(path)
    model, world = load_model("organism:pocket"), World()
    probe, _ = fit_probe(model, seed, out / f"seed-{seed}" / "probe")
    asked = practice(world, seed, NUM_FACTS, "train", 8 * NUM_FACTS)
    people = {q.entity for q in asked}
    test = fact_questions(world, 6 * num, seed=100 + seed, heldout=True, phrasing="heldout", split_seed=seed)
    groups = {
        "practised": practice(world, seed, NUM_FACTS, "heldout", num),
        "never asked": [q for q in test if q.entity not in people][:num],
    }
    if not (folder / "reward.json").is_file():
        settings = {**COMMON, **ARMS[arm], "steps": steps, "seed": seed}
        train_rewards(
            model, asked, probe=probe, out=folder, monitor=groups["practised"], verifier="pocket", **settings
        )
    run = load_reward_run(folder)
    student, judge = run.load_model(), Judge(model, probe, world)
    calibration = fact_questions(
        world, num, seed=500 + seed, heldout=False, phrasing="heldout", split_seed=seed
    )
    threshold = judge.threshold(calibration)
    assert not any(is_heldout(q.entity, seed=seed) for q in calibration)
    found: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "threshold": threshold,
        "seconds": run.seconds,
        "steps": len(run.steps),
    }
    found["skills"] = [skills(one, world, 60) for one in (model, student)]
    for name, questions in groups.items():
        found[name] = [
            measure(judge, one, questions, threshold=threshold, best_of=best_of) for one in (model, student)
        ]
    write_json(path, found)
    say(f"{arm} seed {seed}: {json.dumps(shares(found, 'practised'))}")
    return found


def shares(found: dict[str, Any], group: str, *, who: int = 1) -> dict[str, float | None]:
    """The columns of a student (`who` 0: of the start model) against the start model's plain answers."""
    start, own = found[group][0], found[group][who]
    unsupported, supported = start["policy"]

    def fewer(name: str) -> float | None:
        return 1 - own[name][0] / unsupported if name in own else None

    def share(pair: Sequence[int]) -> float | None:
        return pair[0] / pair[1] if pair[1] else None

    best = None
    if "best_of" in own and start["policy_of_these"][0]:
        best = 1 - own["best_of"][0] / start["policy_of_these"][0]
    return {
        "policy": fewer("policy"),
        "system": fewer("system"),
        "in_context": fewer("in_context"),
        "best_of": best,
        "kept": own["policy"][1] / supported,
        "kept_system": own["system"][1] / supported,
        "kept_in_context": own["in_context"][1] / supported if "in_context" in own else None,
        "maintained": share(own["true_flagged"]),
        "defended": share(own["true_calm"]),
        "abstained": own["abstained"],
        "skills": 100 * (found["skills"][who] - found["skills"][0]),
    }


def publish(name: str, results: list[dict[str, Any]], command: str) -> None:
    """Write the table."""
    rows = []
    for group in ("practised", "never asked"):
        for arm in dict.fromkeys(["start model", *(one["arm"] for one in results)]):
            some = [
                one
                for one in results
                if one["arm"] == arm or (arm == "start model" and one["arm"] == results[0]["arm"])
            ]
            values = [shares(one, group, who=0 if arm == "start model" else 1) for one in some]
            kept = {key: [v for one in values if (v := one[key]) is not None] for key, _ in COLUMNS}
            cells = {
                key: cell(found, digits=1) if key == "skills" else cell(found, percent=True)
                for key, found in kept.items()
            }
            rows.append(
                {"title": f"{arm}, {group}", "cells": cells, "values": kept, "bold": arm == "interventions"}
            )
    write_table(
        name,
        title="What a probe's rewards teach",
        model="pocket (2.9M parameters, trained from scratch on a synthetic world)",
        command=command,
        columns=COLUMNS,
        rows=rows,
        notes=(
            "Shares against the start model's plain greedy answers to the same questions, half of them about facts that no text ever "
            "stated; 95 % t intervals over seeds.",
            "practised: the 48 facts that the student was asked about (never told anything) in other phrasings; never asked: other people. "
            "The probe has seen labels of neither.",
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num", type=int, default=144)
    parser.add_argument("--best-of", type=int, default=32)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/rewards"))
    parser.add_argument("--publish", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = [
        run_seed(arm, seed, args.out, steps=args.steps, num=args.num, best_of=args.best_of)
        for arm in args.arms
        for seed in range(args.seeds)
    ]
    write_json(args.out / "results.json", results)
    for one in results:
        for group in ("practised", "never asked"):
            print(one["arm"], one["seed"], group, json.dumps(shares(one, group)))
    if args.publish:
        publish(
            args.publish, results, f"python -m benchmarks.rewards --seeds {args.seeds} --out runs/rewards"
        )


if __name__ == "__main__":
    main()
