"""OpenAI-compatible endpoints (OpenAI, vLLM, llama.cpp, Ollama, ...), behind this one door.

The client is the `openai` package's, with its waits and further attempts. Endpoints differ in what they
accept: a request that is refused because of `response_format`, `temperature` or `max_tokens` is sent again
without it (or under its newer name), and the refusal is remembered. Typed answers never rest on the
endpoint's
word: they are validated here (see `typed`).
"""

from __future__ import annotations

import json
import os
from typing import Any

from pydantic import BaseModel

from fairlead.core.errors import ConfigError, LLMError, MissingDependencyError
from fairlead.llm.protocol import Messages, as_dicts
from fairlead.llm.quoting import with_data_rule
from fairlead.llm.typed import complete_typed


class EndpointModel:
    """A chat model behind an OpenAI-compatible endpoint.

    Attributes:
        num_calls: Requests answered so far.
        num_tokens: Tokens used so far, as the endpoint reports them (prompt and answer).
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingDependencyError("openai", extra="llm", purpose="asking a language model") from error
        if timeout <= 0 or retries < 0:
            raise ConfigError(f"timeout {timeout} must be above 0 and retries {retries} at least 0.")
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        if not self._key and base_url is None:
            raise ConfigError(
                "no key for OpenAI's endpoint. Next: set OPENAI_API_KEY, or name your own endpoint with "
                "OPENAI_BASE_URL."
            )
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=base_url, timeout=timeout, max_retries=retries
        )
        self._model = model
        self._dropped: set[str] = set()  # options that this endpoint refuses
        self.num_calls = 0
        self.num_tokens = 0

    @property
    def name(self) -> str:
        """Name for records of decisions."""
        return f"openai:{self._model}"

    def complete(
        self,
        messages: Messages,
        *,
        schema: type[BaseModel] | None = None,
        temperature: float = 0.0,
        max_tokens: int = 1024,
    ) -> str | BaseModel:
        """Answer messages; see `LanguageModel.complete`."""
        prepared = with_data_rule(as_dicts(messages))

        def ask(conversation: list[dict[str, str]]) -> str:
            return self._ask(conversation, schema=schema, temperature=temperature, max_tokens=max_tokens)

        if schema is None:
            return ask(prepared)
        return complete_typed(ask, prepared, schema, name=self.name)

    def _ask(
        self,
        messages: list[dict[str, str]],
        *,
        schema: type[BaseModel] | None,
        temperature: float,
        max_tokens: int,
    ) -> str:
        while True:
            options = self._options(schema, temperature, max_tokens)
            try:
                found = self._client.chat.completions.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    **options,
                )
                break
            except self._openai.BadRequestError as error:
                refused = self._refused(str(error), options)
                if refused is None:
                    raise self._failure(error) from error
                self._dropped.add(refused)
            except self._openai.OpenAIError as error:
                raise self._failure(error) from error
            except json.JSONDecodeError as error:
                raise self._foreign() from error
        self.num_calls += 1
        self.num_tokens += int(getattr(getattr(found, "usage", None), "total_tokens", 0) or 0)
        return self._content(found, max_tokens)

    def _options(self, schema: type[BaseModel] | None, temperature: float, max_tokens: int) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if "temperature" not in self._dropped:
            options["temperature"] = temperature
        name = "max_completion_tokens" if "max_tokens" in self._dropped else "max_tokens"
        if name not in self._dropped:
            options[name] = max_tokens
        if schema is not None and "response_format" not in self._dropped:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": schema.__name__,
                    "schema": schema.model_json_schema(),
                    "strict": False,
                },
            }
        return options

    @staticmethod
    def _refused(message: str, options: dict[str, Any]) -> str | None:
        """Which of the sent options a refusal is about."""
        for option, words in (
            ("response_format", ("response_format", "json_schema", "guided", "structured")),
            ("max_completion_tokens", ("max_completion_tokens",)),
            ("max_tokens", ("max_tokens",)),
            ("temperature", ("temperature",)),
        ):
            if option in options and any(word in message for word in words):
                return option
        return None

    def _content(self, found: Any, max_tokens: int) -> str:
        choices = getattr(found, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise self._foreign()
        message = choices[0].message
        if getattr(message, "refusal", None):
            raise LLMError(f"{self.name}: the model refused: {message.refusal}")
        content = message.content or ""
        if choices[0].finish_reason == "length":
            raise LLMError(
                f"{self.name}: the answer was cut off at {max_tokens} tokens. Next: raise max_tokens or ask "
                "about less."
            )
        if not content.strip():
            raise LLMError(f"{self.name}: the answer is empty. Next: ask again, or use another model.")
        return content

    def _foreign(self) -> LLMError:
        return LLMError(
            f"{self.name} at {self._client.base_url}: the answer holds no message. Next: check that the "
            "endpoint is OpenAI-compatible and that its URL ends in the version (.../v1)."
        )

    def _failure(self, error: Exception) -> LLMError:
        """What went wrong and what to do, without the key."""
        openai = self._openai
        steps = (
            (openai.AuthenticationError, "check OPENAI_API_KEY."),
            (openai.PermissionDeniedError, "check what your key may use."),
            (openai.NotFoundError, "check the model's name and the base URL."),
            (openai.RateLimitError, "wait, or check your quota."),
            (openai.APITimeoutError, "raise the timeout, or check that the endpoint is up."),
            (openai.APIConnectionError, "check the base URL and that the endpoint is up."),
            (openai.InternalServerError, "try again later."),
        )
        step = next((text for kind, text in steps if isinstance(error, kind)), "check the endpoint's log.")
        text = " ".join(str(error).split())[:500] or type(error).__name__
        if self._key:
            text = text.replace(self._key, "***")
        return LLMError(f"{self.name} at {self._client.base_url}: {text} Next: {step}")
