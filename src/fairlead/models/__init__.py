"""Models: loading, sites by family, capture, hooks, generation. The only package that knows module names."""

from fairlead.models import hooks
from fairlead.models.families import Family, Place, Sites, family_of, known_model_types, unwrap
from fairlead.models.fingerprint import fingerprint
from fairlead.models.generation import Follower
from fairlead.models.hooks import Tap, call_hook, read_gradient, site_hook, watch
from fairlead.models.loading import load_model
from fairlead.models.model import BatchLike, Model
from fairlead.models.units import unit_activations, unit_masks, units_of

__all__ = [
    "BatchLike",
    "Family",
    "Follower",
    "Model",
    "Place",
    "Sites",
    "Tap",
    "call_hook",
    "family_of",
    "fingerprint",
    "hooks",
    "known_model_types",
    "load_model",
    "read_gradient",
    "site_hook",
    "unit_activations",
    "unit_masks",
    "units_of",
    "unwrap",
    "watch",
]
