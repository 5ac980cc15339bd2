"""Language models by name: the one door to them."""

from __future__ import annotations

from fairlead.core.errors import ConfigError
from fairlead.llm.protocol import LanguageModel
from fairlead.llm.scripted import ScriptedModel


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
        name: "openai:MODEL" for any OpenAI-compatible endpoint, "scripted:FILE.json" for a script.
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
    if not rest or kind not in ("openai", "scripted"):
        raise ConfigError(
            f"'{name}' is not a language model. Next: use 'openai:MODEL' or 'scripted:FILE.json'."
        )
    if kind == "scripted":
        return ScriptedModel.from_file(rest)
    from fairlead.llm.endpoint import EndpointModel

    return EndpointModel(rest, base_url=base_url, api_key=api_key, timeout=timeout, retries=retries)
