"""Activations over a data set in order, at one site or several, or kept on disk."""

from fairlead.activations.harvest import iter_activations, iter_site_activations
from fairlead.activations.reading import StoredModel, read_in_place
from fairlead.activations.store import ActivationStore

__all__ = ["ActivationStore", "StoredModel", "iter_activations", "iter_site_activations", "read_in_place"]
