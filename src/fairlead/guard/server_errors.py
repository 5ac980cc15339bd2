"""Errors of the server: which there are, and how each is told in the form of OpenAI's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fairlead.core.errors import FairleadError, OverloadError
from fairlead.guard import server_schemas as wire
from fairlead.guard.server_limits import error_body

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


class ApiError(Exception):
    """An error with its status."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param


def responses_for(*codes: int | str) -> dict[int | str, dict[str, Any]]:
    """What the schema says of these statuses."""
    return {code: ERRORS[code] for code in codes}


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the same form."""

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
