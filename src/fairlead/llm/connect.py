"""Language models by name: the one door to them."""

from __future__ import annotations

import os
from typing import NamedTuple

from fairlead.core.errors import ConfigError
from fairlead.llm.protocol import LanguageModel
from fairlead.llm.scripted import ScriptedModel


class Endpoint(NamedTuple):
    """A provider that speaks OpenAI's protocol.

    Attributes:
        url: Where.
        key: Environment variable with the key; "" where none is needed.
    """

    url: str
    key: str


ENDPOINTS = {
    "gemini": Endpoint("https://generativelanguage.googleapis.com/v1beta/openai/", "GEMINI_API_KEY"),
    "mistral": Endpoint("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "ollama": Endpoint("http://localhost:11434/v1", ""),
    "openrouter": Endpoint("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
}


def connect(
    name: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
) -> LanguageModel:
    """Connect to a language model; nothing is sent before the first question.

    Args:
        name: "openai:MODEL" for any OpenAI-compatible endpoint, "scripted:FILE.json" for a script; "ollama:MODEL", "openrouter:MODEL",
            "gemini:MODEL", "mistral:MODEL": the same protocol at these addresses, with their own keys.
        base_url: The endpoint; `OPENAI_BASE_URL`, else OpenAI's own.
        api_key: Its key; `OPENAI_API_KEY` by default. Endpoints other than OpenAI's work without.
        timeout: Seconds for one request.
        retries: Further attempts after a timeout, a lost connection, or status 408, 409, 429 and 5xx, with
            growing waits.

    Raises:
        ConfigError: Unknown kind of name, or no key for OpenAI's own endpoint.
        MissingDependencyError: The package `openai` is not installed.
    """
    kind, _, rest = name.partition(":")
    if not rest or kind not in ("openai", "scripted", *ENDPOINTS):
        raise ConfigError(
            f"'{name}' is not a language model. Next: use 'openai:MODEL' (with a base URL for your own endpoint), "
            f"{', '.join(f'{one}:MODEL' for one in ENDPOINTS)}, or 'scripted:FILE.json'."
        )
    if kind == "scripted":
        return ScriptedModel.from_file(rest)
    if kind in ENDPOINTS:
        known = ENDPOINTS[kind]
        base_url = base_url or known.url
        api_key = api_key or os.environ.get(known.key) or ("" if known.key else "none")
        if not api_key:
            raise ConfigError(f"no key for {kind}. Next: set {known.key}.")
    from fairlead.llm.endpoint import EndpointModel

    return EndpointModel(rest, base_url=base_url, api_key=api_key, timeout=timeout, retries=retries)
