"""Activations as a stream: over a data set in order, or shuffled without end for training dictionaries."""

from fairlead.activations.harvest import iter_activations
from fairlead.activations.stream import ActivationStream

__all__ = ["ActivationStream", "iter_activations"]
