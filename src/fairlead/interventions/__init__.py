"""Interventions: add, ablate, project, patch and steer, as context managers that restore everything."""

from fairlead.interventions.edits import ablate, add, patch, project, steer_all_layers

__all__ = ["ablate", "add", "patch", "project", "steer_all_layers"]
