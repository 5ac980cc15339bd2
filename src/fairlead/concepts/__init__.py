"""Concepts: latents that act alike, with labels and examples; the catalogue of them; the judges that hold them against a spec."""

from fairlead.concepts.attribution import Attribution, Cause, attribute
from fairlead.concepts.autosteer import AutoSteered, autosteer, random_edits
from fairlead.concepts.build import build_concepts
from fairlead.concepts.catalogue import Catalogue
from fairlead.concepts.companions import Companions
from fairlead.concepts.conditions import parse_condition
from fairlead.concepts.contrast import Contrast, contrast
from fairlead.concepts.diff import (
    Along,
    Amplified,
    Change,
    Moved,
    diff_activations,
    diff_answers,
    diff_texts,
    paired_changes,
)
from fairlead.concepts.edits import Abort, Condition, Edit, EditSet
from fairlead.concepts.entries import (
    ConceptStatistics,
    Entry,
    Example,
    Hit,
    LabelScores,
    Neighbour,
    TokenEffect,
)
from fairlead.concepts.exclusive import ExclusiveLatent, exclusive_latents
from fairlead.concepts.grouping import group_latents
from fairlead.concepts.inspecting import Active, Inspection, inspect_text
from fairlead.concepts.judges import judge_ask, judge_llm
from fairlead.concepts.judging import judge_examples
from fairlead.concepts.profiles import concept_activations, latent_profile, text_activations
from fairlead.concepts.steering import apply_edits, edited_logprobs, mean_loss
from fairlead.concepts.steering_report import SteeringReport, Trial
from fairlead.concepts.strength import usual_strengths
from fairlead.concepts.variant import Answer, Variant

__all__ = [
    "Abort",
    "Active",
    "Along",
    "Amplified",
    "Answer",
    "Attribution",
    "AutoSteered",
    "Catalogue",
    "Cause",
    "Change",
    "Companions",
    "ConceptStatistics",
    "Condition",
    "Contrast",
    "Edit",
    "EditSet",
    "Entry",
    "Example",
    "ExclusiveLatent",
    "Hit",
    "Inspection",
    "LabelScores",
    "Moved",
    "Neighbour",
    "SteeringReport",
    "TokenEffect",
    "Trial",
    "Variant",
    "apply_edits",
    "attribute",
    "autosteer",
    "build_concepts",
    "concept_activations",
    "contrast",
    "diff_activations",
    "diff_answers",
    "diff_texts",
    "edited_logprobs",
    "exclusive_latents",
    "group_latents",
    "inspect_text",
    "judge_ask",
    "judge_examples",
    "judge_llm",
    "latent_profile",
    "mean_loss",
    "paired_changes",
    "parse_condition",
    "random_edits",
    "text_activations",
    "usual_strengths",
]
