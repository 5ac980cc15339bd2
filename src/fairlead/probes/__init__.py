"""Probes: linear readouts fitted on activations, saved with their site and model."""

from fairlead.probes.pooling import pool_answers
from fairlead.probes.probe import Probe, fit_probe, load_probe

__all__ = ["Probe", "fit_probe", "load_probe", "pool_answers"]
