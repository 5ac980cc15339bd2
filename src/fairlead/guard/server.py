"""`fairlead guard serve`: the door to the server, behind which FastAPI and uvicorn stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fairlead.core.config import Config
from fairlead.core.errors import ConfigError, MissingDependencyError, RunError
from fairlead.guard.audit import AuditLog, Sync, read_audit
from fairlead.guard.scheduler import Scheduler

if TYPE_CHECKING:
    from fairlead.guard.audit import AuditRecord
    from fairlead.guard.guard import Guard

RenderPage = Callable[[Sequence["AuditRecord"]], str]
_PAGE_BYTES = 8 << 20  # the page shows the end of a long log
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


class ServerConfig(Config):
    """Where a server listens and what it takes.

    Attributes:
        name: Of the model, as clients call it.
        host: Address; other than this machine's own only with API keys.
        port: 0 for a free one.
        keys: API keys; any request is taken where there are none.
        max_rows: Answers in the running batch.
        max_waiting: Answers that may wait for a place; more are refused with status 429.
        max_tokens: Longest answer that may be asked for.
        max_prompt: Longest prompt in tokens; what the model takes by default.
        max_choices: Most answers to one request (`n`, several prompts, or the draws of `best_of_n`).
        max_body: Bytes of a request.
        max_connections: Open connections.
        body_seconds: A request that takes longer to arrive is refused.
        stall_seconds: A reader that takes nothing for so long is dropped.
        grace_seconds: Streams have so long to finish at shutdown.
    """

    name: str = "model"
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    keys: tuple[str, ...] = ()
    max_rows: int = Field(default=64, ge=1)
    max_waiting: int = Field(default=256, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    max_prompt: int | None = Field(default=None, ge=1)
    max_choices: int = Field(default=16, ge=1)
    max_body: int = Field(default=1 << 20, ge=1024)
    max_connections: int = Field(default=512, ge=1)
    body_seconds: float = Field(default=30.0, gt=0)
    stall_seconds: float = Field(default=60.0, gt=0)
    grace_seconds: float = Field(default=60.0, gt=0)


def serve(
    guard: Guard,
    config: ServerConfig,
    *,
    log: str | Path | None = None,
    sync: Sync = "second",
    render: RenderPage | None = None,
    ready: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Serve until the process is told to stop (SIGTERM, Ctrl-C); open streams are finished first.

    Args:
        guard: What answers.
        config: Where and how much.
        log: Audit log to append to.
        sync: When its records are forced to the disk.
        render: Makes the page at `/` from the log.
        ready: Told the address once requests are taken.

    Returns:
        Counts: answers, tokens, flagged claims, interventions.

    Raises:
        MissingDependencyError: FastAPI or uvicorn is not installed.
        ConfigError: The address is open to others and there are no API keys.
        RunError: The address is taken, or the log cannot be written.
    """
    app_of, server_of = load_server()
    if config.host not in _LOCAL and not config.keys:
        raise ConfigError(
            f"{config.host} is open to other machines and no API key is set. Next: pass --api-keys FILE, or serve on 127.0.0.1."
        )
    audit = AuditLog(log, sync=sync) if log is not None else None
    try:
        with Scheduler(
            guard, max_rows=config.max_rows, max_waiting=config.max_waiting, log=audit
        ) as scheduler:
            app = app_of(scheduler, config, page=_page(log, render))
            server_of(app, config, ready)
            stats = scheduler.stats
    finally:
        if audit is not None:
            audit.close()
    return {
        "answers": stats.answers,
        "tokens": stats.tokens,
        "claims": stats.claims,
        "flagged": stats.flagged,
        "interventions": stats.interventions,
        "cancelled": stats.cancelled,
        "failed": stats.failed,
    }


def load_server() -> tuple[Callable[..., Any], Callable[..., None]]:
    """`create_app` and `run_app`.

    Raises:
        MissingDependencyError: FastAPI, uvicorn or prometheus-client is not installed; prints the pip line.
    """
    try:
        from fairlead.guard.server_app import create_app
        from fairlead.guard.server_run import run_app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("fairlead", ""):
            raise
        raise MissingDependencyError(package, extra="serve", purpose="fairlead guard serve") from error
    return create_app, run_app


def _page(log: str | Path | None, render: RenderPage | None) -> Callable[[], str] | None:
    if log is None or render is None:
        return None

    def page() -> str:
        try:
            records, _ = read_audit(log, last_bytes=_PAGE_BYTES)
        except RunError:
            records = []
        return render([record for record in records if record.kind == "answer"])

    return page
