"""A server on loopback in a thread of its own, and raw sockets against it; loaded by its place (tests are no package)."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import Any

from fairlead.guard.audit import AuditLog
from fairlead.guard.scheduler import Scheduler
from fairlead.guard.server import ServerConfig
from fairlead.guard.server_app import create_app
from fairlead.guard.server_run import bind, make_server


class Served:
    """A running server: its address, its scheduler, and a way to stop it."""

    def __init__(self, server: Any, thread: threading.Thread, port: int, scheduler: Scheduler) -> None:
        self.server, self.thread, self.port, self.scheduler = server, thread, port, scheduler
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True

    def raw(self, data: bytes) -> socket.socket:
        """A connection on which these bytes were sent."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        found.sendall(data)
        return found


@contextmanager
def serving(guard, *, log=None, page=None, **settings):
    """Serve until the block ends."""
    config = ServerConfig.make({"name": "pocket", "port": 0, **settings})
    audit = AuditLog(log) if log is not None else None
    with Scheduler(guard, max_rows=config.max_rows, max_waiting=config.max_waiting, log=audit) as scheduler:
        listening, started = bind(config), threading.Event()
        server = make_server(create_app(scheduler, config, page=page), config, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert started.wait(20)
        try:
            yield Served(server, thread, listening.getsockname()[1], scheduler)
        finally:
            server.should_exit = True
            thread.join(30)
            listening.close()
    if audit is not None:
        audit.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A POST request as bytes."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
