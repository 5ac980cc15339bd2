"""From a body to requests of the guard, checked against the server's limits."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import torch

from fairlead.guard import server_schemas as wire
from fairlead.guard.guard import Request
from fairlead.guard.scheduler import Scheduler
from fairlead.guard.server import ServerConfig
from fairlead.guard.server_errors import ApiError


class Asked(NamedTuple):
    """Requests of one HTTP request, and what its response needs to know."""

    requests: list[Request]
    seed: int
    tokens: bool
    chat: bool


def check_name(name: str, config: ServerConfig) -> None:
    """Refuse any model but the one that is served."""
    if name != config.name:
        raise ApiError(
            404,
            f"there is no model '{name}' here. Next: ask for '{config.name}'.",
            "model_not_found",
            param="model",
        )


def ask_chat(scheduler: Scheduler, config: ServerConfig, body: wire.ChatRequest) -> Asked:
    """The requests of a chat: `n` times the same."""
    wanted = body.max_completion_tokens or body.max_tokens
    prompts = [[message.as_dict() for message in body.messages]] * (body.n or 1)
    return _ask(scheduler, config, body, prompts, wanted, chat=True)


def ask_text(scheduler: Scheduler, config: ServerConfig, body: wire.CompletionRequest) -> Asked:
    """The requests of a completion: `n` of each prompt."""
    prompt = body.prompt
    prompts: list[Any] = (
        [prompt] if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else list(prompt)
    )
    prompts = [one for one in prompts for _ in range(body.n or 1)]
    return _ask(scheduler, config, body, prompts, body.max_tokens or 16, chat=False)


def _ask(
    scheduler: Scheduler,
    config: ServerConfig,
    body: Any,
    prompts: list[Any],
    wanted: int | None,
    *,
    chat: bool,
) -> Asked:
    """The requests of a body, checked against the limits."""
    check_name(body.model, config)
    guard, options = scheduler.guard, body.fairlead or wire.GuardOptions()
    policy = options.to_policy()
    if len(body.stops) > 4:
        raise ApiError(400, "stop: at most 4 texts.", "invalid", param="stop")
    if wanted is not None and wanted > config.max_tokens:
        raise ApiError(400, f"max_tokens: at most {config.max_tokens} here.", "invalid", param="max_tokens")
    num = len(prompts) * (policy.n if policy.kind == "best_of_n" else 1)
    if num > config.max_choices:
        raise ApiError(
            400, f"n: at most {config.max_choices} answers to one request here.", "invalid", param="n"
        )
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    temperature = 1.0 if body.temperature is None else body.temperature
    settings = {
        "max_new_tokens": wanted or config.max_tokens,
        "temperature": temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "policy": policy,
        "stop": body.stops,
        "seed": seed,
    }
    if temperature > 0 and policy.kind != "best_of_n":
        numbers = torch.rand(
            len(prompts), settings["max_new_tokens"], generator=torch.Generator().manual_seed(seed)
        )
        draws = [numbers[place : place + 1] for place in range(len(prompts))]
    else:
        draws = [None] * len(prompts)
    requests = []
    for place, (prompt, own) in enumerate(zip(prompts, draws, strict=True)):
        extra = {"draws": own, "seed": (seed + place) % 2**63}
        if chat or isinstance(prompt, str):
            request = guard.request(prompt, chat=None if chat else False, **{**settings, **extra})
        else:
            request = _from_ids(scheduler, prompt, {**settings, **extra})
        if len(request.ids) > (config.max_prompt or guard.model.max_length):
            raise ApiError(
                400,
                f"the prompt has {len(request.ids)} tokens, at most {config.max_prompt} are taken.",
                "context_length_exceeded",
            )
        requests.append(request)
    return Asked(requests, seed, options.tokens, chat)


def _from_ids(scheduler: Scheduler, ids: list[int], settings: dict[str, Any]) -> Request:
    model = scheduler.guard.model
    size = model.hf.get_input_embeddings().weight.shape[0]  # pyright: ignore
    if (
        not ids
        or not all(isinstance(one, int) and 0 <= one < size for one in ids)
        or len(ids) >= model.max_length
    ):
        message = f"prompt: a list of 1 to {model.max_length - 1} token ids below {size} is needed."
        raise ApiError(400, message, "invalid", param="prompt")
    return Request(ids, plain=True, **settings)


def prompt_text(scheduler: Scheduler, request: Request) -> str:
    """The prompt as text, for the audit log."""
    tokenizer: Any = scheduler.guard.model.tokenizer
    return str(tokenizer.decode(list(request.ids)))
