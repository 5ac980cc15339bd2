"""What a probe sees of each token: activations at its sites and, where wanted, the model's own confidence.

Confidence columns (nats; `fairlead.models.lens`): entropy, top and gap at the token, then the token's surprisal and the entropy and
top at the token before it, from which it was predicted. The last three are carried over from the token before; for the first token
of a span they are masked, so that a span's score depends on its own tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fairlead.core.claims import TokenSpan
from fairlead.core.errors import ConfigError
from fairlead.core.site import Site
from fairlead.models.lens import CONFIDENCE, Confidence, Lens

if TYPE_CHECKING:
    from fairlead.models import Model

NUM_OWN, NUM_CARRIED = 3, 3
EMBED = Site("embed")


@dataclass(frozen=True)
class Reading:
    """Which places are read, and with which lens.

    Attributes:
        layers: Sites whose activations are features.
        lens: Reads the model's confidence; None for activations only.
    """

    layers: tuple[Site, ...]
    lens: Lens | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that must be captured."""
        extra = (EMBED, self.lens.site) if self.lens is not None else ()
        return tuple(dict.fromkeys((*self.layers, *extra)))

    @property
    def num_confidence(self) -> int:
        """Confidence columns at the end of the features."""
        return NUM_OWN + NUM_CARRIED if self.lens is not None else 0

    def features(self, activations: Mapping[str, Tensor]) -> Float[Tensor, "batch seq feature"]:
        """Features of every token, in float32: activations, then confidence (as given under `CONFIDENCE`, else by the lens)."""
        given = activations.get(CONFIDENCE) if self.lens is not None else None
        wanted = self.sites if given is None else self.layers
        missing = [str(site) for site in wanted if str(site) not in activations]
        if missing:
            raise ConfigError(
                f"activations at {', '.join(missing)} are missing. Next: capture at the probe's sites."
            )
        parts = [activations[str(site)].float() for site in self.layers]
        if self.lens is not None:
            if given is None:
                seen = self.lens.confidence(activations[str(EMBED)], activations[str(self.lens.site)])
            else:
                seen = Confidence(*given.unbind(-1))
            before = [torch.nn.functional.pad(c[:, :-1], (1, 0)) for c in (seen.entropy, seen.top)]
            parts.append(torch.stack([seen.entropy, seen.top, seen.gap, seen.surprisal, *before], dim=-1))
        return torch.cat(parts, dim=-1)


def gather_spans(
    features: Float[Tensor, "batch seq feature"], spans: Sequence[TokenSpan]
) -> tuple[Float[Tensor, "span token feature"], Bool[Tensor, "span token"]]:
    """Features of the tokens of each span, padded on the right, and which are there.

    Raises:
        ConfigError: A span is empty or leaves the batch.
    """
    num, width = features.shape[:2]
    for span in spans:
        if not (0 <= span.row < num and 0 <= span.start < span.end <= width):
            raise ConfigError(f"{span} is empty or not within a batch of {num} rows of {width} tokens.")
    device = features.device
    rows = torch.tensor([span.row for span in spans], device=device)
    starts = torch.tensor([span.start for span in spans], device=device)
    lengths = torch.tensor([span.end - span.start for span in spans], device=device)
    steps = torch.arange(max((s.end - s.start for s in spans), default=1), device=device)
    mask = steps < lengths[:, None]
    places = torch.where(mask, starts[:, None] + steps, starts[:, None])
    return features[rows[:, None], places], mask


def make_reading(model: Model | None, layers: Sequence[str | Site], *, confidence: bool) -> Reading:
    """A reading of a model.

    Raises:
        ConfigError: Confidence without a model.
        ModelError: The model's head cannot be read (see `Lens`).
    """
    if confidence and model is None:
        raise ConfigError(
            "this probe reads the model's confidence. Next: pass the model it was fitted on (model=...)."
        )
    places = tuple(Site.parse(site) for site in layers)
    return Reading(places, Lens(model) if confidence and model is not None else None)
