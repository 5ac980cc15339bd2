"""Activations as a stream: over a data set in order, shuffled without end for training dictionaries, or kept on disk."""

from fairlead.activations.harvest import iter_activations, iter_site_activations
from fairlead.activations.store import ActivationStore
from fairlead.activations.stream import ActivationStream

__all__ = ["ActivationStore", "ActivationStream", "iter_activations", "iter_site_activations"]
