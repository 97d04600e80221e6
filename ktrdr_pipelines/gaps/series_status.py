"""Combine files and ledger into the status of a series, from which its gaps are computed.

Not here: computing gaps (``domain.planning.gaps``), the index that keeps results (``gaps.index``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import (
    Cause,
    Claimed,
    GapReason,
    SeriesStatus,
    beginning_timestamp,
    closed_count,
    missing,
)
from ktrdr_pipelines.domain.planning.jobs import first_timestamp
from ktrdr_pipelines.domain.plausibility import Disagreement
from ktrdr_pipelines.gaps.series_files import SeriesFiles
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.evidence import beginning_of
from ktrdr_pipelines.store.layout import store_origin
from ktrdr_pipelines.store.ledger.attempts import Attempt, AttemptKind
from ktrdr_pipelines.store.ledger.bar_findings import VOLUMES
from ktrdr_pipelines.store.ledger.ledger import series_key

_REASONS = {
    AttemptKind.ERROR: GapReason.FAILED,
    AttemptKind.PROBED: GapReason.UNCONFIRMED,
    AttemptKind.CONTRADICTED: GapReason.CONTRADICTED,
    AttemptKind.SPARSE: GapReason.SPARSE,
    AttemptKind.NO_DATA: GapReason.NO_DATA,
    AttemptKind.BLOCKED: GapReason.BLOCKED,
    AttemptKind.UNKNOWN: GapReason.FAILED,
    AttemptKind.BASIS: GapReason.BASIS,
}
_LEFT_OUT = "until then queries leave these bars out, and raw views have them"
_WEEKS = timedelta(days=14)
_EVER = datetime(1900, 1, 1, tzinfo=UTC)
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class SeriesRecords:
    """What the ledger holds about a series in addition to its files.

    ``stated_basis`` is what one response stated of the price basis of the symbol, in words, as long
    as no other has confirmed or refuted it.
    """

    attempts: tuple[Attempt, ...]
    confirmed: Mapping[date, int]
    begins: date | None
    disagreements: tuple[Disagreement, ...]
    fresh_from: datetime | None = None
    volume_jumps: tuple[Disagreement, ...] = ()
    stated_basis: str = ""


class LedgerRecords:
    """What the ledger holds about all series, each table read once."""

    def __init__(self, store: BarStore, gateway: str) -> None:
        ledger, origin = store.ledger, store_origin(store.layout)
        self._attempts = ledger.attempts.all()
        self._heads = ledger.heads.all(gateway)
        self._statements = ledger.statements.beginnings()
        self._confirmed = ledger.confirmed.all()
        self._disagreements = ledger.disagreements.all()
        self._volume_jumps = ledger.disagreements.all(VOLUMES)
        self._fresh_from = ledger.kept_fresh.all()
        self._pinned = ledger.contracts.all(origin)
        self._stated = ledger.basis_checks.stated()

    def may_begin(self, symbol: str) -> bool:
        """Return whether there is a statement about where the data of a symbol begin."""
        return bool(self._statements.get(symbol))

    def is_plain(self, series: Series) -> bool:
        """Return whether there are no failed attempts, and no statements about its beginning."""
        return series_key(series) not in self._attempts and not self.may_begin(series.symbol)

    def of(
        self,
        series: Series,
        calendar: SessionCalendar,
        files: SeriesFiles,
        oldest: date | None,
    ) -> SeriesRecords:
        """Return what the ledger holds about one series.

        ``oldest`` is the oldest session date held over all timeframes of its symbol.
        """
        key = series_key(series)
        contract = files.contract_id or self._pinned.get(series.symbol)
        what = series.instrument.what_to_show.value
        head = self._heads.get((contract, what)) if contract else None
        said = self._statements.get(series.symbol, ())
        return SeriesRecords(
            tuple(self._attempts.get(key, ())),
            self._confirmed.get(key, {}),
            beginning_of(said, calendar, head, oldest) if said else None,
            self._disagreements.get(key, ()),
            self._fresh_from.get(key),
            self._volume_jumps.get(key, ()),
            stated.statement if (stated := self._stated.get(series.symbol)) else "",
        )


def status_of(
    series: Series,
    calendar: SessionCalendar,
    files: SeriesFiles,
    known: SeriesRecords,
    *,
    now: datetime,
) -> SeriesStatus:
    """Return the status of a series at a moment."""
    return SeriesStatus(
        covered=files.covered(now),
        wanted_from=micros(first_timestamp(series, calendar)),
        wanted_to=last_timestamp(series, calendar),
        listed_from=None
        if known.begins is None
        else micros(beginning_timestamp(calendar, series.timeframe, known.begins, files.bars)),
        oldest_bar=None if known.begins else files.oldest_bar,  # an older bar refutes ``begins``
        sparse_sessions=np.array(
            [
                position
                for position, day, rows in files.sparse_sessions
                if known.confirmed.get(day) != rows and day != known.begins
            ],
            dtype=np.int64,
        ),
    )


def claims_of(files: SeriesFiles, known: SeriesRecords, now: datetime) -> Sequence[Claimed]:
    """Return the causes of gaps by interval; where several overlap, the last counts."""
    claims = [
        Claimed(part, Cause(GapReason.EXPIRED, f"proved empty at {at:%Y-%m-%d}, too long ago"))
        for part, at in files.expired(now)
    ]
    # The newest attempt counts, and a missing permission before any other.
    ordered = sorted(known.attempts, key=lambda one: (one.kind is AttemptKind.BLOCKED, one.last_at))
    for one in ordered:
        interval = Interval(_EVER, _FOR_EVER) if one.is_series_wide else one.interval
        detail = one.error
        if one.kind is AttemptKind.BASIS:
            detail = f"{known.stated_basis or one.error}; {_LEFT_OUT}"
        claims.append(Claimed(interval, Cause(_REASONS[one.kind], detail, one.next_try_at)))
    return claims


def last_timestamp(series: Series, calendar: SessionCalendar) -> int | None:
    """Return the bar timestamp in microseconds at which a series ends, or None if it has no end."""
    end = series.instrument.end
    if end is None:
        return None
    return micros(interval_between(calendar, series.timeframe, end, end + _WEEKS).start)


def waiting_of(
    grid: SessionGrid, covered: IntervalSet, now: datetime, *, until: int | None = None
) -> IntervalSet:
    """Return the part of open sessions that is due and not covered; after ``until`` nothing is."""
    first = closed_count(grid, now) if grid.timeframe.is_intraday else len(grid)
    end = micros(now) if until is None else min(micros(now), until)
    if first == len(grid) or end <= grid.starts[first]:
        return IntervalSet()
    wanted = IntervalSet.from_arrays(grid.starts[first : first + 1], np.array([end]))
    return missing(grid, wanted, covered, now).intervals
