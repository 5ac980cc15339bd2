"""What a report says in numbers: every arm summarised over its seeds, pure functions of the records.

- **skill**: mean of the `skill.NAME.plain` measures (right and without an avoided trait; `skill.NAME` where that is absent).
- **kept**: the part of plain fine-tuning's gain that an arm has, asked and answered plainly:
  `(arm skill.NAME.plain - base skill.NAME.plain) / (reference arm skill.NAME - base skill.NAME)`, per seed, averaged over
  skills; the denominator is the reference arm's mean over its seeds. None where the reference gains under
  1 point, or no more than the start model's own interval: a share of noise says nothing.
- **leak**: the largest `leak.*` measure of a run, over traits and prompt groups.
- **request**: the smallest `request.*` measure.
- **neutral**: `loss.neutral / base loss.neutral - 1`.

Intervals are Student t intervals over seeds (`core.stats.t_interval`), cut at the possible values of shares and
correlations; with one seed there is none, and none is invented.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fairlead.core.config import Config
from fairlead.core.results import Comparison, Measure, Verification
from fairlead.core.stats import t_interval

BASE_NAME = "start model"
_ORDER = ("skill", "leak", "elicited", "request", "loss", "monitor")
_SHARE = (0.0, 1.0)
_VARIANT = {"": 0, "plain": 1, "heldout": 2, "domain": 3, "neutral": 4}


class Goals(Config):
    """What a training should reach; a report says where it did not."""

    kept: float = 0.95  # least share of plain fine-tuning's gain
    leak: float = 0.02  # most leak
    request: float = 0.95  # least share with the trait when it is asked for
    neutral: float = 0.05  # most relative rise of the neutral loss
    spearman: float = 0.5  # least rank correlation of predicted and measured
    auroc_drop: float = 0.05  # most fall of a probe's AUROC against the start model
    fvu_rise: float = 0.05  # most rise of the dictionary's unexplained variance
    remainder: float = 0.5  # most share of the gradient outside the dictionary
    stability: float = 0.75  # least stability of a line that is kept or avoided
    confidence: float = 0.6  # least confidence of a decision
    seeds: int = 3  # least number of seeds


class Cell(NamedTuple):
    """A number over the seeds of an arm: mean, 95 % t interval (nan for one seed), the values."""

    value: float
    low: float
    high: float
    values: tuple[float, ...]


class Arm(NamedTuple):
    """One arm over its seeds; `role` is "base", "reference", "intended" or "other"."""

    name: str
    role: str
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    measures: dict[str, Cell]
    skill: Cell | None
    kept: Cell | None
    leak: Cell | None
    request: Cell | None
    neutral: Cell | None
    spearman: Cell | None
    seconds: float


class Summary(NamedTuple):
    """All arms of a comparison, or the one model of a verification, beside the start model."""

    base: Arm | None
    arms: tuple[Arm, ...]
    reference: Arm | None
    intended: Arm | None
    intended_why: str
    measures: tuple[str, ...]


def over_seeds(
    values: list[float] | tuple[float, ...], *, bounds: tuple[float, float] | None = None
) -> Cell | None:
    """Mean and t interval of the finite values; None where there is none.

    Args:
        bounds: Least and largest possible value; the interval is cut there, where a t interval may reach beyond.
    """
    finite = [float(v) for v in values if v is not None and np.isfinite(v)]
    if not finite:
        return None
    mean, low, high = t_interval(finite)
    if bounds:
        low, high = (float(np.clip(edge, *bounds)) for edge in (low, high))  # nan stays nan
    return Cell(mean, low, high, tuple(finite))


def parts_of(measure: str) -> tuple[str, str, str]:
    """Family, name and variant of a measure: "skill.addition.plain" -> ("skill", "addition", "plain")."""
    family, _, rest = measure.partition(".")
    name, _, variant = rest.partition(".")
    return family, name, variant


def measure_label(measure: str) -> str:
    """A measure in words."""
    family, name, variant = parts_of(measure)
    nice = name.replace("_", " ")
    if family == "skill":
        how = {"": "right", "plain": "right and plain", "heldout": "right, held-out"}.get(variant, variant)
        return f"{nice}: {how}"
    if family == "leak":
        where = {"domain": "on-topic prompts", "neutral": "other prompts"}.get(variant, variant)
        return f"{nice} leaks on {where}"
    if family == "request":
        return f"{nice} on request"
    if family == "elicited":
        return f"{nice} after an opening in its style"
    if family == "loss":
        text = {"neutral": "neutral text", "keep": "held-out text to keep"}.get(name, f"held-out {nice} text")
        return f"loss on {text} (nats per token)"
    if measure == "monitor.dictionary.fvu":
        return "dictionary: variance unexplained (FVU)"
    if measure == "monitor.dictionary.ce_recovered":
        return "dictionary: cross-entropy recovered"
    if family == "monitor":
        what = {"old_probe": "old probe", "new_probe": "retrained probe", "text_only": "text only"}
        kind, one = variant.removesuffix("_token"), ", one token" if variant.endswith("_token") else ""
        return f"{nice}: {what.get(kind, kind)}{one} (AUROC)"
    return measure


def measure_order(measure: str) -> tuple[int, str, int, str]:
    """Sort key: skill, leak, request, loss, monitor, then the rest."""
    family, name, variant = parts_of(measure)
    rank = _ORDER.index(family) if family in _ORDER else len(_ORDER)
    return rank, name, _VARIANT.get(variant, 9), variant


def names_of(summary: Summary, family: str) -> list[str]:
    """Names in a family ("leak" gives the traits), in order."""
    found = [parts_of(m)[1] for m in summary.measures if m.startswith(family + ".")]
    return [n for n in dict.fromkeys(found) if not (family == "monitor" and n == "dictionary")]


def reference_name(comparison: Comparison) -> str | None:
    """The arm of plain fine-tuning: the one named "plain", else the first without controls."""
    names = comparison.arm_names()
    if "plain" in names:
        return "plain"
    return next((r.arm for r in comparison.arms if not r.controls), None)


def summarize(comparison: Comparison | None, verification: Verification | None = None) -> Summary | None:
    """Summarise a comparison, or a lone verification; None without either.

    The intended arm is the one named "auto", "recipe" or "intended" (or starting so), else the arm with the largest
    skill minus leak among those that are not the reference.
    """
    if comparison is None:
        if verification is None:
            return None
        only = _arm(verification.model, "intended", (), (0,), [verification], None, {}, 0.0)
        measures = tuple(sorted(only.measures, key=measure_order))
        return Summary(None, (only,), None, only, "the only model measured", measures)
    runs = {n: [r for r in comparison.arms if r.arm == n] for n in comparison.arm_names()}
    reference = reference_name(comparison)
    gains = _gains([r.verification for r in runs[reference]], comparison.base) if reference else {}
    arms = [
        _arm(
            name,
            "reference" if name == reference else "other",
            results[0].controls,
            tuple(r.seed for r in results),
            [r.verification for r in results],
            comparison.base,
            gains,
            float(np.mean([r.seconds for r in results])),
        )
        for name, results in runs.items()
    ]
    base = _arm(BASE_NAME, "base", (), (), [comparison.base], comparison.base, gains, 0.0)
    chosen, why = _intended(arms)
    arms = [a._replace(role="intended") if chosen and a.name == chosen.name else a for a in arms]
    measures = sorted({m for a in (base, *arms) for m in a.measures}, key=measure_order)
    return Summary(
        base,
        tuple(arms),
        next((a for a in arms if a.name == reference), None),
        next((a for a in arms if a.role == "intended"), None),
        why,
        tuple(measures),
    )


def _intended(arms: list[Arm]) -> tuple[Arm | None, str]:
    real = [arm for arm in arms if "placebo" not in arm.name.lower()]
    for word in ("auto", "recipe", "intended"):
        exact = [arm for arm in arms if arm.name.lower() == word]
        if exact:
            return exact[0], "the intended recipe"
        for arm in real:
            if arm.name.lower().startswith(word):
                return arm, "the intended recipe"
    others = [a for a in real if a.role != "reference" and a.skill and a.leak]
    if others:
        best = max(others, key=lambda a: a.skill.value - a.leak.value)  # type: ignore[union-attr]
        return best, "the arm with the most skill minus leak, chosen after the fact"
    return (arms[0], "the only arm") if len(arms) == 1 else (None, "")


def _gains(reference: list[Verification], base: Verification) -> dict[str, float]:
    gains = {}
    for name in {parts_of(m)[1] for m in base.measures if m.startswith("skill.")}:
        key = f"skill.{name}"
        values = [v.measures[key].value for v in reference if key in v.measures]
        if key in base.measures and values:
            gain = float(np.mean(values)) - base.measures[key].value
            told_apart = base.measures[key].value + gain > base.measures[key].high
            if np.isfinite(gain) and gain >= 0.01 and told_apart:
                gains[name] = gain
    return gains


def _arm(
    name: str,
    role: str,
    controls: tuple[str, ...],
    seeds: tuple[int, ...],
    found: list[Verification],
    base: Verification | None,
    gains: dict[str, float],
    seconds: float,
) -> Arm:
    keys = {m for v in found for m in v.measures}
    measures = {}
    for key in keys:
        here = [v.measures[key] for v in found if key in v.measures]
        cell = over_seeds(
            [m.value for m in here],
            bounds=_SHARE if key.startswith(("skill.", "leak.", "request.")) else None,
        )
        if cell is not None:
            # a lone model without seeds keeps the interval over its items
            measures[key] = Cell(cell.value, here[0].low, here[0].high, cell.values) if base is None else cell
    if role == "base":
        measures = {
            k: Cell(c.value, found[0].measures[k].low, found[0].measures[k].high, c.values)
            for k, c in measures.items()
        }
    return Arm(
        name,
        role,
        controls,
        seeds,
        measures,
        over_seeds([plain_skill(v.measures) for v in found], bounds=_SHARE),
        over_seeds([_kept(v.measures, base.measures, gains) for v in found]) if base else None,
        over_seeds([worst_leak(v.measures) for v in found], bounds=_SHARE),
        over_seeds([_extreme(v.measures, "request.", min) for v in found], bounds=_SHARE),
        over_seeds([_rise(v.measures, base.measures) for v in found]) if base else None,
        over_seeds(
            [v.prediction_spearman for v in found if v.prediction_spearman is not None], bounds=(-1.0, 1.0)
        ),
        seconds,
    )


def plain_skill(measures: dict[str, Measure]) -> float:
    """Mean over skills of "right and plain" (of "right" where that is absent); nan without a skill."""
    names = dict.fromkeys(parts_of(m)[1] for m in measures if m.startswith("skill."))
    values = []
    for name in names:
        for key in (f"skill.{name}.plain", f"skill.{name}"):
            if key in measures:
                values.append(measures[key].value)
                break
    return float(np.mean(values)) if values else float("nan")


def worst_leak(measures: dict[str, Measure]) -> float:
    """The largest leak over traits and prompt groups; nan without one."""
    return _extreme(measures, "leak.", max)


def _extreme(measures: dict[str, Measure], prefix: str, pick: Callable[..., float]) -> float:
    values = [m.value for k, m in measures.items() if k.startswith(prefix) and np.isfinite(m.value)]
    return float(pick(values)) if values else float("nan")


def _kept(measures: dict[str, Measure], base: dict[str, Measure], gains: dict[str, float]) -> float:
    shares = []
    for name, gain in gains.items():
        for key in (f"skill.{name}.plain", f"skill.{name}"):
            if key in measures and key in base:
                shares.append((measures[key].value - base[key].value) / gain)
                break
    return float(np.mean(shares)) if shares else float("nan")


def _rise(measures: dict[str, Measure], base: dict[str, Measure]) -> float:
    key = "loss.neutral"
    if key not in measures or key not in base or not base[key].value > 0:
        return float("nan")
    return measures[key].value / base[key].value - 1
