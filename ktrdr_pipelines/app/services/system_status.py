"""The system as a whole: one status of store, gateway and gap filler, and figures to monitor.

All come from what is recorded: no call here requests anything of the gateway.

Not here: the gateway (``app.services.ib_service``), the gap filler (``app.services.gap_filler``),
how metrics are written (``api``).
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from importlib.metadata import version
from types import MappingProxyType
from typing import Final

from ktrdr_pipelines.app.services.gap_filler import GapFillerService, ScanRecord
from ktrdr_pipelines.app.services.ib_service import IbService
from ktrdr_pipelines.app.views.service_documents import SystemStatus
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.store.layout import store_origin
from ktrdr_pipelines.store.store_summary import StoreSummary

SCANNED_EVERY: Final = timedelta(minutes=1)
"""Age of the last scan for gaps from which it is repeated in the background, without a daemon."""


@dataclass(frozen=True, slots=True)
class SystemMetrics:
    """Figures of the system at one moment.

    Attributes:
        requests_sent: requests that all programs of the store sent and kept a record of (90 days).
        requests_failed: those of them that got no response, or a refusal.
        bars_received: bars in the responses.
        gaps_open: gaps found by the last scan.
        gap_bars: their bars.
        gaps_scanned_at: when that scan ended (UTC); None before the first.
        tail_age_s: by timeframe the greatest open session time, in seconds, without a bar after the
            newest covered one, at the last scan. Closed time does not count: on Sunday a series
            that is complete has age 0. Of daily and weekly bars a session counts from when its bar
            is final. Series that have ended, or have no bar yet, do not count.
        permits_taken: requests of all processes that the gateway works on.
        concurrency: how many of them there may be, as far as was learned.
        connected: whether the gateway responded at the last check.
    """

    requests_sent: int
    requests_failed: int
    bars_received: int
    gaps_open: int
    gap_bars: int
    gaps_scanned_at: datetime | None
    permits_taken: int
    concurrency: int
    connected: bool
    tail_age_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@cache
def _version() -> str:
    """Return the version of this project; looking it up takes milliseconds."""
    return version("ktrdr-pipelines")


class SystemService:
    """The status and the metrics of the system, for the threads of a service.

    Args:
        open_workspace: opens the store, once for each call.
        ib: the gateway.
        gap_filler: the gap filler.
        summary: the summary of the store that the caller shares.
        clock: returns real time.
    """

    def __init__(
        self,
        open_workspace: Callable[[], Workspace] = Workspace.open,
        *,
        ib: IbService,
        gap_filler: GapFillerService,
        summary: StoreSummary | None = None,
        clock: Callable[[], datetime] = system_now,
    ) -> None:
        self._open_workspace = open_workspace
        self._ib, self._gap_filler = ib, gap_filler
        self._summary = summary or StoreSummary(clock)
        self._clock = clock
        self._guard = threading.Lock()
        self._scan: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"SystemService({self._ib!r}, {self._gap_filler!r})"

    def close(self) -> None:
        """Wait for a scan in the background to end."""
        with self._guard:
            scan = self._scan
        if scan is not None:
            scan.join()

    def status(self) -> SystemStatus:
        """Return the state of the store, the gateway and the gap filler.

        Raises:
            KtrdrError: one of them cannot be read.
        """
        workspace = self._open_workspace()
        held = self._summary.series(workspace.layout, workspace.ledger)
        origin = store_origin(workspace.layout)
        return SystemStatus(
            version=_version(),
            store=str(workspace.layout.root),
            origin=None if origin is None else origin.value,
            symbols=len(held),
            series=sum(map(len, held.values())),
            ib=self._ib.get_status(),
            gap_filler=self._gap_filler.status(),
        )

    def metrics(self) -> SystemMetrics:
        """Return the figures of now.

        Those of gaps and tails are of the last scan. Where no daemon scans, one is begun in the
        background once they are a minute old; this call does not wait for it.

        Raises:
            KtrdrError: the store, or the state folder, cannot be read.
        """
        workspace = self._open_workspace()
        totals = self._summary.requests(workspace.layout, workspace.ledger)
        record = self._gap_filler.last_scan(workspace.layout)
        self._scan_if_old(workspace, record)
        with closing(RateLimiter.of(workspace.gateway_config)) as budget:
            vitals = budget.vitals()
        return SystemMetrics(
            requests_sent=totals.requests,
            requests_failed=totals.failed,
            bars_received=totals.bars,
            gaps_open=record.gap_count if record else 0,
            gap_bars=record.bars if record else 0,
            gaps_scanned_at=record.scanned_at if record else None,
            permits_taken=vitals.permits_taken,
            concurrency=vitals.concurrency,
            connected=self._ib.is_connected(),
            tail_age_s=MappingProxyType(record.tail_age_s if record else {}),
        )

    def _scan_if_old(self, workspace: Workspace, record: ScanRecord | None) -> None:
        now = self._clock()
        if record is not None and timedelta() <= now - record.scanned_at < SCANNED_EVERY:
            return
        if self._gap_filler.is_running(workspace.layout):
            return
        with self._guard:
            if self._scan is not None and self._scan.is_alive():
                return
            self._scan = threading.Thread(
                target=self._scan_now, name="ktrdr scan for gaps", daemon=True
            )
            self._scan.start()

    def _scan_now(self) -> None:
        with suppress(KtrdrError):  # recorded by the scan; without a store there is nothing to scan
            workspace = self._open_workspace()
            try:
                self._gap_filler.scan(workspace, self._clock())
            finally:
                workspace.ledger.close()
