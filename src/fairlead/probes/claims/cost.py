"""What asking a language model about claims has cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from fairlead.core.errors import LLMError
from fairlead.llm import LanguageModel

CHARS_PER_TOKEN = 4  # rule of thumb, where the language model reports no usage
Reply = TypeVar("Reply", bound=BaseModel)


@dataclass
class Cost:
    """What verifying (or splitting) has cost so far; tokens are estimated from characters where nobody reports them."""

    claims: int = 0
    calls: int = 0
    tokens: int = 0
    disagreements: int = 0

    def ask(self, llm: LanguageModel, prompt: str, schema: type[Reply]) -> Reply:
        """A language model's reply to a prompt, counted.

        Raises:
            LLMError: The endpoint failed, or did not answer to the schema.
        """
        before = getattr(llm, "num_tokens", None)
        found = llm.complete([{"role": "user", "content": prompt}], schema=schema, temperature=0.0)
        if not isinstance(found, schema):
            raise LLMError(f"{llm.name}: gave no {schema.__name__}. Next: use another model.")
        self.calls += 1
        used = 0 if before is None else int(llm.num_tokens) - int(before)  # type: ignore[attr-defined]
        self.tokens += used or (len(prompt) + len(found.model_dump_json())) // CHARS_PER_TOKEN
        return found
