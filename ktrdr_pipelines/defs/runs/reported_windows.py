"""What Dagster's history says of windows, and when a window needs a new event.

A window that is open grows with each bar. It is reported when it first has bars, then at most once
an hour while it grows, and once after each session, so that downstream assets can follow at a
bounded number of events. Every other window is reported when its state changes.

Not here: the event itself (``defs.runs.outcome``), windows that are no longer complete
(``defs.sensors.lost_windows``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.partitions import BarPartition
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.gaps import next_close
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.windows import WindowState, WindowStatus

ROWS: Final = "dagster/partition_row_count"
STATE: Final = "state"
AS_OF: Final = "as_of"
"""Metadata keys of an event: the bars and the state of its window, and the market time of both."""

_TOLD_AT: Final = "told_at"
"""Metadata key of the time of the original event, in one that replaces the event of a deleted run.
"""

GROWS_EVERY: Final = timedelta(hours=1)
"""Least time between two events of a window that grows within a session."""

_BY_VALUE: Final = {state.value: state for state in WindowState}


class EventKind(StrEnum):
    """The event that a window needs: with all metadata, or the short one of a window that grew."""

    WHOLE = "whole"
    GROWTH = "growth"


@dataclass(frozen=True, slots=True)
class ReportedWindow:
    """The latest event of a window: its state (None if it has none), its bars, and their time."""

    state: WindowState | None
    rows: int
    as_of: datetime

    def needs_event(self, status: WindowStatus, grid: SessionGrid, now: datetime) -> bool:
        """Return whether a window has to be reported again.

        Args:
            status: that of the explained window now.
            grid: the sessions of its series.
            now: the market time of ``status``.
        """
        if status.state is not WindowState.OPEN:
            return self.state is not status.state
        if self.state is not WindowState.OPEN:
            return False
        close = next_close(grid, self.as_of)
        if close is not None and close <= now:
            return True
        return status.rows > self.rows and now - self.as_of >= GROWS_EVERY


def needed_event(
    reported: ReportedWindow | None,
    status: WindowStatus,
    series: Series,
    *,
    calendar: SessionCalendar,
    now: datetime,
) -> EventKind | None:
    """Return the event that an explained window of a series needs, or None."""
    if reported is None:
        return EventKind.WHOLE
    if not reported.needs_event(status, session_grid(calendar, series.timeframe), now):
        return None
    return EventKind.GROWTH if status.state is WindowState.OPEN else EventKind.WHOLE


def reported_windows(
    instance: dg.DagsterInstance, timeframe: Timeframe, partitions: Sequence[BarPartition]
) -> dict[BarPartition, ReportedWindow]:
    """Return the latest materialization of each window that has one, by two queries."""
    key = dg.AssetKey(["bars", timeframe.value])
    by_key = {str(one.key): one for one in partitions}
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    storage = instance.event_log_storage
    latest = storage.get_latest_storage_id_by_partition(key, kind, set(by_key)) if by_key else {}
    if not latest:
        return {}
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, storage_ids=list(latest.values())), limit=len(latest)
    ).records
    found: dict[BarPartition, ReportedWindow] = {}
    for record in records:
        event, partition = record.asset_materialization, by_key[str(record.partition_key)]
        if event is None:
            continue
        values = {name: one.value for name, one in event.metadata.items()}
        rows = values.get(ROWS)
        # Events of earlier versions have no time of their own.
        at = values.get(AS_OF) or values.get(_TOLD_AT)
        found[partition] = ReportedWindow(
            _BY_VALUE.get(str(values.get(STATE))),
            rows if isinstance(rows, int) else 0,
            datetime.fromisoformat(at)
            if isinstance(at, str)
            else datetime.fromtimestamp(record.timestamp, UTC),
        )
    return found
