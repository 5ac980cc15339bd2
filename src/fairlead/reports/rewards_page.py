"""A training by rewards as one self-contained page without a script: what was earned, what both readers say, what the verifier says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from fairlead.reports import palette
from fairlead.reports.html import environment, write_page
from fairlead.reports.svg import Box, even_ticks, mark_path
from fairlead.training.rewards import Look, RewardRun

Line = Sequence[tuple[float, float]]
SMOOTH = 7
SAMPLES = 8
_WIDTH = 460
MEASURES = (
    ("unsupported", "claims that the verifier does not support"),
    ("wrong_answers", "answers with such a claim"),
    ("right_answers", "answers with supported claims only"),
    ("abstained", "answers that say they do not know"),
    ("claims", "claims per answer"),
    ("frozen_score", "probe's mean score, frozen copy"),
    ("student_score", "probe's mean score, student"),
    ("frozen_auroc", "AUROC against the verifier, frozen copy"),
    ("student_auroc", "AUROC against the verifier, student"),
    ("fresh_auroc", "AUROC of a fresh probe on the student, other entities"),
    ("fresh_placebo", "the same with placebo labels"),
    ("kl", "KL to the start model, nats per token"),
    ("entropy", "entropy, nats per token"),
    ("neutral_loss", "loss on neutral text, nats per token"),
)


def lines_svg(title: str, lines: Mapping[str, Line], *, whole: bool = False) -> str:
    """SVG text of lines over steps; `whole` keeps the vertical axis from 0 to 1. Lines without a point are left out."""
    shown = {name: list(line) for name, line in lines.items() if line}
    values = [value for line in shown.values() for _, value in line] or [0.0]
    low, high = (0.0, 1.0) if whole else (min(0.0, *values), max(0.05, *values))
    last = max((step for line in shown.values() for step, _ in line), default=1) or 1
    margin = 0.04 * (high - low)
    up, across = Box(56, 40, 384, 190, low - margin, high + margin), Box(56, 40, 384, 190, 0, last)
    drawn, left, below = [], 24.0, 0
    for index, (name, line) in enumerate(shown.items()):
        end = f"{line[-1][1]:.2f}"
        wide = 36 + 6.0 * len(f"{name} {end}")
        if left > 24 and left + wide > _WIDTH:
            left, below = 24.0, below + 18
        drawn.append(
            {
                "name": name,
                "style": index % len(palette.ARMS),
                "last": end,
                "points": " ".join(f"{across.x(step)},{up.y(value)}" for step, value in line),
                "marks": [mark_path(index, across.x(step), up.y(value), 3.5) for step, value in line]
                if len(line) <= 30
                else [],
                "key": mark_path(index, left, 276 + below, 5),
                "left": left,
                "below": below,
            }
        )
        left += wide
    return (
        environment()
        .get_template("lines.svg")
        .render(
            title=title,
            width=_WIDTH,
            height=290 + below,
            box=up,
            rows=[(up.y(tick), f"{tick:g}") for tick in even_ticks(low, high)],
            columns=[(across.x(step), f"{step:g}") for step in dict.fromkeys((0, round(last / 2), last))],
            lines=drawn,
            palette=palette,
        )
    )


def scatter_svg(title: str, groups: Mapping[str, Line], *, across: str, up: str) -> str:
    """SVG text of groups of points (right, up), both between 0 and 1."""
    box = Box(64, 52, 420, 300, 0.0, 1.0)
    ticks = (0, 0.25, 0.5, 0.75, 1)
    drawn = [
        {
            "name": name,
            "style": index % len(palette.ARMS),
            "points": [mark_path(index, box.x(x), box.y(y), 4) for x, y in points],
            "key": mark_path(index, 510, 70 + 24 * index, 5),
            "top": 70 + 24 * index,
        }
        for index, (name, points) in enumerate(groups.items())
    ]
    return (
        environment()
        .get_template("scatter.svg")
        .render(
            title=title,
            groups=drawn,
            box=box,
            rows=[(box.y(tick), f"{tick:.0%}") for tick in ticks],
            columns=[(box.x(tick), f"{tick:g}") for tick in ticks],
            across=across,
            up=up,
            palette=palette,
        )
    )


def reward_pictures(run: RewardRun) -> list[str]:
    """The pictures of a run as SVG texts; those of what nobody measured are left out."""
    looks, steps = run.looks, run.steps

    def seen(name: str) -> Line:
        return [(look.step, getattr(look, name)) for look in looks if getattr(look, name) is not None]

    outcomes = ("maintained", "corrected", "retracted", "answered", "abstained", "bad_format")
    shares = {
        name.replace("_", " "): smooth(
            [(one.step, one.outcomes.get(name, 0) / max(1, sum(one.outcomes.values()))) for one in steps]
        )
        for name in outcomes
        if any(one.outcomes.get(name) for one in steps)
    }
    pictures: list[tuple[str, Mapping[str, Line], bool]] = [
        ("reward", {"reward": smooth([(one.step, one.reward) for one in steps])}, False),
        (
            "the same texts, read three ways",
            {
                "verifier": seen("unsupported"),
                "frozen": seen("frozen_score"),
                "student": seen("student_score"),
            },
            True,
        ),
        (
            "answers",
            {"right": seen("right_answers"), "wrong": seen("wrong_answers"), "abstained": seen("abstained")},
            True,
        ),
        (
            "AUROC",
            {
                "frozen": seen("frozen_auroc"),
                "student": seen("student_auroc"),
                "fresh": seen("fresh_auroc"),
                "fresh, placebo": seen("fresh_placebo"),
            },
            True,
        ),
        ("nats per token", {"KL": seen("kl"), "entropy": seen("entropy")}, False),
        ("outcomes of rollouts", shares, True),
    ]
    return [lines_svg(title, lines, whole=whole) for title, lines, whole in pictures if any(lines.values())]


def smooth(line: Line) -> list[tuple[float, float]]:
    """Running mean over the last few steps."""
    found = []
    for place, (step, _) in enumerate(line):
        values = [value for _, value in line[max(0, place - SMOOTH + 1) : place + 1]]
        found.append((step, sum(values) / len(values)))
    return found


def write_rewards(path: str | Path, run: RewardRun) -> Path:
    """Write the page of a training by rewards and return its path.

    Raises:
        RunError: The file cannot be written.
    """
    first, last = run.looks[0], run.looks[-1]
    context = {
        "title": run.folder.name,
        "run": run,
        "last": last,
        "verdict": _verdict(first, last, len(run.steps)),
        "pictures": [Markup(picture) for picture in reward_pictures(run)],
        "rows": [
            (title, _number(getattr(first, name)), _number(getattr(last, name)))
            for name, title in MEASURES
            if getattr(first, name) is not None or getattr(last, name) is not None
        ],
        "samples": sorted(  # those that changed first
            zip(first.examples, last.examples, strict=False), key=lambda pair: pair[0] == pair[1]
        )[:SAMPLES],
        "settings": sorted(run.config.model_dump(mode="json").items()),
    }
    return write_page(path, "rewards.html", context)


def _verdict(first: Look, last: Look, steps: int) -> str:
    if first.unsupported is None or last.unsupported is None:
        return (
            f"After {steps} steps the probe on the frozen copy gives the student's claims {_number(last.frozen_score)} on average, "
            f"{_number(first.frozen_score)} at the start. No verifier looked on: nobody knows whether they are true."
        )
    return (
        f"After {steps} steps the verifier does not support {last.unsupported:.0%} of the claims, {first.unsupported:.0%} at the start; "
        f"the probe on the frozen copy says {_number(last.frozen_score)}, on the student {_number(last.student_score)}."
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
