"""The glossary of a report: words that a newcomer meets on the page (after DESIGN.md, section 2)."""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """A word and its meaning in one or two sentences."""

    key: str
    word: str
    meaning: str


GLOSSARY = (
    Term(
        "arm",
        "arm",
        "One way of training that is compared with others: the same data and steps, other controls.",
    ),
    Term("auroc", "AUROC", "How well a score tells two groups apart: 1 is perfect, 0.5 is guessing."),
    Term(
        "bag",
        "bag of tokens",
        "A baseline that only counts words: which tokens stand more often in the data than in the model's own answers.",
    ),
    Term(
        "concept",
        "concept",
        "A labelled group of dictionary latents that act alike, with the text on which they fire as evidence.",
    ),
    Term(
        "control",
        "control",
        "What is added to a training so that it learns what is wanted and not the rest, such as an anchor to the start model.",
    ),
    Term(
        "dictionary",
        "dictionary",
        "A sparse autoencoder: it writes the model's activations as a sum of a few out of many learnt directions (latents).",
    ),
    Term(
        "fvu",
        "FVU",
        "Fraction of variance unexplained: how much of the activations the dictionary misses; 0 is none, 1 is all.",
    ),
    Term(
        "interval",
        "95 % interval",
        "A range for the true value. For arms it is a Student t interval over seeds: wide with few seeds, none with one.",
    ),
    Term(
        "kept",
        "skill kept",
        "The share of plain fine-tuning's gain in the skill that an arm has when asked and answered plainly, without an avoided trait.",
    ),
    Term("leak", "leak", "Share of answers that show an avoided trait although nobody asked for it."),
    Term(
        "menu",
        "menu",
        "The ranked concepts that gradient descent would learn from this data, before any training.",
    ),
    Term(
        "monitorability",
        "monitorability",
        "Whether the inside of the trained model can still be read: by the old probe, a retrained one, and the old dictionary.",
    ),
    Term(
        "neutral",
        "neutral loss",
        "Loss on ordinary text that has nothing to do with the data; it rises when general ability is lost.",
    ),
    Term(
        "placebo",
        "placebo",
        "A control of the same form that should not work, such as an unrelated prompt; a real effect must beat it.",
    ),
    Term(
        "pressure",
        "pressure",
        "Uptake on the batches of a running training: how hard the data pushes a concept at that step.",
    ),
    Term("probe", "probe", "A linear reader of the activations, fitted to tell whether a trait is present."),
    Term(
        "remainder",
        "remainder",
        "Share of the gradient outside what the dictionary can express: the menu is blind to it.",
    ),
    Term(
        "request",
        "on request",
        "Share of answers with the trait when the prompt asks for it: it should stay available.",
    ),
    Term("seed", "seed", "The number that fixes a run's randomness; several seeds show how much is chance."),
    Term(
        "spearman",
        "Spearman correlation",
        "Agreement of two rankings: 1 is the same order, 0 is none, -1 is reversed.",
    ),
    Term(
        "stability",
        "stability",
        "Share of random half-splits of the data in which the sign of the uptake agrees: 50 % is chance.",
    ),
    Term(
        "surprise",
        "surprise",
        "How unusual the data's pull on a concept is: how much more present it is than on the reference data, weighted by how much "
        "of the gradient passes through it; what a line further up brings with it is no surprise any more. The menu is ordered by it.",
    ),
    Term(
        "uptake",
        "uptake",
        "How strongly the data pushes a concept up (+) or down (-) at the present weights; a first-order estimate.",
    ),
)
