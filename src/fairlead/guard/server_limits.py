"""What every request passes before the application sees it: API key, size and time of its body, and a count of what became of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from fairlead.guard.server import ServerConfig

Scope = dict[str, Any]
OPEN = ("/healthz", "/metrics")


class Gate:
    """ASGI middleware: refuses requests without a key, above the size, or too slow in coming.

    The body is read here, up to its limit, and handed on; what comes after it (that the client has gone) is passed through.

    Args:
        app: The application.
        config: Limits and keys.
        count: Told path and status of every response.
    """

    def __init__(self, app: Any, config: ServerConfig, count: Callable[[str, int], None]) -> None:
        self.app, self.config, self.count = app, config, count
        self._keys = [hashlib.sha256(key.encode()).digest() for key in config.keys]

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.count(scope["path"], message["status"])
            await send(message)

        headers = dict(scope["headers"])
        if scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            page = scope["path"] == "/"  # a browser asks for the key where it is told to
            extra = [(b"www-authenticate", b'Basic realm="fairlead"' if page else b"Bearer")]
            message = "Missing or wrong API key. Next: send it as 'Authorization: Bearer KEY'."
            await refuse(counted, 401, message, "authentication_error", "invalid_api_key", extra)
            return
        try:
            async with asyncio.timeout(self.config.body_seconds):
                body = await self._body(headers, receive)
        except TimeoutError:
            await refuse(
                counted, 408, "The body took too long to arrive.", "invalid_request_error", "timeout"
            )
            return
        except _Gone:
            return
        if body is None:
            limit = self.config.max_body
            message = f"The body is larger than {limit} bytes. Next: send a smaller one."
            await refuse(counted, 413, message, "invalid_request_error", "too_large")
            return
        handed = False

        async def replay() -> dict[str, Any]:
            nonlocal handed
            if not handed:
                handed = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self.app(scope, replay, counted)

    async def _body(self, headers: dict[bytes, bytes], receive: Any) -> bytes | None:
        """The whole body; None where it is too large."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.config.max_body:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.config.max_body:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)

    def _knows(self, header: bytes) -> bool:
        """Whether the header holds one of the keys; takes as long for a wrong one as for a right one."""
        if not self._keys:
            return True
        scheme, _, value = header.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        found = hashlib.sha256(value.strip()).digest()
        return any([hmac.compare_digest(found, key) for key in self._keys])


class _Gone(Exception):
    """The client has gone before its request was whole."""


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def refuse(
    send: Any,
    status: int,
    message: str,
    kind: str,
    code: str,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    """Answer with an error from outside the application."""
    body = json.dumps(error_body(message, kind, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *(extra or [])]})
    await send({"type": "http.response.body", "body": body})
