"""The HTTP face of a guard: OpenAI's `/v1/models`, `/v1/chat/completions` and `/v1/completions`, health, metrics and the page.

The official client works unchanged: `OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="any")`; the policy travels as
`extra_body={"fairlead": {"policy": "correct"}}`, and what the guard read comes back as `choice.fairlead`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from fairlead.core.errors import FairleadError, RunError
from fairlead.guard import server_schemas as wire
from fairlead.guard.scheduler import Job, Scheduler
from fairlead.guard.server import ServerConfig
from fairlead.guard.server_answers import choice, collect, events, usage_of
from fairlead.guard.server_asking import Asked, ask_chat, ask_text, check_name, prompt_text
from fairlead.guard.server_errors import ERRORS, ApiError, add_error_handlers, responses_for
from fairlead.guard.server_limits import Gate
from fairlead.guard.server_metrics import CONTENT_TYPE, Metrics
from fairlead.guard.server_stream import EventStream, Inbox, or_gone

STREAM = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def create_app(
    scheduler: Scheduler, config: ServerConfig, *, page: Callable[[], str] | None = None
) -> FastAPI:
    """The application over a scheduler that runs; what is asked is read in server_asking.py, answered in server_answers.py.

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
                    "prompt": prompt_text(scheduler, request),
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
            told = events(asked, opened, inbox, usage=usage, done=lambda answers: observe(jobs))
            return EventStream(told, jobs, stall_seconds=config.stall_seconds)
        answers = await or_gone(collect(inbox, len(jobs)), http.receive, jobs)
        if answers is None:
            return Response(status_code=499)  # nobody reads it
        observe(jobs)
        choices = [choice(asked, index, answer) for index, answer in enumerate(answers)]
        return JSONResponse({**opened, "choices": choices, "usage": usage_of(asked, answers)})

    def observe(jobs: list[Job]) -> None:
        now = time.monotonic()
        for job in jobs:
            metrics.whole.observe(now - job.submitted)
            if job.first_token is not None:
                metrics.first.observe(job.first_token - job.submitted)

    @app.get("/v1/models", response_model=wire.ModelList, responses=responses_for(401))
    async def list_models() -> Any:
        return wire.ModelList(data=[card])

    @app.get("/v1/models/{name:path}", response_model=wire.ModelCard, responses=responses_for(401, 404))
    async def get_model(name: str) -> Any:
        check_name(name, config)
        return card

    @app.post(
        "/v1/chat/completions",
        response_model=wire.ChatResponse,
        responses={**STREAM, **responses_for(*ERRORS)},
    )
    async def chat(body: wire.ChatRequest, http: HttpRequest) -> Any:
        asked = await run_in_threadpool(ask_chat, scheduler, config, body)
        return await respond(asked, body, http)

    @app.post(
        "/v1/completions",
        response_model=wire.CompletionResponse,
        responses={**STREAM, **responses_for(*ERRORS)},
    )
    async def complete(body: wire.CompletionRequest, http: HttpRequest) -> Any:
        asked = await run_in_threadpool(ask_text, scheduler, config, body)
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
            "/", _page_route(page), methods=["GET"], response_class=HTMLResponse, responses=responses_for(401)
        )
    add_error_handlers(app)
    app.openapi = lambda: _schema(app)  # pyright: ignore[reportAttributeAccessIssue]
    app.add_middleware(Gate, config=config, count=metrics.count)
    return app


def _page_route(page: Callable[[], str]) -> Callable[[], Any]:
    async def show() -> HTMLResponse:
        return HTMLResponse(await run_in_threadpool(page))

    return show


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
