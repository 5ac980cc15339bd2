"""The HTTP face of a guard: OpenAI's `/v1/models`, `/v1/chat/completions` and `/v1/completions`, health, metrics and the page.

The official client works unchanged: `OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="any")`; the policy travels as
`extra_body={"fairlead": {"policy": "correct"}}`, and what the guard read comes back as `choice.fairlead`.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fairlead.core.errors import FairleadError, OverloadError, RunError
from fairlead.guard import server_schemas as wire
from fairlead.guard.answers import GuardedAnswer
from fairlead.guard.guard import Request
from fairlead.guard.scheduler import Job, Scheduler, Update
from fairlead.guard.server import ServerConfig
from fairlead.guard.server_limits import Gate, error_body
from fairlead.guard.server_metrics import CONTENT_TYPE, Metrics
from fairlead.guard.server_stream import EventStream, Inbox, or_gone

FINISH = {"stop": "stop", "length": "length", "retract": "stop", "abort": "content_filter"}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": wire.ErrorResponse, "description": about}
    for code, about in {
        400: "The request is malformed or asks for what is not offered.",
        401: "Missing or wrong API key.",
        404: "No such model.",
        408: "The body took too long to arrive.",
        413: "The body is too large.",
        429: "Too many requests are waiting; see Retry-After.",
        500: "The pass failed.",
        503: "No request is taken: shutting down, or the audit log cannot be written.",
    }.items()
}
STREAM = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


class ApiError(Exception):
    """An error with its status."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param


class Asked(NamedTuple):
    """Requests of one HTTP request, and what its response needs to know."""

    requests: list[Request]
    seed: int
    tokens: bool
    chat: bool


def create_app(
    scheduler: Scheduler, config: ServerConfig, *, page: Callable[[], str] | None = None
) -> FastAPI:
    """The application over a scheduler that runs.

    Args:
        scheduler: Runs the batch.
        config: Limits, keys and the model's name.
        page: Makes the page at `/`.
    """
    app = FastAPI(
        title="Fairlead guard",
        version="1",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        description="OpenAI-compatible completions from a model that is read while it talks.",
    )
    metrics, started = Metrics(scheduler), int(time.time())
    guard = scheduler.guard
    fingerprint = f"fl-{guard.model.fingerprint[:12]}"
    card = wire.ModelCard(
        id=config.name,
        created=started,
        fairlead={
            "threshold": guard.threshold,
            "calibration": None if guard.calibration is None else guard.calibration.model_dump(mode="json"),
            "sites": [str(site) for site in guard.readout.sites],
        },
    )

    def opening(kind: str, object_: str) -> dict[str, Any]:
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": object_,
            "created": int(time.time()),
            "model": config.name,
            "system_fingerprint": fingerprint,
        }

    def submit(asked: Asked, opened: dict[str, Any], inbox: Inbox, *, live: bool) -> list[Job]:
        jobs: list[Job] = []
        try:
            for index, request in enumerate(asked.requests):
                about = {
                    "id": opened["id"],
                    "choice": index,
                    "seed": asked.seed,
                    "prompt": _prompt_text(scheduler, request),
                }
                jobs.append(scheduler.submit(request, inbox.teller(index), live=live, about=about))
        except FairleadError as error:
            for job in jobs:
                job.cancel()
            if isinstance(error, RunError):
                raise ApiError(503, str(error), "unavailable") from error
            raise
        return jobs

    async def respond(asked: Asked, body: Any, http: HttpRequest) -> Any:
        live, inbox = bool(body.stream), Inbox()
        kind, plain = ("chatcmpl", "chat.completion") if asked.chat else ("cmpl", "text_completion")
        opened = opening(kind, f"{plain}.chunk" if live and asked.chat else plain)
        jobs = submit(asked, opened, inbox, live=live)
        if live:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            events = _events(asked, opened, inbox, usage=usage, done=lambda answers: observe(jobs))
            return EventStream(events, jobs, stall_seconds=config.stall_seconds)
        answers = await or_gone(_collect(inbox, len(jobs)), http.receive, jobs)
        if answers is None:
            return Response(status_code=499)  # nobody reads it
        observe(jobs)
        choices = [_choice(asked, index, answer) for index, answer in enumerate(answers)]
        return JSONResponse({**opened, "choices": choices, "usage": _usage(asked, answers)})

    def observe(jobs: list[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            metrics.whole.observe(now - job.submitted)
            if job.first_token is not None:
                metrics.first.observe(job.first_token - job.submitted)

    @app.get("/v1/models", response_model=wire.ModelList, responses=_errors(401))
    async def list_models() -> Any:
        return wire.ModelList(data=[card])

    @app.get("/v1/models/{name:path}", response_model=wire.ModelCard, responses=_errors(401, 404))
    async def get_model(name: str) -> Any:
        _check_name(name, config)
        return card

    @app.post(
        "/v1/chat/completions", response_model=wire.ChatResponse, responses={**STREAM, **_errors(*ERRORS)}
    )
    async def chat(body: wire.ChatRequest, http: HttpRequest) -> Any:
        asked = await run_in_threadpool(_ask_chat, scheduler, config, body)
        return await respond(asked, body, http)

    @app.post(
        "/v1/completions", response_model=wire.CompletionResponse, responses={**STREAM, **_errors(*ERRORS)}
    )
    async def complete(body: wire.CompletionRequest, http: HttpRequest) -> Any:
        asked = await run_in_threadpool(_ask_text, scheduler, config, body)
        return await respond(asked, body, http)

    @app.get("/healthz", response_model=wire.Health, responses={503: {"model": wire.Health}})
    async def health() -> Any:
        reason = scheduler.failure
        found = wire.Health(
            status="ok" if reason is None else "failing",
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            reason=reason,
        )
        return JSONResponse(found.model_dump(), 200 if reason is None else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    if page is not None:
        app.add_api_route(
            "/", _page_route(page), methods=["GET"], response_class=HTMLResponse, responses=_errors(401)
        )
    _add_error_handlers(app)
    app.openapi = lambda: _schema(app)  # pyright: ignore[reportAttributeAccessIssue]
    app.add_middleware(Gate, config=config, count=metrics.count)
    return app


def _errors(*codes: int | str) -> dict[int | str, dict[str, Any]]:
    return {code: ERRORS[code] for code in codes}


def _page_route(page: Callable[[], str]) -> Callable[[], Any]:
    async def show() -> HTMLResponse:
        return HTMLResponse(await run_in_threadpool(page))

    return show


def _add_error_handlers(app: FastAPI) -> None:
    def answer(
        status: int, message: str, code: str, param: str | None = None, **headers: str
    ) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        return JSONResponse(error_body(message, kind, code, param), status, headers=headers or None)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # its input is not repeated: it may be anything
        where = ".".join(str(part) for part in first["loc"][1:] if not str(part).startswith("function-"))
        return answer(
            400,
            _ascii(f"{where}: {first['msg']}" if where else first["msg"]),
            "invalid",
            _ascii(where) or None,
        )

    @app.exception_handler(OverloadError)
    async def overloaded(_: HttpRequest, error: OverloadError) -> JSONResponse:
        return answer(429, str(error), "overloaded", **{"Retry-After": str(error.retry_after)})

    @app.exception_handler(FairleadError)
    async def refused(_: HttpRequest, error: FairleadError) -> JSONResponse:
        return answer(400, _ascii(str(error)), type(error).__name__)

    @app.exception_handler(ApiError)
    async def known(_: HttpRequest, error: ApiError) -> JSONResponse:
        return answer(error.status, _ascii(error.message), error.code, error.param)

    @app.exception_handler(HTTPException)
    async def other(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), "http", **dict(error.headers or {}))


def _ascii(text: str) -> str:
    """Text that JSON and UTF-8 can hold, whatever a client sent."""
    return text[:500].encode("utf-8", "backslashreplace").decode()


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema, without the status 422 that FastAPI adds: malformed requests are answered with 400."""
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        found = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for operations in found["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
        app.openapi_schema = found
    return app.openapi_schema


def _check_name(name: str, config: ServerConfig) -> None:
    if name != config.name:
        raise ApiError(
            404,
            f"there is no model '{name}' here. Next: ask for '{config.name}'.",
            "model_not_found",
            param="model",
        )


def _ask_chat(scheduler: Scheduler, config: ServerConfig, body: wire.ChatRequest) -> Asked:
    wanted = body.max_completion_tokens or body.max_tokens
    prompts = [[message.as_dict() for message in body.messages]] * (body.n or 1)
    return _ask(scheduler, config, body, prompts, wanted, chat=True)


def _ask_text(scheduler: Scheduler, config: ServerConfig, body: wire.CompletionRequest) -> Asked:
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
    _check_name(body.model, config)
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


def _prompt_text(scheduler: Scheduler, request: Request) -> str:
    tokenizer: Any = scheduler.guard.model.tokenizer
    return str(tokenizer.decode(list(request.ids)))


async def _collect(inbox: Inbox, num: int) -> list[GuardedAnswer]:
    """The answers of all choices.

    Raises:
        ApiError: One of them failed.
    """
    found: dict[int, GuardedAnswer] = {}
    async for index, update in inbox.read(num):
        if update.error is not None:
            raise ApiError(500, update.error, "failed")
        if update.answer is not None:
            found[index] = update.answer
    return [found[index] for index in range(num)]


async def _events(
    asked: Asked,
    opened: dict[str, Any],
    inbox: Inbox,
    *,
    usage: bool,
    done: Callable[[list[GuardedAnswer]], None],
) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream."""
    num, answers = len(asked.requests), []
    if asked.chat:
        for index in range(num):
            yield {**opened, "choices": [_delta(asked, index, "", role="assistant")]}
    async for index, update in inbox.read(num):
        if update.error is not None:
            yield error_body(update.error, "server_error", "failed")
            return
        text = "".join(piece.text for piece in update.pieces)
        if update.pieces or update.claims or update.interventions:
            yield {**opened, "choices": [{**_delta(asked, index, text), "fairlead": _part(asked, update)}]}
        if update.answer is not None:
            answers.append(update.answer)
            closing = {
                "finish_reason": FINISH[update.answer.finish],
                "fairlead": _about(asked, update.answer),
            }
            yield {**opened, "choices": [{**_delta(asked, index, ""), **closing}]}
    if usage:
        yield {**opened, "choices": [], "usage": _usage(asked, answers)}
    done(answers)


def _delta(asked: Asked, index: int, text: str, *, role: str | None = None) -> dict[str, Any]:
    if not asked.chat:
        return {"index": index, "text": text, "finish_reason": None, "logprobs": None}
    delta = {"content": text} | ({"role": role} if role else {})
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


def _part(asked: Asked, update: Update) -> dict[str, Any]:
    return {
        "tokens": [piece._asdict() for piece in update.pieces] if asked.tokens else None,
        "claims": [_claim(claim) for claim in update.claims],
        "interventions": [act.model_dump(mode="json") for act in update.interventions],
    }


def _choice(asked: Asked, index: int, answer: GuardedAnswer) -> dict[str, Any]:
    tokens = [
        {"text": text, "score": score, "given": given}
        for text, score, given in zip(answer.tokens, answer.scores, answer.given, strict=True)
    ]
    reading = {
        "tokens": tokens if asked.tokens else None,
        "claims": [_claim(claim) for claim in answer.claims],
        "interventions": [act.model_dump(mode="json") for act in answer.interventions],
        **_about(asked, answer),
    }
    body = (
        {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        if asked.chat
        else {"text": answer.text}
    )
    return {
        "index": index,
        **body,
        "finish_reason": FINISH[answer.finish],
        "logprobs": None,
        "fairlead": reading,
    }


def _about(asked: Asked, answer: GuardedAnswer) -> dict[str, Any]:
    return {
        "policy": answer.policy,
        "threshold": answer.threshold,
        "finish": answer.finish,
        "seed": asked.seed,
        "rivals": list(answer.rivals),
    }


def _claim(claim: Any) -> dict[str, Any]:
    return {"start": claim.start, "end": claim.end, "text": claim.text, "score": claim.score}


def _usage(asked: Asked, answers: list[GuardedAnswer]) -> dict[str, int]:
    prompt = sum(len(request.ids) for request in asked.requests)
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
