"""A language model that reads its answers from a script: for tests, demonstrations and replays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fairlead.core.errors import ConfigError, LLMError
from fairlead.llm.protocol import Messages, as_dicts
from fairlead.llm.quoting import with_data_rule
from fairlead.llm.typed import complete_typed


@dataclass(frozen=True)
class Call:
    """One request that a scripted model received, as an endpoint would have seen it."""

    messages: tuple[dict[str, str], ...]
    schema: str | None
    temperature: float
    max_tokens: int
    answer: str

    @property
    def text(self) -> str:
        """All messages as one text."""
        return "\n\n".join(message["content"] for message in self.messages)


class ScriptedModel:
    """Answers from a list or a mapping.

    A list is used up in order; of a mapping the first key counts that occurs in the user's messages, "*" for
    the rest. Answers are text, or JSON values and records where a schema is asked for. They go through the
    same validation and repair as those of an endpoint.

    Attributes:
        calls: Every request with its answer.
    """

    def __init__(self, answers: Sequence[Any] | Mapping[str, Any], *, name: str = "scripted") -> None:
        if isinstance(answers, str) or not isinstance(answers, Sequence | Mapping):
            raise ConfigError("a script is a list of answers or a mapping from texts to answers.")
        self._answers = dict(answers) if isinstance(answers, Mapping) else list(answers)
        self._next = 0
        self._name = name
        self.calls: list[Call] = []

    @classmethod
    def from_file(cls, path: str | Path) -> ScriptedModel:
        """Read a script from a JSON file (a list or an object).

        Raises:
            ConfigError: Missing file, broken JSON or neither a list nor an object.
        """
        try:
            answers = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: the script cannot be read ({error.strerror or error}). Next: check the path."
            ) from error
        except ValueError as error:
            raise ConfigError(f"{path}: the script is not JSON ({error}).") from error
        return cls(answers, name=f"scripted:{Path(path).name}")

    @property
    def name(self) -> str:
        """Name for records of decisions."""
        return self._name

    def complete(
        self,
        messages: Messages,
        *,
        schema: type[BaseModel] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 1024,
    ) -> str | BaseModel:
        """The next answer of the script; see `LanguageModel.complete`.

        Raises:
            LLMError: The script has no answer (left), or it does not fit the schema.
        """

        def ask(conversation: list[dict[str, str]]) -> str:
            answer = self._choose(conversation)
            label = schema.__name__ if schema is not None else None
            self.calls.append(Call(tuple(conversation), label, temperature, max_tokens, answer))
            return answer

        prepared = with_data_rule(as_dicts(messages))
        if schema is None:
            return ask(prepared)
        return complete_typed(ask, prepared, schema, name=self.name)

    def _choose(self, conversation: list[dict[str, str]]) -> str:
        if isinstance(self._answers, dict):
            asked = "\n".join(m["content"] for m in conversation if m["role"] == "user")
            key = next((k for k in self._answers if k != "*" and k in asked), "*")
            if key not in self._answers:
                raise LLMError(f"{self.name}: the script has no answer to this. Next: add a key (or '*').")
            return _text(self._answers[key])
        if self._next >= len(self._answers):
            raise LLMError(
                f"{self.name}: the script has {len(self._answers)} answers and all are used. Next: add more."
            )
        self._next += 1
        return _text(self._answers[self._next - 1])


def _text(answer: Any) -> str:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, BaseModel):
        return answer.model_dump_json()
    return json.dumps(answer, ensure_ascii=False)
