"""The gap filler as a service: scan for gaps, tell what was found, switch it on and off, force it.

Gaps are filled by runs that Dagster's gap sensor starts. The sensor scans through
``GapFillerService.scan``, which keeps the result in a small file of the store, so that any process
can tell at once what the last scan found. Losing that file loses nothing but the count of filled
gaps.

Not here: which gaps are due (``gaps.due_chunks``), which runs fill them (``defs.sensors``), the
sensor's switch in Dagster (``app.services.sensor_switch``).
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from pydantic import Field, ValidationError

from ktrdr_pipelines.app.services.sensor_switch import SensorSwitch, SwitchState
from ktrdr_pipelines.app.setup import accept_example, waits_for_universe
from ktrdr_pipelines.app.views.documents import Document, ErrorDocument
from ktrdr_pipelines.app.views.load_documents import OperationDocument
from ktrdr_pipelines.app.views.service_documents import ForcedScan, GapFillerStatus
from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.planning.gaps import GapReason
from ktrdr_pipelines.errors import KtrdrError, StoreError
from ktrdr_pipelines.gaps.due_chunks import Due, due_to_fill, stale_s
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.store.files import write_atomically
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.store.store_summary import StoreSummary

if TYPE_CHECKING:
    from ktrdr_pipelines.app.operations import Operations

RECORD: Final = "gap_filler.json"
"""The file with the result of the last scan, in the folder of the store's state."""

_FAILED: Final = frozenset({GapReason.FAILED, GapReason.BLOCKED})
_log = logging.getLogger(__name__)

Bounds = tuple[int, int]
"""Start and end of a gap, in microseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class GapScan:
    """What one scan sees: the state of all series, what is due, and the time."""

    found: Sequence[SeriesGaps]
    due: Sequence[Due]
    index: GapIndex
    market_now: datetime
    real_now: datetime


class ScanRecord(Document):
    """What is kept of the last scan.

    If it failed, ``error`` says why, and the figures are those of the last one that did not.
    ``filled`` counts since the file was begun. ``tail_age_s`` is by timeframe the greatest open
    time, in seconds, that a series lacks after its newest covered bar. ``gaps`` holds the bounds of
    all gaps by the series' ledger key.
    """

    scanned_at: datetime
    symbols: tuple[str, ...] = ()
    series: int = 0
    failed: int = 0
    bars: int = 0
    filled: int = 0
    next_try_at: datetime | None = None
    tail_age_s: dict[str, float] = Field(default_factory=dict)
    gaps: dict[str, tuple[Bounds, ...]] = Field(default_factory=dict)
    error: ErrorDocument | None = None

    @property
    def gap_count(self) -> int:
        """The number of gaps."""
        return sum(map(len, self.gaps.values()))


class Updates(Protocol):
    """Runs updates in the background."""

    def start_update(self) -> OperationDocument:
        """Start to load everything that is due, and return the operation."""
        ...

    def wait(self, operation_id: str, timeout_s: float | None = None) -> OperationDocument:
        """Wait for an operation to end."""
        ...


def make_attempts_due(workspace: Workspace) -> int:
    """Make the deferred requests of a store due now, so that sensors and updates retry them.

    Return the number of attempts that were brought forward.

    Raises:
        StoreError: the ledger cannot be written.
    """
    return workspace.ledger.attempts.hasten(workspace.clock.real_now())


def _force(workspace: Workspace) -> int:
    """Make deferred requests due, and load even an example universe: a forced scan is explicit."""
    if waits_for_universe(workspace.layout):
        accept_example(workspace.layout)
    return make_attempts_due(workspace)


class GapFillerService:
    """The gap filler of the store that ``open_workspace`` opens; for the threads of a service.

    Args:
        open_workspace: opens the store, once for each call.
        operations: runs an update where no daemon can be woken; None for operations of its own,
            which ``close`` ends.
        summary: the summary of the store that the caller shares.
        switch: the sensor's switch in Dagster.
        clock: returns real time.
    """

    def __init__(
        self,
        open_workspace: Callable[[], Workspace] = Workspace.open,
        *,
        operations: Updates | None = None,
        summary: StoreSummary | None = None,
        switch: SensorSwitch | None = None,
        clock: Callable[[], datetime] = system_now,
    ) -> None:
        self._open_workspace = open_workspace
        self._operations = operations
        self._own: Operations | None = None
        self._summary = summary or StoreSummary(clock)
        self._switch = switch or SensorSwitch(clock)
        self._clock = clock
        self._guard = threading.Lock()
        self._read: tuple[tuple[int, int, int], ScanRecord] | None = None

    def __repr__(self) -> str:
        return f"GapFillerService({self._switch!r})"

    def close(self) -> None:
        """Close the Dagster instance, and end an update that this object runs."""
        self._switch.close()
        with self._guard:
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def wait(self, operation_id: str, timeout_s: float | None = None) -> OperationDocument:
        """Wait for the update of a forced scan, and return it as it is then.

        Raises:
            UnknownOperationError: it is not known.
            StoreError: its record cannot be read.
        """
        return self._updates().wait(operation_id, timeout_s)

    def scan(self, workspace: Workspace, real_now: datetime) -> GapScan:
        """Return the state of the store and what is due at ``real_now``, and record the result.

        Raises:
            KtrdrError: the store or the universe cannot be read; that is recorded, too.
        """
        try:
            index, market_now = workspace.gap_index(), workspace.clock.market_at(real_now)
            found = index.series_gaps(workspace.universe.series(), market_now)
            scan = GapScan(found, due_to_fill(found, real_now), index, market_now, real_now)
        except KtrdrError as error:
            before = self.last_scan(workspace.layout) or ScanRecord(scanned_at=real_now)
            change = {"scanned_at": real_now, "error": ErrorDocument.of(error)}
            self._write(workspace.layout, before.model_copy(update=change))
            raise
        self._write(workspace.layout, _record_of(scan, self.last_scan(workspace.layout)))
        return scan

    def last_scan(self, layout: StoreLayout) -> ScanRecord | None:
        """Return what is kept of the last scan; None without one that can be read."""
        path = layout.state / RECORD
        with self._guard:
            try:
                found = path.stat()
                mark = (found.st_ino, found.st_mtime_ns, found.st_size)
                if self._read is None or self._read[0] != mark:
                    self._read = mark, ScanRecord.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                return None  # the record is made anew by the next scan
            return self._read[1]

    def status(self) -> GapFillerStatus:
        """Return the state of the gap filler.

        Whether it runs may be 3 seconds old (``app.services.sensor_switch.READ_EVERY``).

        Raises:
            KtrdrError: the store, its universe or Dagster's instance cannot be read.
        """
        workspace = self._open_workspace()
        layout = workspace.layout
        switch, record = self._switch.state(layout), self.last_scan(layout)
        enabled, running = switch.enabled, self._is_running(switch)
        if record is None:
            universe = self._summary.universe(workspace.layout, universe_file(workspace.layout))
            return GapFillerStatus(
                running=running,
                enabled=enabled,
                symbols=tuple(universe.instruments),
                series_watched=len(universe.series()),
                gaps_detected=0,
                gaps_filled=0,
                gaps_failed=0,
                bars_missing=0,
                last_scan=None,
            )
        return GapFillerStatus(
            running=running,
            enabled=enabled,
            symbols=record.symbols,
            series_watched=record.series,
            gaps_detected=record.gap_count,
            gaps_filled=record.filled,
            gaps_failed=record.failed,
            bars_missing=record.bars,
            last_scan=record.scanned_at,
            next_try_at=record.next_try_at,
            last_error=record.error,
        )

    def is_running(self, layout: StoreLayout) -> bool:
        """Return whether the sensor is switched on and the daemon alive.

        Raises:
            StoreError: Dagster's instance cannot be read.
        """
        return self._is_running(self._switch.state(layout))

    def start(self) -> GapFillerStatus:
        """Switch the sensor on, in Dagster's instance of the store.

        Raises:
            UsageError: Dagster has never run on the store, or has never run the sensor.
            StoreError: the instance cannot be used.
        """
        self._switch.switch(self._open_workspace().layout, on=True)
        return self.status()

    def stop(self) -> GapFillerStatus:
        """Switch the sensor off; runs that it has started go on.

        Raises: as ``start``.
        """
        self._switch.switch(self._open_workspace().layout, on=False)
        return self.status()

    def force_scan(self) -> ForcedScan:
        """Make deferred gaps due now, and have them filled now.

        A living daemon runs the sensor within seconds; if a tick is in flight, its end is waited
        for, for 10 seconds at most. Without a living daemon, or if the sensor is switched off, an
        update is started as an operation of this process. A first backlog that waits for an edit of
        the example universe (``app.setup.waits_for_universe``) waits no longer.

        Raises:
            KtrdrError: the store or Dagster's instance cannot be used.
        """
        workspace = self._open_workspace()
        state = self._switch.state(workspace.layout)
        why_not = ""
        if not state.has_daemon(self._clock()):
            why_not = "no Dagster daemon runs"
        elif not state.enabled:
            why_not = "the gap sensor is switched off"
        hastened = _force(workspace)
        due = f"{hastened} deferred requests are due now"
        if not why_not:
            is_woken = self._switch.wake(workspace.layout)
            when = "within seconds" if is_woken else "half a minute after its present tick began"
            return ForcedScan(
                gaps_made_due=hastened,
                sensor_woken=is_woken,
                message=f"{due}; the gap sensor scans {when}",
            )
        operation = self._updates().start_update()
        return ForcedScan(
            gaps_made_due=hastened,
            sensor_woken=False,
            operation=operation,
            message=f"{due}; {why_not}, so an update was started as operation {operation.id}",
        )

    def _updates(self) -> Updates:
        if self._operations is not None:
            return self._operations
        from ktrdr_pipelines.app.operations import Operations

        with self._guard:
            if self._own is None:
                self._own = Operations(self._open_workspace, operation="gap_filler")
            return self._own

    def _is_running(self, switch: SwitchState) -> bool:
        return bool(switch.enabled) and switch.has_daemon(self._clock())

    def _write(self, layout: StoreLayout, record: ScanRecord) -> None:
        """Write the record; a scan is worth as much without it, so a failure is only logged."""
        text = record.model_dump_json().encode()
        path = layout.state / RECORD
        try:
            write_atomically(path, lambda file: file.write(text), layout.require_same)
        except StoreError as error:
            _log.warning("the result of the scan for gaps was not recorded: %s", error)


def _record_of(scan: GapScan, before: ScanRecord | None) -> ScanRecord:
    """Return the record of a scan, with the gaps of the one before that are closed now."""
    kept = before.gaps if before else {}
    gaps: dict[str, tuple[Bounds, ...]] = {}
    filled = 0
    for one in scan.found:
        key = series_key(one.series)
        if one.error is not None:
            bounds = kept.get(key, ())  # nothing is known of them now
        else:
            bounds = tuple((micros(g.interval.start), micros(g.interval.end)) for g in one.gaps)
            filled += _closed(kept.get(key, ()), bounds)
        if bounds:
            gaps[key] = bounds
    every = [gap for one in scan.found for gap in one.gaps]
    due_times = [gap.next_try_at for gap in every if gap.next_try_at is not None]
    return ScanRecord(
        scanned_at=scan.real_now,
        symbols=tuple(dict.fromkeys(one.series.symbol for one in scan.found)),
        series=len(scan.found),
        failed=sum(gap.reason in _FAILED for gap in every),
        bars=sum(gap.bars for gap in every),
        filled=(before.filled if before else 0) + filled,
        next_try_at=min((at for at in due_times if at > scan.real_now), default=None),
        tail_age_s=_tail_ages(scan),
        gaps=gaps,
    )


def _closed(before: Iterable[Bounds], now: Sequence[Bounds]) -> int:
    """Return how many earlier gaps have no part that is missing now."""
    return sum(all(end <= low or high <= start for low, high in now) for start, end in before)


def _tail_ages(scan: GapScan) -> Mapping[str, float]:
    """Return by timeframe the greatest open time that a series lacks after its newest bar, in s.

    Series that have ended or have no bar yet do not count. Of the series of one calendar and
    timeframe the one with the oldest newest bar has the greatest age, so only that is measured.
    """
    calendars, oldest = scan.index.calendars, dict[tuple[str, str], SeriesGaps]()
    for one in scan.found:
        instrument = one.series.instrument
        has_ended = instrument.end is not None and instrument.end <= scan.market_now.date()
        if one.covered_until is None or has_ended:
            continue
        key = (calendars.key_of(instrument), one.series.timeframe.value)
        known = oldest.get(key)
        if known is None or known.covered_until is None or one.covered_until < known.covered_until:
            oldest[key] = one
    ages: dict[str, float] = defaultdict(float)
    for (_, timeframe), one in oldest.items():
        ages[timeframe] = max(ages[timeframe], stale_s(one, calendars, scan.market_now))
    return dict(ages)
