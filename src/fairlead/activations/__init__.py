"""Activations over a data set in order, at one site or several, or kept on disk."""

from fairlead.activations.harvest import iter_activations, iter_site_activations
from fairlead.activations.store import ActivationStore

__all__ = ["ActivationStore", "iter_activations", "iter_site_activations"]
