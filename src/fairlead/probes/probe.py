"""Linear probes: logistic regression or difference of means, scored on held-out activations.

A probe is a `Readout`: `score = h . w + b` in the units of the activations (any scaling used in fitting is folded in). It knows its site
and the fingerprint of the model it was fitted on, and refuses to read another model unless told to (reading the trained model with
the start model's probe is a measure of its own).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairlead.core.errors import ConfigError, ModelError, SiteError
from fairlead.core.nouns import Direction
from fairlead.core.run import atomic_path
from fairlead.core.site import Site
from fairlead.core.stats import auroc

if TYPE_CHECKING:
    from fairlead.models import Model

Method = Literal["logistic", "mean_difference"]
WEIGHTS_FILE = "probe.safetensors"
ABOUT_FILE = "probe.json"
INNER_FOLDER = "probe"


@dataclass(frozen=True)
class Probe:
    """A linear readout with its record.

    Attributes:
        direction: Site and vector `[d_model]`; the score rises along it.
        bias: Added to the score; 0 is the decision boundary.
        method: How it was fitted.
        auroc: On held-out activations of the model it was fitted on; None where none were held out.
        model_fingerprint: Of that model; "" where unknown.
        data_sha256: Of the activations it was fitted on; "" where unknown.
        num_positive: Activations it was fitted on, per side.
        num_negative: Activations it was fitted on, per side.
    """

    direction: Direction
    bias: float
    method: Method
    auroc: float | None = None
    model_fingerprint: str = ""
    data_sha256: str = ""
    num_positive: int = 0
    num_negative: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        """Where it reads."""
        return self.direction.site

    @property
    def name(self) -> str:
        """What it reads; "" where nobody said."""
        return self.direction.name

    def __call__(self, activations: Tensor) -> Tensor:
        """Scores `[...]` of activations `[..., d_model]`."""
        return activations @ self.direction.vector.to(activations) + self.bias

    def score(self, positive: Tensor, negative: Tensor) -> float:
        """AUROC of telling `positive` from `negative` activations, each `[n, d_model]`."""
        return auroc(self(positive.float()).tolist(), self(negative.float()).tolist())

    def check(self, model: Model, site: Site | str | None = None) -> None:
        """Confirm that it belongs to this model and site.

        Raises:
            ModelError: Another model, or nobody knows which.
            SiteError: Another site.
        """
        if not self.model_fingerprint:
            raise ModelError(
                "this probe does not say which model it was fitted on. Next: fit it with model_fingerprint=model.fingerprint, or pass "
                "any_model=True to read it all the same."
            )
        if self.model_fingerprint != model.fingerprint:
            raise ModelError(
                f"this probe was fitted on another model (fingerprint {self.model_fingerprint[:12]}) than {model.name} "
                f"({model.fingerprint[:12]}). Next: fit one for this model."
            )
        if len(self.direction.vector) != model.d_model:
            raise ModelError(
                f"this probe reads width {len(self.direction.vector)}, {model.name} has width {model.d_model}. Next: fit one "
                "for this model."
            )
        if site is not None and Site.parse(site) != self.site:
            raise SiteError(f"this probe reads {self.site}, not {site}. Next: capture at {self.site}.")

    def save(self, folder: str | Path) -> Path:
        """Write the folder atomically (safetensors and JSON)."""
        folder = Path(folder)
        about = {
            "format": "fairlead.probe",
            "version": 1,
            "site": str(self.site),
            "name": self.direction.name,
            "provenance": self.direction.provenance,
            "bias": self.bias,
            "method": self.method,
            "auroc": self.auroc,
            "model_fingerprint": self.model_fingerprint,
            "data_sha256": self.data_sha256,
            "num_positive": self.num_positive,
            "num_negative": self.num_negative,
            "details": self.details,
        }
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            save_file({"vector": self.direction.vector.float().contiguous()}, temporary / WEIGHTS_FILE)
            (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        return folder


def fit_probe(
    positive: Tensor,
    negative: Tensor,
    *,
    site: Site | str,
    method: Method = "logistic",
    seed: int = 0,
    heldout: float = 0.3,
    name: str = "",
    model_fingerprint: str = "",
    regularisation: float = 1.0,
) -> Probe:
    """Fit a probe that scores `positive` above `negative` activations.

    A share of both sides is held out first and the AUROC is that of a probe fitted on the rest; the probe that is returned
    is then fitted on everything.

    Args:
        positive: `[n, d_model]`.
        negative: `[m, d_model]`.
        site: Where they were captured.
        method: "logistic" (L2, on standardised activations) or "mean_difference" (the boundary halfway between the means).
        seed: Of the split.
        heldout: Share held out; 0 for none.
        name: What it reads.
        model_fingerprint: Of the model they came from.
        regularisation: Inverse strength C of the L2 penalty.

    Raises:
        ConfigError: A side is empty, too small to hold out from, not finite, or the widths differ.
    """
    positive, negative = positive.float().cpu(), negative.float().cpu()
    _check(positive, negative, heldout)
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(side)) for side in (positive, negative)]
    cuts = [round(heldout * len(order)) if heldout else 0 for order in orders]
    if heldout:
        cuts = [max(1, cut) for cut in cuts]
    score = None
    fit = _fit_logistic if method == "logistic" else _fit_means
    if heldout:
        rest = [
            side[order[cut:]] for side, order, cut in zip((positive, negative), orders, cuts, strict=True)
        ]
        held = [
            side[order[:cut]] for side, order, cut in zip((positive, negative), orders, cuts, strict=True)
        ]
        vector, bias = fit(rest[0], rest[1], regularisation)
        score = auroc((held[0] @ vector + bias).tolist(), (held[1] @ vector + bias).tolist())
    vector, bias = fit(positive, negative, regularisation)
    about = {"method": method, "seed": seed, "num_positive": len(positive), "num_negative": len(negative)}
    return Probe(
        direction=Direction(Site.parse(site), vector, name, about),
        bias=bias,
        method=method,
        auroc=score,
        model_fingerprint=model_fingerprint,
        data_sha256=_sha256(positive, negative),
        num_positive=len(positive),
        num_negative=len(negative),
    )


def probe_folder(folder: str | Path) -> Path:
    """Where a probe's files lie: in the folder itself, or in its `probe` (run folders of `probe fit`, guards)."""
    folder = Path(folder)
    inner = folder / INNER_FOLDER
    return inner if not (folder / ABOUT_FILE).is_file() and (inner / ABOUT_FILE).is_file() else folder


def load_probe(folder: str | Path, *, model: Model | None, any_model: bool = False) -> Probe:
    """Read what `Probe.save` wrote; a run folder or a guard that holds it will do.

    Args:
        folder: Of the probe.
        model: The model whose activations it will read; None leaves the check (`Probe.check`) to the caller.
        any_model: Accept another model than it was fitted on (a trained one: reading it with the start model's probe is a measure of
            its own), or an unknown one.

    Raises:
        ConfigError: Missing or broken files.
        ModelError: Another model, or the probe does not say which.
    """
    folder = probe_folder(folder)
    try:
        about = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
        vector = load_file(folder / WEIGHTS_FILE)["vector"]
        if about.get("format") != "fairlead.probe" or about.get("version") != 1:
            raise ConfigError(
                f"{folder}: not a probe of a version that is known here. Next: update fairlead."
            )
        direction = Direction(Site.parse(about["site"]), vector, about["name"], about["provenance"])
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such file. Next: check the folder of the probe.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, SafetensorError) as error:
        raise ConfigError(f"{folder}: broken probe ({error}). Next: fit it again.") from error
    names = ("bias", "method", "auroc", "model_fingerprint", "num_positive", "num_negative", "details")
    values = {name: about[name] for name in names} | {"data_sha256": about.get("data_sha256", "")}
    probe = replace(Probe(direction, 0.0, "logistic"), **values)
    if model is not None and not any_model:
        probe.check(model)
    return probe


def _sha256(*sides: Tensor) -> str:
    digest = hashlib.sha256()
    for side in sides:
        digest.update(f"{tuple(side.shape)}".encode())
        digest.update(side.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fit_logistic(positive: Tensor, negative: Tensor, regularisation: float) -> tuple[Tensor, float]:
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([positive, negative]).double()
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(scale > 1e-8 * scale.max().clamp_min(1e-30), scale, torch.ones_like(scale))
    labels = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    model = LogisticRegression(C=regularisation, class_weight="balanced", max_iter=2000)
    model.fit(((x - mean) / scale).numpy(), labels)
    weights = torch.from_numpy(model.coef_[0]) / scale
    bias = float(np.ravel(model.intercept_)[0]) - float(weights @ mean)
    return weights.float(), bias


def _fit_means(positive: Tensor, negative: Tensor, regularisation: float) -> tuple[Tensor, float]:
    high, low = positive.mean(0), negative.mean(0)
    vector = high - low
    return vector, -float(vector @ (high + low) / 2)


def _check(positive: Tensor, negative: Tensor, heldout: float) -> None:
    if positive.dim() != 2 or negative.dim() != 2 or positive.shape[1] != negative.shape[1]:
        raise ConfigError(
            f"activations must be [n, d_model] of one width, are {list(positive.shape)} and {list(negative.shape)}."
        )
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout is {heldout}; it must lie between 0 and 1.")
    need = 2 if heldout else 1
    if min(len(positive), len(negative)) < need:
        raise ConfigError(
            f"a probe needs at least {need} activation(s) on each side, there are {len(positive)} and {len(negative)}. Next: give "
            "more examples."
        )
    if not (torch.isfinite(positive).all() and torch.isfinite(negative).all()):
        raise ConfigError("activations hold values that are not finite. Next: check the model's weights.")
