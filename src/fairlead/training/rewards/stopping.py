"""When a training by rewards stops by itself: by what the monitors saw at a look, and by what every step tells for nothing."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.training.rewards.config import StopRule
from fairlead.training.rewards.monitors import Look

WINDOW = 5  # steps over which a step's noisy numbers are taken together


def why_stop(look: Look, first: Look, rule: StopRule) -> str | None:
    """The reason for which a training stops after a look; None where it goes on."""
    if rule.max_kl is not None and look.kl > rule.max_kl:
        return f"the student is {look.kl:.2f} nats per token from the start model (limit {rule.max_kl:g})"
    if rule.min_claims is not None and look.claims < rule.min_claims * first.claims:
        return f"claims per answer fell from {first.claims:.2f} to {look.claims:.2f} (limit {rule.min_claims:.0%} of the start)"
    if rule.max_gap is not None and (gap := _gap(look) - _gap(first)) > rule.max_gap:
        return (
            f"frozen and student scores of the same text part by {gap:.2f} more than at the start (limit {rule.max_gap:g}): "
            "the student's activations leave the probe"
        )
    rise = _change(look, first, "unsupported")
    if rule.max_unsupported is not None and rise is not None and rise > rule.max_unsupported:
        return (
            f"the verifier supports fewer claims: {look.unsupported:.0%} are not, {first.unsupported:.0%} at the start (limit "
            f"+{rule.max_unsupported:.0%})"
        )
    if (
        rule.min_right is not None
        and look.right_answers is not None
        and first.right_answers
        and look.right_answers < rule.min_right * first.right_answers
    ):
        return f"right answers fell from {first.right_answers:.0%} to {look.right_answers:.0%} (limit {rule.min_right:.0%} of the start)"
    fall = _change(first, look, "fresh_auroc")
    if rule.max_fresh_fall is not None and fall is not None and fall > rule.max_fresh_fall:
        return (
            f"a fresh probe reads the student {fall:.2f} worse than at the start (limit {rule.max_fresh_fall:g}): what told true from "
            "made-up is no longer there"
        )
    if rule.max_neutral_loss is not None and look.neutral_loss and first.neutral_loss:
        more = look.neutral_loss / first.neutral_loss - 1
        if more > rule.max_neutral_loss:
            return f"the loss on neutral text rose by {more:.0%} (limit {rule.max_neutral_loss:.0%})"
    return None


def why_stop_now(kls: Sequence[float | None], claims: Sequence[float | None], rule: StopRule) -> str | None:
    """The reason for which a training stops between looks, from its rollouts; None where it goes on.

    Args:
        kls: Of all steps so far, nats per token; None where the KL has no weight (looks measure it then).
        claims: Per plain answer; None for steps without any.
        rule: The limits, held against means over a few steps.
    """
    known = [kl for kl in kls[-WINDOW:] if kl is not None]
    if rule.max_kl is not None and len(kls) >= WINDOW and known and _mean(known) > rule.max_kl:
        return f"the student's rollouts are {_mean(known):.2f} nats per token from the start model (limit {rule.max_kl:g})"
    told = [num for num in claims if num is not None]
    if rule.min_claims is not None and len(told) >= 2 * WINDOW:
        start, now = _mean(told[:WINDOW]), _mean(told[-WINDOW:])
        if now < rule.min_claims * start:
            return f"claims per plain answer fell from {start:.2f} to {now:.2f} (limit {rule.min_claims:.0%} of the start)"
    return None


def _gap(look: Look) -> float:
    if look.frozen_score is None or look.student_score is None:
        return 0.0
    return look.frozen_score - look.student_score


def _change(now: Look, then: Look, name: str) -> float | None:
    one, other = getattr(now, name), getattr(then, name)
    return None if one is None or other is None else one - other


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
