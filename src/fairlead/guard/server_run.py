"""Run the application with uvicorn: one process, limits on connections, streams finished at shutdown."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from fairlead.core.errors import RunError
from fairlead.guard.server import ServerConfig


class _Server(uvicorn.Server):
    """Says when it takes requests."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._ready = ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down; a second Ctrl-C does not wait for streams.

        uvicorn's own raises the signal again when it is done, which would end the process before the log is closed.
        """
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready is not None:
            self._ready()


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket.

    Raises:
        RunError: The address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((config.host, config.port))
    except OSError as error:
        found.close()
        raise RunError(
            f"{config.host}:{config.port}: cannot listen ({error.strerror}). Next: choose another --port."
        ) from error
    return found


def make_server(app: Any, config: ServerConfig, ready: Callable[[], None] | None = None) -> uvicorn.Server:
    """A uvicorn server for the application."""
    settings = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=int(config.grace_seconds),
        timeout_keep_alive=15,
        server_header=False,
        lifespan="on",
    )
    return _Server(settings, ready)


def run_app(app: Any, config: ServerConfig, ready: Callable[[str], None] | None) -> None:
    """Serve until a signal; `ready` is told the address."""
    listening = bind(config)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    server = make_server(app, config, (lambda: ready(address)) if ready is not None else None)
    server.run(sockets=[listening])
    listening.close()
