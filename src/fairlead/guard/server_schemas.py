"""What travels over the wire: OpenAI's chat and text completions, with `fairlead` as the one extension.

A field of OpenAI's that would change the answer and is not offered here is refused unless it has its neutral value; fields that only
describe the request (`user`, `metadata`, `store`) are taken and kept out of everything.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fairlead.guard.answers import ActKind
from fairlead.guard.policy import Policy


def _whole(text: str) -> str:
    """Text that UTF-8 can hold: half of a surrogate pair is no character and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Zero = Annotated[float, Field(ge=0, le=0)]
Empty = Annotated[list[Any], Field(max_length=0)]
TokenId = Annotated[int, Field(ge=0)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GuardOptions(_In):
    """The extension of a request (`extra_body={"fairlead": {...}}` of the official client)."""

    policy: Literal["observe", "flag", "retract", "correct", "best_of_n", "abort"] = Field(
        default="observe", description="What to do with claims that score at or above the threshold."
    )
    threshold: float | None = Field(default=None, ge=0, le=1, description="The server's own where left out.")
    text: Annotated[Text, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="Put in by retract and correct."
    )
    then: Literal["end", "go_on"] = Field(default="end", description="Whether a retraction ends the answer.")
    max_interventions: int = Field(default=1, ge=0, le=16)
    n: int = Field(default=4, ge=2, le=64, description="Draws of best_of_n.")
    ask_again: int | None = Field(
        default=None,
        ge=0,
        le=12,
        description="Ask in so many other ways before a policy acts on a claim; as calibrated where left out.",
    )
    uphold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of these answers that must hold the claim's decisive word for it to stand.",
    )
    tokens: bool = Field(default=True, description="Scores of all tokens in the response.")

    def to_policy(self) -> Policy:
        """The policy that is asked for."""
        return Policy.make(self.model_dump(exclude={"policy", "tokens"}), kind=self.policy)


class TextPart(_In):
    """A part of a message's content; only text is taken."""

    type: Literal["text"]
    text: Text


class ChatMessage(_In):
    """A turn of the chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    def as_dict(self) -> dict[str, str]:
        """The turn as the chat template takes it."""
        content = (
            self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(_In):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextFormat(_In):
    """The only format of answers: text."""

    type: Literal["text"]


class _Common(_In):
    model: Text
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: (
        Annotated[Text, Field(min_length=1, max_length=64)]
        | list[Annotated[Text, Field(min_length=1, max_length=64)]]
        | None
    ) = Field(default=None, description="Up to four texts that end the answer.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Text | None = None
    fairlead: GuardOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(_Common):
    """Body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(_Common):
    """Body of `/v1/completions`."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    max_tokens: int | None = Field(default=16, ge=1, le=2**31 - 1)
    echo: Literal[False] | None = None
    suffix: None = None
    logprobs: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


class TokenReading(BaseModel):
    """A token and how it was read."""

    text: str
    score: float | None = Field(description="Probability of being unsupported; null where nothing read it.")
    given: bool = Field(description="Whether the guard put it in.")


class Claim(BaseModel):
    """A claim and its score."""

    start: int
    end: int
    text: str
    score: float | None


class Act(BaseModel):
    """One intervention."""

    kind: ActKind
    claim: int
    at: int
    token: int
    text: str
    score: float
    threshold: float
    note: str


class Reading(BaseModel):
    """The extension of a response: what the guard read and did."""

    tokens: list[TokenReading] | None = None
    claims: list[Claim] = []
    interventions: list[Act] = []
    policy: str | None = None
    threshold: float | None = None
    finish: str | None = None
    seed: int | None = None
    rivals: list[float] = []


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: ReplyMessage
    finish_reason: str
    logprobs: None = None
    fairlead: Reading


class ChatResponse(BaseModel):
    """Response of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One answer of a text completion."""

    index: int
    text: str
    finish_reason: str
    logprobs: None = None
    fairlead: Reading


class CompletionResponse(BaseModel):
    """Response of `/v1/completions`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fairlead"
    fairlead: dict[str, Any]


class ModelList(BaseModel):
    """Response of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Body of every error."""

    error: ErrorDetail


class Health(BaseModel):
    """Response of `/healthz`."""

    status: Literal["ok", "failing"]
    running: int
    waiting: int
    reason: str | None = None
