"""Metrics for Prometheus: what the services know, and the requests of this server.

Not here: the route that serves them (``api.rest_app``).
"""

import time
from collections.abc import Callable, Iterator
from math import nan
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ktrdr_pipelines.app.services.system_status import SystemMetrics

_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0)
_METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


class ServiceCollector(Collector):
    """Collects the metrics of the services at the moment they are read.

    Args:
        read: returns them.
    """

    def __init__(self, read: Callable[[], SystemMetrics]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: the names are known only from a reading."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one reading."""
        found = self._read()
        counters = (
            (
                "ktrdr_ib_requests",
                "Requests sent to the gateway, kept 90 days",
                found.requests_sent,
            ),
            ("ktrdr_ib_requests_failed", "Those of them that failed", found.requests_failed),
            ("ktrdr_bars_received", "Bars that responses returned", found.bars_received),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(name, text, value=value)
        scanned = found.gaps_scanned_at is not None
        gauges: tuple[tuple[str, str, float], ...] = (
            # Before the first scan nothing is known: 0 would say that nothing is missing.
            ("ktrdr_gaps", "Gaps that the last scan found", found.gaps_open if scanned else nan),
            ("ktrdr_gap_bars", "Bars of these gaps", found.gap_bars if scanned else nan),
            (
                "ktrdr_permits_in_flight",
                "Requests in flight, of all programs",
                found.permits_taken,
            ),
            ("ktrdr_concurrency", "Requests that may be in flight", found.concurrency),
            ("ktrdr_gateway_connected", "Whether the gateway responded", float(found.connected)),
        )
        for name, text, amount in gauges:
            yield GaugeMetricFamily(name, text, value=amount)
        if found.gaps_scanned_at is not None:
            yield GaugeMetricFamily(
                "ktrdr_gaps_scanned_timestamp_seconds",
                "When the last scan ended",
                value=found.gaps_scanned_at.timestamp(),
            )
        age = GaugeMetricFamily(
            "ktrdr_tail_age_seconds",
            "Longest open session time without a bar after the newest one, at the last scan",
            labels=["timeframe"],
        )
        for timeframe, age_s in sorted(found.tail_age_s.items()):
            age.add_metric([timeframe], age_s)
        yield age


class RestMetrics:
    """The metrics of one server, in a registry of its own.

    Args:
        read: returns the metrics of the services.
    """

    def __init__(self, read: Callable[[], SystemMetrics]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(ServiceCollector(read))
        labels = ("method", "route", "status")
        self._requests = Counter(
            "ktrdr_http_requests", "Requests of the REST API", labels, registry=self._registry
        )
        self._seconds = Histogram(
            "ktrdr_http_request_seconds",
            "Time until a request was answered in full",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def record(self, method: str, route: str, status: int, taken_s: float) -> None:
        """Count a request that was answered."""
        known = method if method in _METHODS else "OTHER"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(taken_s)


class MetricsMiddleware:
    """ASGI middleware that counts requests by the template of their route.

    Args:
        app: what answers.
        metrics: where they are counted.
        timer: returns seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: RestMetrics,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._timer = timer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        began_s = self._timer()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "(none)")
            self._metrics.record(scope["method"], route, status, self._timer() - began_s)
