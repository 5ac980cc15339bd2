"""Prometheus metrics: counts of requests and answers, sizes of the batch and of the queue, times to the first token and to the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from fairlead.guard.answers import ACTS
from fairlead.guard.scheduler import Scheduler

ROUTES = frozenset({"/", "/healthz", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions"})
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What one server counts, in a registry of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OfScheduler(scheduler))
        self.requests = Counter(
            "fairlead_requests", "Responses sent.", ["route", "status"], registry=self.registry
        )
        self.first = Histogram(
            "fairlead_first_token_seconds", "From a request to its first token.", registry=self.registry
        )
        self.whole = Histogram(
            "fairlead_answer_seconds", "From a request to its end.", registry=self.registry
        )

    def count(self, path: str, status: int) -> None:
        """A response was begun; unknown paths count as one, so that a scanner cannot fill the registry."""
        route = path if path in ROUTES else "/v1/models" if path.startswith("/v1/models/") else "other"
        self.requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _OfScheduler:
    """Reads the scheduler's own counts when asked."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterator[Any]:
        """The families."""
        stats = self.scheduler.stats
        yield GaugeMetricFamily("fairlead_rows_running", "Answers in the batch.", self.scheduler.num_running)
        yield GaugeMetricFamily("fairlead_rows_waiting", "Answers in line.", self.scheduler.num_waiting)
        for name, about, value in (
            ("tokens", "Tokens read.", stats.tokens),
            ("passes", "Forward passes over the batch.", stats.passes),
            ("answers", "Answers finished.", stats.answers),
            ("cancelled", "Requests that nobody waited for any more.", stats.cancelled),
            ("failed", "Requests whose pass failed.", stats.failed),
            ("claims", "Claims scored.", stats.claims),
            ("claims_flagged", "Claims at or above the threshold.", stats.flagged),
        ):
            yield CounterMetricFamily(f"fairlead_{name}", about, value)
        acts = CounterMetricFamily("fairlead_interventions", "Interventions by kind.", labels=["kind"])
        for kind in ACTS:
            acts.add_metric([kind], stats.interventions.get(kind, 0))
        yield acts
