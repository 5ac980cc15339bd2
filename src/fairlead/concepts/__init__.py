"""Concepts: groups of latents that act alike, their labels and examples, the catalogue of them, and the judges that hold them against a spec."""

from fairlead.concepts.build import build_concepts
from fairlead.concepts.catalogue import Catalogue
from fairlead.concepts.entries import (
    ConceptStatistics,
    Entry,
    Example,
    Hit,
    LabelScores,
    Neighbour,
    TokenEffect,
)
from fairlead.concepts.grouping import group_latents
from fairlead.concepts.judges import judge_ask, judge_llm
from fairlead.concepts.judging import judge_examples
from fairlead.concepts.profiles import concept_activations, latent_profile, text_activations

__all__ = [
    "Catalogue",
    "ConceptStatistics",
    "Entry",
    "Example",
    "Hit",
    "LabelScores",
    "Neighbour",
    "TokenEffect",
    "build_concepts",
    "concept_activations",
    "group_latents",
    "judge_ask",
    "judge_examples",
    "judge_llm",
    "latent_profile",
    "text_activations",
]
