"""Edits of concepts as data: what is changed, where, when, and in which model and dictionary.

An edit acts on a group of latents with weights w_f, the activation that each usually has while the concept acts, so that a value of 1
means "as strong as usual". With h the value at the dictionary's site, a_f the activations there and d_f the decoder rows:

| mode | h becomes |
|---|---|
| `add` | h + value sum w_f d_f |
| `scale` | h + (value - 1) sum a_f d_f |
| `clamp` | h + sum (value w_f - a_f) d_f |
| `ablate` | h - sum a_f d_f |

What the dictionary does not explain of h (the reconstruction error) is kept by all four. All edits and conditions of a set read the h
that arrives, so that their order does not matter. The file is a small JSON that names the model and the dictionary it was made for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError, model_validator

from fairlead.core.config import Record, describe_validation
from fairlead.core.errors import ConfigError, DictionaryError, ModelError
from fairlead.core.run import atomic_path

if TYPE_CHECKING:
    from fairlead.dictionaries import Dictionary
    from fairlead.models import Model

FORMAT = "fairlead.edits"
VERSION = 1
Mode = Literal["add", "scale", "clamp", "ablate"]
At = Literal["all", "prompt", "start", "answer", "later"]
Over = Literal["token", "prompt", "answer"]


class Condition(Record):
    """The summed activation of a concept's latents lies above (or not above) a threshold.

    Attributes:
        latents: Of the concept.
        threshold: In units of activation.
        over: On the "token" at hand; the strongest of the "prompt"; or the strongest of the "answer" so far (from the prompt's last
            token on).
        above: False turns it around: not above.
        concept: Id of the concept; for people.
        label: Its label; for people.
    """

    latents: tuple[int, ...]
    threshold: float = 0.0
    over: Over = "token"
    above: bool = True
    concept: str = ""
    label: str = ""

    def told(self) -> str:
        """The condition in words."""
        where = {"token": "on this token", "prompt": "in the prompt", "answer": "so far in the answer"}[
            self.over
        ]
        name = self.concept or self.label or f"latents {list(self.latents)[:4]}"
        return f"{name} {'above' if self.above else 'not above'} {self.threshold:g} {where}"


class Edit(Record):
    """One change.

    Attributes:
        mode: See the module.
        latents: Latents that are changed.
        weights: Usual activation of each, one unit of `value`; may be negative where the edit came from a contrast.
        value: Strength; without meaning for `ablate`.
        at: On "all" tokens, those of the "prompt", its last token where the answer "start"s, the whole "answer" (start and later), or
            only the "later" tokens. The very first token of a text is left alone: dictionaries never see it.
        when: Conditions, all of which must hold; none: always.
        concept: Id of the concept, or several with commas; for people.
        label: For people.
    """

    mode: Mode
    latents: tuple[int, ...]
    weights: tuple[float, ...] = ()
    value: float = 1.0
    at: At = "all"
    when: tuple[Condition, ...] = ()
    concept: str = ""
    label: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.latents:
            raise ValueError("an edit needs at least one latent")
        if self.mode in ("add", "clamp") and len(self.weights) != len(self.latents):
            raise ValueError(
                f"mode {self.mode} needs one weight per latent ({len(self.weights)} of {len(self.latents)})"
            )
        return self

    def told(self) -> str:
        """The edit in words."""
        strength = "" if self.mode == "ablate" else f" {self.value:g}"
        name = self.concept or self.label or f"{len(self.latents)} latents"
        when = "".join(f", when {condition.told()}" for condition in self.when)
        return f"{self.mode}{strength} {name} at {self.at}{when}"


class Abort(Record):
    """The answer is ended when all conditions hold."""

    when: tuple[Condition, ...]
    reason: str = ""

    @model_validator(mode="after")
    def _conditional(self) -> Self:
        if not self.when:
            raise ValueError("an abort rule needs at least one condition")
        return self

    def told(self) -> str:
        """The reason, or the conditions in words."""
        return self.reason or "; ".join(condition.told() for condition in self.when)


class EditSet(Record):
    """Edits of one model through one dictionary; the content of an edits file."""

    format: Literal["fairlead.edits"] = FORMAT
    version: Literal[1] = VERSION
    model: str
    model_fingerprint: str
    dictionary: str
    dictionary_sha256: str
    site: str
    edits: tuple[Edit, ...] = ()
    aborts: tuple[Abort, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        model: Model,
        dictionary: Dictionary,
        edits: tuple[Edit, ...] | list[Edit] = (),
        *,
        aborts: tuple[Abort, ...] | list[Abort] = (),
        notes: tuple[str, ...] = (),
    ) -> EditSet:
        """Edits for a model and a dictionary of it.

        Raises:
            DictionaryError: The dictionary was made for another model; or an edit names a latent that it does not have.
        """
        dictionary.check(model)
        found = cls(
            model=model.name,
            model_fingerprint=model.fingerprint,
            dictionary=dictionary.source,
            dictionary_sha256=dictionary.sha256,
            site=str(dictionary.site),
            edits=tuple(edits),
            aborts=tuple(aborts),
            notes=notes,
        )
        found._check_latents(dictionary)
        return found

    @classmethod
    def from_json(cls, text: str, *, source: str = "edits") -> EditSet:
        """Read the JSON form.

        Raises:
            ConfigError: Not an edits file, of a newer version, or a broken field, which is named.
        """
        try:
            value: Any = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{source}: broken JSON ({error}). Next: save the edits again.") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ConfigError(
                f"{source}: not a file of edits (no format '{FORMAT}'). Next: pass what `concepts steer` saved."
            )
        if value.get("version") != VERSION:
            raise ConfigError(
                f"{source}: version {value.get('version')} is not known here. Next: update fairlead."
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe_validation(error, 'edits')}") from error

    @classmethod
    def load(cls, path: str | Path) -> EditSet:
        """Read an edits file.

        Raises:
            ConfigError: As `from_json`; or there is no such file.
        """
        try:
            return cls.from_json(Path(path).read_text("utf-8"), source=str(path))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{path}: cannot be read ({reason}). Next: check the path of the edits file."
            ) from error

    def to_json(self) -> str:
        """The JSON form."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write the file, all or nothing."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), "utf-8")
        return Path(path)

    def check(self, model: Model, dictionary: Dictionary) -> None:
        """Confirm that these edits were made for this model and this dictionary.

        Raises:
            ModelError: Another model.
            DictionaryError: Another dictionary, or a latent that it does not have.
        """
        if model.fingerprint != self.model_fingerprint:
            raise ModelError(
                f"these edits were made for {self.model} (fingerprint {self.model_fingerprint[:12]}), not for {model.name} (fingerprint "
                f"{model.fingerprint[:12]}). Next: load that model, or make the edits again for this one."
            )
        if dictionary.sha256 != self.dictionary_sha256:
            raise DictionaryError(
                f"these edits were made with the dictionary {self.dictionary or '?'} ({self.dictionary_sha256[:12]}), not with "
                f"{dictionary.source or '?'} ({dictionary.sha256[:12]}): its latents mean other things. Next: pass that dictionary."
            )
        self._check_latents(dictionary)

    def _check_latents(self, dictionary: Dictionary) -> None:
        named = [*self.edits, *(c for part in (*self.edits, *self.aborts) for c in part.when)]
        wrong = sorted({f for one in named for f in one.latents if not 0 <= f < dictionary.d_dict})
        if wrong:
            raise DictionaryError(
                f"latent {wrong[0]} does not exist: the dictionary has {dictionary.d_dict}. Next: take ids from its catalogue."
            )
