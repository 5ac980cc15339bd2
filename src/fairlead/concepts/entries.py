"""What a catalogue knows about one concept, as plain records."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fairlead.core.config import Record
from fairlead.core.records import Concept, TokenContext

ExampleKind = Literal["top", "quantile", "near_miss"]


class ConceptStatistics(Record):
    """How a concept acts on the corpus. An activation is the sum over the concept's latents.

    Attributes:
        density: Share of tokens on which it acts.
        mean: Mean activation over all tokens (0 where it does not act).
        mean_active: Mean activation over the tokens on which it acts.
        max: Strongest activation of one token.
        in_answers: Share of its activation that falls on answer tokens; None where the corpus has no prompts.
        texts: Share of stretches of text in which it acts at all.
        quantiles: Of its peak in the stretches in which it acts: 0, 10, 25, 50, 75, 90, 99, 100 %.
        usual: Mean and standard deviation, over stretches, of its mean activation in a stretch.
        num_tokens: Tokens that these numbers stand on.
    """

    density: float = 0.0
    mean: float = 0.0
    mean_active: float = 0.0
    max: float = 0.0
    in_answers: float | None = None
    texts: float = 0.0
    quantiles: tuple[float, ...] = ()
    usual: tuple[float, float] = (0.0, 0.0)
    num_tokens: int = 0


class TokenEffect(Record):
    """A token whose logit a concept raises (or lowers), per unit of activation, in units of the logit's spread over tokens."""

    token: str
    value: float


class LabelScores(Record):
    """How well a label tells where its concept acts, on texts that the label was not made from.

    Attributes:
        detection: AUROC of telling texts that show the concept from those that do not (half of them near misses).
        detection_near: The same against near misses only.
        fuzzing: AUROC of telling rightly highlighted tokens from wrongly highlighted ones.
        num: Texts judged for detection.
        judge: "words", or the language model that was asked.
    """

    detection: float | None = None
    detection_near: float | None = None
    fuzzing: float | None = None
    num: int = 0
    judge: str = "words"

    @property
    def value(self) -> float | None:
        """Mean of detection and fuzzing; None where neither could be measured."""
        known = [score for score in (self.detection, self.fuzzing) if score is not None]
        return sum(known) / len(known) if known else None


class Example(Record):
    """One context of a concept: where it acts most, at some quantile of its activation, or nearly."""

    kind: ExampleKind
    peak: float
    context: TokenContext


class Entry(Record):
    """All of one concept."""

    concept: Concept
    statistics: ConceptStatistics = ConceptStatistics()
    scores: LabelScores = LabelScores()
    promoted: tuple[TokenEffect, ...] = ()
    suppressed: tuple[TokenEffect, ...] = ()
    words: tuple[tuple[str, float], ...] = ()  # words that tell its texts, with their F-score
    acts_on: tuple[tuple[str, float], ...] = ()  # words that carry its activation, with their share
    word_label: str = ""  # the label made of words, where a language model gave the label


class Hit(NamedTuple):
    """A concept that a search found.

    Attributes:
        concept: The concept.
        score: Larger is better; comparable within one search only.
        why: What it was found by.
    """

    concept: Concept
    score: float
    why: str


class Neighbour(NamedTuple):
    """A concept near another.

    Attributes:
        concept: The other concept.
        cosine: Cosine of the two concepts' directions (sums of their decoder rows).
        together: Phi coefficient of acting on the same tokens.
    """

    concept: Concept
    cosine: float
    together: float
