"""A variant of a model: concepts set to strengths, with conditions. The surface that Goodfire's Ember SDK had, on any local model.

```python
variant = Variant(model, dictionary, catalogue.concepts)
variant.set("c12", 2.0)                                     # twice as strong as usual, added everywhere
variant.set_when(variant.when("c40", above=5.0, over="prompt"), "c12", 0.0, mode="clamp")
variant.abort_when(variant.when("c77", above=3.0), "talks about c77")
variant.generate(["How many is 3 plus 4?"])                 # [Answer(text, aborted)]
variant.save("edits.json")
```
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fairlead.concepts.edits import Abort, At, Condition, Edit, EditSet, Mode, Over
from fairlead.concepts.steering import Session, apply_edits, edited_logprobs
from fairlead.concepts.strength import usual_strengths
from fairlead.core.errors import ConfigError
from fairlead.core.records import Concept
from fairlead.data import Encoded
from fairlead.dictionaries import Dictionary

if TYPE_CHECKING:
    from torch import Tensor

    from fairlead.models import Model


class Answer(NamedTuple):
    """An answer under edits.

    Attributes:
        text: As far as it came.
        aborted: Why it was ended early; None where it was not.
    """

    text: str
    aborted: str | None


class Variant:
    """A model with edits. The model itself is untouched; edits act only in the calls made here or inside `applied()`.

    Args:
        model: The model.
        dictionary: A dictionary of it.
        concepts: Concepts that may be named by id (those of a catalogue, or of `build_concepts`).
        texts: Texts to measure usual strengths on; each concept's own examples where None.

    Raises:
        DictionaryError: The dictionary was made for another model.
    """

    def __init__(
        self,
        model: Model,
        dictionary: Dictionary,
        concepts: Iterable[Concept] = (),
        *,
        texts: Sequence[Encoded] | None = None,
    ) -> None:
        dictionary.check(model)
        self.model, self.dictionary = model, dictionary
        self._concepts = {concept.id: concept for concept in concepts}
        self._texts = texts
        self._usual: dict[str, tuple[float, ...]] = {}
        self._edits: list[Edit] = []
        self._aborts: list[Abort] = []

    @property
    def edits(self) -> EditSet:
        """The edits as data."""
        return EditSet.make(self.model, self.dictionary, self._edits, aborts=self._aborts)

    def concept(self, concept: Concept | str) -> Concept:
        """A concept by id; a concept passes through.

        Raises:
            ConfigError: Unknown id.
        """
        if isinstance(concept, Concept):
            return concept
        if concept not in self._concepts:
            raise ConfigError(
                f"no concept '{concept}' among the {len(self._concepts)} that this variant was given. Next: pass a Concept, or the "
                "catalogue's concepts when the variant is made."
            )
        return self._concepts[concept]

    def when(self, concept: Concept | str, *, above: float = 0.0, over: Over = "token") -> Condition:
        """The condition that a concept's activation exceeds `above`: on the token, in the prompt, or so far in the answer."""
        one = self.concept(concept)
        return Condition(latents=one.latents, threshold=above, over=over, concept=one.id, label=one.label)

    def set(
        self, concept: Concept | str, value: float = 1.0, *, mode: Mode = "add", at: At = "all"
    ) -> Variant:
        """Set a concept; an earlier unconditional setting of the same concept at the same place is replaced.

        Args:
            concept: Id or concept.
            value: In units of its usual strength while active (`add`, `clamp`), or a factor (`scale`).
            mode: See `concepts.edits`.
            at: Which tokens.
        """
        made = self._edit(concept, value, mode, at, ())
        self._edits = [e for e in self._edits if (e.concept, e.at, e.when) != (made.concept, made.at, ())]
        self._edits.append(made)
        return self

    def set_when(
        self,
        condition: Condition | Sequence[Condition],
        concept: Concept | str,
        value: float = 1.0,
        *,
        mode: Mode = "add",
        at: At = "all",
    ) -> Variant:
        """Set a concept where a condition (or all of several) holds."""
        self._edits.append(self._edit(concept, value, mode, at, _several(condition)))
        return self

    def abort_when(self, condition: Condition | Sequence[Condition], reason: str = "") -> Variant:
        """End an answer as soon as a condition (or all of several) holds, with a reason."""
        self._aborts.append(Abort(when=_several(condition), reason=reason))
        return self

    def reset(self) -> Variant:
        """Forget all edits and abort rules."""
        self._edits, self._aborts = [], []
        return self

    def generate(self, prompts: Sequence[str | Sequence[Any]], **settings: Any) -> list[Answer]:
        """Answers under the edits, in the order of the prompts; settings are those of `Model.generate`."""
        with self.applied() as session:
            texts = self.model.generate(prompts, follower=session, **settings)
        return [Answer(text, session.aborted.get(place)) for place, text in enumerate(texts)]

    def chat(self, messages: str | Sequence[Any], **settings: Any) -> Answer:
        """The answer to one conversation (or one question)."""
        return self.generate([messages], **settings)[0]

    def logprobs(self, encoded: Sequence[Encoded], *, batch_size: int = 32) -> list[Tensor]:
        """`Model.logprobs` under the edits."""
        return edited_logprobs(self.model, self.dictionary, self.edits, encoded, batch_size=batch_size)

    def applied(self) -> AbstractContextManager[Session]:
        """A context in which every pass of the model is edited (see `steering.apply_edits`)."""
        return apply_edits(self.model, self.dictionary, self.edits)

    def to_json(self) -> str:
        """The edits as JSON."""
        return self.edits.to_json()

    @classmethod
    def from_edits(
        cls, model: Model, dictionary: Dictionary, edits: EditSet | str, concepts: Iterable[Concept] = ()
    ) -> Variant:
        """A variant of edits or of their JSON.

        Raises:
            ConfigError: Broken JSON.
            ModelError: Made for another model.
            DictionaryError: Made for another dictionary.
        """
        given = EditSet.from_json(edits) if isinstance(edits, str) else edits
        given.check(model, dictionary)
        made = cls(model, dictionary, concepts)
        made._edits, made._aborts = list(given.edits), list(given.aborts)
        return made

    @classmethod
    def from_json(cls, model: Model, dictionary: Dictionary, text: str) -> Variant:
        """A variant of the JSON that `to_json` gave; raises as `from_edits`."""
        return cls.from_edits(model, dictionary, text)

    def save(self, path: str | Path) -> Path:
        """Write the edits file."""
        return self.edits.save(path)

    def _edit(
        self, concept: Concept | str, value: float, mode: Mode, at: At, when: tuple[Condition, ...]
    ) -> Edit:
        one = self.concept(concept)
        weights = self._strengths(one) if mode in ("add", "clamp") else ()
        return Edit(
            mode=mode,
            latents=one.latents,
            weights=weights,
            value=value,
            at=at,
            when=when,
            concept=one.id,
            label=one.label,
        )

    def _strengths(self, concept: Concept) -> tuple[float, ...]:
        if concept.id not in self._usual:
            self._usual |= usual_strengths(self.model, self.dictionary, [concept], self._texts)
        return self._usual[concept.id]


def _several(condition: Condition | Sequence[Condition]) -> tuple[Condition, ...]:
    return (condition,) if isinstance(condition, Condition) else tuple(condition)
