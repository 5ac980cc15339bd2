"""A fitted span probe: a `SpanReadout` with its record, saved as safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairlead.core.claims import TokenSpan
from fairlead.core.errors import ConfigError, ModelError
from fairlead.core.run import atomic_path
from fairlead.core.site import Site
from fairlead.models.adapters import LowRank, adapted
from fairlead.probes.calibrating import Calibration
from fairlead.probes.head import Head, SpanProbeConfig
from fairlead.probes.kinds import get_kind
from fairlead.probes.probe import probe_folder
from fairlead.probes.reading import Reading, gather_spans, make_reading
from fairlead.probes.token_head import TokenHead

if TYPE_CHECKING:
    from fairlead.models import Model

WEIGHTS_FILE = "probe.safetensors"
ABOUT_FILE = "probe.json"
FORMAT, VERSION = "fairlead.span_probe", 1
SPAN, TOKEN, ADAPTER = "span.", "token.", "adapter."  # prefixes of the weights


@dataclass(frozen=True)
class SpanProbe:
    """A readout of stretches of tokens (`fairlead.core.nouns.SpanReadout`).

    Attributes:
        reading: What it sees of a token.
        head: Features of a span to its logit.
        token_head: Features of a token to its logit.
        calibration: Logits of spans to probabilities.
        token_calibration: Logits of single tokens to probabilities (that the span they stand in is positive).
        config: Settings of the fit, with the sites that were used.
        name: What its positive class is ("unsupported").
        model_fingerprint: Of the model it was fitted on.
        data_sha256: Of the examples it was fitted on.
        metrics: Measures on held-out entities.
        details: What else is known of the fit.
        adapters: Of a LoRA probe: what must be attached to the model when its activations are captured.
        seen: Keys of the entities whose labels fitted or calibrated it (`fairlead.probes.seen`); empty for probes of before they were kept.
    """

    reading: Reading
    head: Head
    token_head: Head
    calibration: Calibration
    token_calibration: Calibration
    config: SpanProbeConfig
    name: str
    model_fingerprint: str
    data_sha256: str
    metrics: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, LowRank] = field(default_factory=dict)
    seen: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that must be captured."""
        return self.reading.sites

    @property
    def sites_beside_confidence(self) -> tuple[Site, ...] | None:
        """What must be captured where the model's confidence is given (`models.lens.CONFIDENCE`); None where it is not read at all."""
        return self.reading.layers if self.reading.lens is not None else None

    def token_scores(self, activations: Mapping[str, Tensor]) -> Float[Tensor, "batch seq"]:
        """Probability of each token that what it stands in is positive, from it and the token before it alone."""
        return self.token_calibration(self.token_head.token_logits(self.reading.features(activations)))

    def span_scores(
        self, activations: Mapping[str, Tensor], spans: Sequence[TokenSpan]
    ) -> Float[Tensor, " span"]:
        """Calibrated probability of each span, from the activations of its own tokens alone."""
        return self.calibration(self.span_logits(activations, spans))

    def span_and_token_scores(
        self, activations: Mapping[str, Tensor], spans: Sequence[TokenSpan]
    ) -> tuple[Float[Tensor, " span"], Float[Tensor, "batch seq"]]:
        """`span_scores` and `token_scores`, from one reading (confidence costs as much as the model's head)."""
        features = self.reading.features(activations)
        found = self.head.span_logits(*gather_spans(features, spans)) if spans else features.new_zeros(0)
        return self.calibration(found), self.token_calibration(self.token_head.token_logits(features))

    def span_logits(
        self, activations: Mapping[str, Tensor], spans: Sequence[TokenSpan]
    ) -> Float[Tensor, " span"]:
        """Logit of each span, before calibration."""
        if not spans:
            return next(iter(activations.values())).new_zeros(0, dtype=torch.float32)
        return self.head.span_logits(*gather_spans(self.reading.features(activations), spans))

    @contextmanager
    def attached(self, model: Model) -> Iterator[None]:
        """The model as this probe reads it: with its adapters where it has any, unchanged otherwise."""
        with adapted(model, self.adapters):
            yield

    def check(self, model: Model) -> None:
        """Confirm that it belongs to this model.

        Raises:
            ModelError: Another model.
        """
        if self.model_fingerprint != model.fingerprint:
            raise ModelError(
                f"this probe was fitted on another model (fingerprint {self.model_fingerprint[:12]}) than {model.name} "
                f"({model.fingerprint[:12]}). Next: fit one for this model, or pass any_model=True to read it all the same."
            )

    def on(self, model: Model) -> SpanProbe:
        """The same probe, reading another model (a student) with that model's own embedding and unembedding.

        A lens knows tokens by the embedding it was made with: as soon as a training moves the embedding, the start model's finds others.
        """
        confidence = bool(self.head.num_confidence)
        return replace(self, reading=make_reading(model, self.config.sites or (), confidence=confidence))

    def to(self, device: torch.device | str) -> SpanProbe:
        """The same probe with its weights on a device."""
        self.head.to(device)
        self.token_head.to(device)
        return self

    def _adapter_weights(self) -> dict[str, Tensor]:
        return {
            f"{ADAPTER}{part}.{name}": getattr(adapter, part).detach().cpu().contiguous()
            for name, adapter in self.adapters.items()
            for part in LowRank._fields
        }

    def save(self, folder: str | Path) -> Path:
        """Write the folder atomically (safetensors and JSON)."""
        folder = Path(folder)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "sites": [str(site) for site in self.sites],
            "config": self.config.model_dump(mode="json"),
            "calibration": self.calibration.as_json(),
            "token_calibration": self.token_calibration.as_json(),
            "shape": {
                "num_features": self.head.num_features,
                "num_confidence": self.head.num_confidence,
                "num_carried": self.head.num_carried,
            },
            "model_fingerprint": self.model_fingerprint,
            "data_sha256": self.data_sha256,
            "metrics": self.metrics,
            "details": self.details,
            "seen": list(self.seen),
        }
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            save_file(
                {**_weights(self.head, SPAN), **_weights(self.token_head, TOKEN), **self._adapter_weights()},
                temporary / WEIGHTS_FILE,
            )
            (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        return folder


def load_span_probe(folder: str | Path, *, model: Model | None, any_model: bool = False) -> SpanProbe:
    """Read what `SpanProbe.save` wrote; a run folder of `probe fit` or a guard that holds it will do.

    Args:
        folder: Of the probe.
        model: The model whose activations it will read; its unembedding serves probes that read confidence. None leaves the check to
            the caller, for probes that read activations only.
        any_model: Accept another model than it was fitted on (a trained one: reading it with the start model's probe is a measure of
            its own).

    Raises:
        ConfigError: Missing or broken files.
        ModelError: Another model.
    """
    folder = probe_folder(folder)
    try:
        about = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
        if about.get("format") != FORMAT or about.get("version") != VERSION:
            raise ConfigError(
                f"{folder}: not a span probe of a version that is known here. Next: update fairlead."
            )
        config = SpanProbeConfig(**about["config"])
        weights = load_file(folder / WEIGHTS_FILE)
        head = get_kind(config.kind).head(**about["shape"], **config.model_dump())
        token_head = TokenHead(**about["shape"])
        for part, prefix in ((head, SPAN), (token_head, TOKEN)):
            part.load_state_dict(
                {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            )
        calibration = Calibration.from_json(about["calibration"])
        token_calibration = Calibration.from_json(about["token_calibration"])
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such file. Next: check the folder of the probe.") from None
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ConfigError(f"{folder}: broken probe ({error}). Next: fit it again.") from error
    probe = SpanProbe(
        Reading((), None),
        head.eval().requires_grad_(False),
        token_head.eval().requires_grad_(False),
        calibration,
        token_calibration,
        config,
        about["name"],
        about["model_fingerprint"],
        about["data_sha256"],
        about["metrics"],
        about["details"],
        seen=tuple(about.get("seen", ())),
    )
    if model is not None and not any_model:
        probe.check(model)
    reading = make_reading(model, config.sites or (), confidence=bool(head.num_confidence))
    device = "cpu" if model is None else model.device
    adapters = {
        name.removeprefix(f"{ADAPTER}down."): LowRank(
            down.to(device), weights[name.replace("down.", "up.", 1)].to(device)
        )
        for name, down in weights.items()
        if name.startswith(f"{ADAPTER}down.")
    }
    probe = replace(probe, reading=reading, adapters=adapters)
    return probe if model is None else probe.to(model.device)


def _weights(head: Head, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
