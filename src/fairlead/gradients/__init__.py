"""Gradients at a site in the terms of a dictionary: uptake, the menu, its baseline, and pressure during training."""

from fairlead.gradients.baseline import bag_of_tokens
from fairlead.gradients.menu import build_menu, example_lines, rank, score_concepts
from fairlead.gradients.pressure import PressureGauge, batch_pressure
from fairlead.gradients.tokens import token_contexts, token_menu
from fairlead.gradients.uptake import Uptake, load_uptake, measure_uptake, save_uptake

__all__ = [
    "PressureGauge",
    "Uptake",
    "bag_of_tokens",
    "batch_pressure",
    "build_menu",
    "example_lines",
    "load_uptake",
    "measure_uptake",
    "rank",
    "save_uptake",
    "score_concepts",
    "token_contexts",
    "token_menu",
]
