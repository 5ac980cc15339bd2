"""Calibration: logits to probabilities that come true, and the measures of how well they do.

Fitted on entities that the probe has not seen. `temperature` scales the logits (Guo et al. 2017), `platt` scales and shifts them (Platt
1999), `isotonic` fits any rising curve, stored as points with straight lines between (so that gradients pass through); `auto` takes
the last where there is enough to fit it on, else platt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fairlead.core.errors import ConfigError

METHODS = ("auto", "platt", "temperature", "isotonic", "none")
MIN_ISOTONIC = 400  # examples from which "auto" is isotonic rather than platt
SLOPE = 1e-3  # share of the uncalibrated probability in an isotonic one: rises everywhere, so that every threshold exists


@dataclass(frozen=True)
class Calibration:
    """A rising map from logits to probabilities.

    Attributes:
        method: One of `METHODS`.
        scale: Of the logit.
        shift: Added after it.
        logits: For isotonic, where the points stand.
        probabilities: ... and their height.
    """

    method: str = "none"
    scale: float = 1.0
    shift: float = 0.0
    logits: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __call__(self, logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probabilities of logits."""
        if self.method != "isotonic":
            return torch.sigmoid(logits * self.scale + self.shift)
        xs = torch.tensor(self.logits, dtype=logits.dtype, device=logits.device)
        ys = torch.tensor(self.probabilities, dtype=logits.dtype, device=logits.device)
        inside = logits.clamp(xs[0], xs[-1])
        right = torch.searchsorted(xs, inside.detach().contiguous()).clamp(1, len(xs) - 1)
        share = (inside - xs[right - 1]) / (xs[right] - xs[right - 1])
        curve = ys[right - 1] + share * (ys[right] - ys[right - 1])
        return (1 - SLOPE) * curve + SLOPE * torch.sigmoid(logits)

    def as_json(self) -> dict[str, Any]:
        """For `probe.json`."""
        return {
            "method": self.method,
            "scale": self.scale,
            "shift": self.shift,
            "logits": list(self.logits),
            "probabilities": list(self.probabilities),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """What `as_json` gave."""
        return cls(
            values["method"],
            float(values["scale"]),
            float(values["shift"]),
            tuple(values["logits"]),
            tuple(values["probabilities"]),
        )


def fit_calibration(logits: np.ndarray, labels: np.ndarray, *, method: str = "auto") -> Calibration:
    """Fit on logits `[n]` and labels `[n]` of examples that the probe was not fitted on.

    Raises:
        ConfigError: Unknown method, or a class is missing.
    """
    if method not in METHODS:
        raise ConfigError(f"calibration is {method!r}; use one of {', '.join(METHODS)}.")
    if method == "none":
        return Calibration()
    if labels.all() or not labels.any():
        raise ConfigError(
            "calibration needs examples of both classes. Next: give more data or a larger calibration_share."
        )
    if method == "auto":
        method = "isotonic" if len(labels) >= MIN_ISOTONIC else "platt"
    if method == "isotonic":
        return _isotonic(logits, labels)
    return _scaled(logits, labels, with_shift=method == "platt")


def _scaled(logits: np.ndarray, labels: np.ndarray, *, with_shift: bool) -> Calibration:
    """Minimise the cross-entropy; Platt's smoothed targets keep separable data finite."""
    from scipy.optimize import minimize

    num_pos, num_neg = labels.sum(), (~labels.astype(bool)).sum()
    targets = np.where(labels, (num_pos + 1) / (num_pos + 2), 1 / (num_neg + 2))

    def loss(theta: np.ndarray) -> float:
        z = np.exp(theta[0]) * logits + (theta[1] if with_shift else 0.0)
        return float(np.mean(np.logaddexp(0, z) - targets * z))

    found = minimize(loss, np.zeros(2 if with_shift else 1), method="Nelder-Mead")
    scale = float(np.exp(np.clip(found.x[0], -20, 20)))
    return Calibration(
        "platt" if with_shift else "temperature", scale, float(found.x[1]) if with_shift else 0.0
    )


def _isotonic(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logits, labels.astype(float))
    xs, first = np.unique(model.X_thresholds_.astype(np.float32), return_index=True)
    ys = model.y_thresholds_[first]
    if len(xs) < 2:
        xs, ys = np.array([xs[0], xs[0] + 1.0]), np.array([ys[0], ys[0]])
    return Calibration("isotonic", logits=tuple(map(float, xs)), probabilities=tuple(map(float, ys)))


class Bin(NamedTuple):
    """A bin of the reliability diagram: mean probability, share of positives, number of examples."""

    probability: float
    share: float
    num: int


def reliability(
    probabilities: Sequence[float] | np.ndarray, labels: np.ndarray, *, num_bins: int = 10
) -> list[Bin]:
    """Bins of equal width; empty ones are left out."""
    p, y = np.asarray(probabilities, float), np.asarray(labels, float)
    which = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [
        Bin(float(p[which == b].mean()), float(y[which == b].mean()), int((which == b).sum()))
        for b in range(num_bins)
        if (which == b).any()
    ]


def expected_calibration_error(
    probabilities: Sequence[float] | np.ndarray, labels: np.ndarray, *, num_bins: int = 10
) -> float:
    """Mean distance of probability and share over the bins, weighted by their examples (Naeini et al. 2015)."""
    bins = reliability(probabilities, labels, num_bins=num_bins)
    total = sum(b.num for b in bins)
    return sum(b.num * abs(b.probability - b.share) for b in bins) / total if total else float("nan")
