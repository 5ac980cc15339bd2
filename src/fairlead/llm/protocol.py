"""What Fairlead asks of a language model: one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel

from fairlead.core.errors import ConfigError

Messages: TypeAlias = str | Sequence[Mapping[str, str]]


@runtime_checkable
class LanguageModel(Protocol):
    """Anything that answers messages, as text or as a validated record."""

    @property
    def name(self) -> str:
        """Name for records of decisions, as `connect` takes it."""
        ...

    def complete(
        self,
        messages: Messages,
        *,
        schema: type[BaseModel] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 1024,
    ) -> str | BaseModel:
        """Answer messages.

        Args:
            messages: One user message, or a list of `{role, content}`.
            schema: A pydantic model that the answer must fit; the answer is then an instance of it.
            temperature: 0 for the most probable answer.
            max_tokens: Longest answer.

        Raises:
            LLMError: The endpoint failed, or the answer does not fit the schema after one repair attempt.
        """
        ...


def as_dicts(messages: Messages) -> list[dict[str, str]]:
    """Messages as a list of plain `{role, content}` dicts.

    Raises:
        ConfigError: A message lacks role or content.
    """
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    found: list[dict[str, str]] = []
    for index, message in enumerate(messages):
        item: Any = message
        if not isinstance(item, Mapping) and hasattr(item, "role") and hasattr(item, "content"):
            item = {"role": item.role, "content": item.content}
        if not isinstance(item, Mapping) or not {"role", "content"} <= set(item):
            raise ConfigError(f"messages[{index}] must have role and content.")
        found.append({"role": str(item["role"]), "content": str(item["content"])})
    if not found:
        raise ConfigError("messages is empty. Next: pass at least one message.")
    return found
