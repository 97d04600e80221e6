"""Whether bars of a period are complete, what is missing of them, and why.

Not here: what a gap is (``domain.planning.gaps``), the index that finds gaps (``gaps.index``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.app.reading.bar_tables import bar_tables
from ktrdr_pipelines.app.reading.read_options import Period
from ktrdr_pipelines.app.reading.store_parts import without_damaged
from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.gaps import closed_count
from ktrdr_pipelines.domain.planning.jobs import first_timestamp
from ktrdr_pipelines.errors import IncompleteError
from ktrdr_pipelines.gaps.series_status import last_timestamp
from ktrdr_pipelines.store.bars.column_reader import BarSelection

if TYPE_CHECKING:
    import pandas as pd

    from ktrdr_pipelines.app.reading.store_parts import StoreParts
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.gaps.index import SeriesGaps

BEFORE_START: Final = "before_start"
"""The reason of what lies before the start that the universe gives, and was never requested."""

NOT_CLOSED: Final = "not_closed"
"""The reason of what lies in sessions that are not over yet."""

UNKNOWN_SESSIONS: Final = "unknown_sessions"
"""The reason of what lies before or after all sessions that the calendar knows."""

BASIS: Final = "basis"

_DAY: Final = timedelta(days=1)
_MOMENT: Final = timedelta(microseconds=1)
_SHOWN: Final = 5
_INSTANT: Final = "datetime64[us, UTC]"
_EVER: Final = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class MissingRange:
    """Bars that a period lacks, with one reason.

    Attributes:
        start, end: bar timestamps, the end exclusive.
        sessions: how many sessions (1w: weeks) it touches; 0 where they are not known.
        bars: how many bars are expected in it; 0 where that is not known.
        reason: a reason of ``ktrdr gaps``, or ``before_start``, ``not_closed`` or
            ``unknown_sessions``.
        detail: the reason in words.
        next_try_at: when it is requested next, if that is known.
    """

    start: datetime
    end: datetime
    sessions: int
    bars: int
    reason: str
    detail: str = ""
    next_try_at: datetime | None = None

    def __str__(self) -> str:
        count = "an unknown number of bars"
        if self.bars:
            count = f"{self.bars} bar{'s' if self.bars > 1 else ''}"
        words = f": {self.detail}" if self.detail else ""
        return f"{count} from {_text(self.start)} to {_text(self.end)} ({self.reason}{words})"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the bars of a period are complete; true if they are.

    Complete means: each bar that the calendar expects in it is on disk, or is confirmed not to
    exist (no trade in it, before the listing, after the end of the instrument), or was acknowledged
    as missing by the user.

    Attributes:
        symbol, timeframe: the series.
        start, end: the period by bar timestamp, the end exclusive.
        missing: what is missing, oldest first.
    """

    symbol: str
    timeframe: str
    start: datetime
    end: datetime
    missing: tuple[MissingRange, ...] = ()

    def __bool__(self) -> bool:
        return not self.missing

    @property
    def missing_bars(self) -> int:
        """How many bars are missing, as far as that is known."""
        return sum(one.bars for one in self.missing)

    def __str__(self) -> str:
        what = f"{self.symbol} {self.timeframe} from {_text(self.start)} to {_text(self.end)}"
        if self:
            return f"{what}: complete"
        parts = [str(one) for one in self.missing[:_SHOWN]]
        more = len(self.missing) - _SHOWN
        return f"{what} lacks {'; '.join(parts)}{f'; and {more} more ranges' if more > 0 else ''}"

    def to_frame(self) -> "pd.DataFrame":
        """Return what is missing as a pandas frame, one row a range; ``gaps`` has its columns."""
        return gaps_frame(
            (self.symbol, self.timeframe, one.reason, one.start, one.end, one.sessions, one.bars,
             one.next_try_at, one.detail)
            for one in self.missing
        )  # fmt: skip


def readiness(
    found: "SeriesGaps",
    calendar: SessionCalendar,
    wanted: Interval | None,
    *,
    now: datetime,
    asked: tuple[bool, bool],
    held_to: datetime | None = None,
    raw: bool = False,
) -> Readiness:
    """Return what is missing of a series within an interval of bar timestamps.

    Args:
        found: what the series holds and lacks.
        calendar: its sessions.
        wanted: the interval; None where no bar can lie in it.
        now: the time of the market.
        asked: whether the start and the end of the interval were asked for. An open start is that
            of the universe, an open end the close of the newest session that is over, or of the
            next one where nothing would lie between.
        held_to: an open end is not before it: where the bars end that are read.
        raw: whether bars on an unconfirmed price basis count.

    Raises:
        StoreError: the series cannot be read.
    """
    if found.error is not None:
        raise found.error
    series = found.series
    symbol, timeframe = series.symbol, str(series.timeframe)
    if wanted is None:
        return Readiness(symbol, timeframe, now, now)
    grid = session_grid(calendar, series.timeframe)
    start, end = _bounds(found, grid, wanted, now=now, asked=asked, calendar=calendar)
    if held_to is not None and not asked[1]:
        end = max(end, micros(held_to))
    if not asked[1] and end <= start:
        following = int(grid.ends.searchsorted(start, side="right"))
        end = int(grid.ends[following]) if following < len(grid) else micros(moment(start) + _DAY)
    whole = Readiness(symbol, timeframe, moment(start), moment(max(end, start)))
    until = last_timestamp(series, calendar)
    if until is not None:
        end = min(end, until)
    if start >= end:
        return whole
    period = IntervalSet([Interval(moment(start), moment(end))])
    missing = [
        _part(grid, part, (gap.reason.value, gap.detail, gap.next_try_at))
        for gap in found.gaps
        for part in IntervalSet([gap.interval]) & period
    ]
    # A gap goes on over nights and weekends, in which nothing is expected.
    missing = [one for one in missing if one.bars or not len(grid)]
    unknown = period - found.covered - found.missing
    detail = f"the universe wants bars from {series.instrument.start} on"
    missing += _parts(grid, unknown & _never_wanted(found, calendar), BEFORE_START, detail)
    missing += _parts(grid, unknown & _unclosed(grid, now), NOT_CLOSED, "its session is not over")
    missing += _beyond_sessions(unknown, found, calendar)
    if not raw:
        detail = "held on an unconfirmed price basis: reads leave these bars out"
        left_out = (found.unconfirmed_basis & period) - found.missing
        missing += _parts(grid, left_out, BASIS, detail)
    ordered = sorted(missing, key=lambda one: (one.start, one.end))
    return Readiness(symbol, timeframe, whole.start, whole.end, tuple(ordered))


def _bounds(
    found: "SeriesGaps",
    grid: SessionGrid,
    wanted: Interval,
    *,
    now: datetime,
    asked: tuple[bool, bool],
    calendar: SessionCalendar,
) -> tuple[int, int]:
    """Return the period by bar timestamp, with its open ends closed; it may be empty."""
    has_start, has_end = asked
    start = micros(wanted.start) if has_start else micros(first_timestamp(found.series, calendar))
    if has_end:
        return start, micros(wanted.end)
    closed = closed_count(grid, now)
    if not len(grid):
        return start, micros(now)
    return start, int(grid.ends[closed - 1]) if closed else start


def _never_wanted(found: "SeriesGaps", calendar: SessionCalendar) -> IntervalSet:
    """Return what lies before the start of the universe, unless the data begin later."""
    first = first_timestamp(found.series, calendar)
    if found.expected_from is not None and found.expected_from > first:
        return IntervalSet()
    return IntervalSet([Interval(_EVER, first)])


def _beyond_sessions(
    unknown: IntervalSet, found: "SeriesGaps", calendar: SessionCalendar
) -> list[MissingRange]:
    """Return what lies before or after all known sessions: how many bars there are is not known."""
    if found.expected_from is not None and not _never_wanted(found, calendar):
        unknown -= IntervalSet([Interval(_EVER, found.expected_from)])
    detail = "its sessions are not known until the gateway states them"
    if calendar.known is not None:
        first, last = calendar.known
        until = calendar.day_starts_at(last + _DAY)
        unknown -= IntervalSet([Interval(calendar.day_starts_at(first), until)])
        detail = f"its sessions are known from {first} to {last} only"
    return [MissingRange(one.start, one.end, 0, 0, UNKNOWN_SESSIONS, detail) for one in unknown]


def _unclosed(grid: SessionGrid, now: datetime) -> IntervalSet:
    later = grid.slice(closed_count(grid, now), len(grid))
    return IntervalSet.from_arrays(later.starts, later.ends)


def readiness_of(
    parts: "StoreParts",
    symbols: Sequence[str],
    timeframe: "Timeframe",
    periods: Sequence[Period],
    *,
    now: datetime,
    held_to: Sequence[datetime | None] | None = None,
    raw: bool = False,
) -> list[Readiness]:
    """Return what is missing of the period of each symbol; the rest as for ``readiness``.

    Raises:
        UnknownSymbolError: a symbol is not in the universe.
        StoreError: a series, or the ledger, cannot be read.
    """
    instruments = [parts.instrument(symbol) for symbol in symbols]
    found, calendars = parts.series_gaps(instruments, timeframe, now)
    checked = []
    ends = [None] * len(found) if held_to is None else held_to
    for series, period, end in zip(found, periods, ends, strict=True):
        calendar = calendars.of(replace(series.series.instrument, end=None))
        wanted = period.interval(calendar, timeframe)
        asked = (period.start is not None, period.end is not None)
        checked.append(
            readiness(series, calendar, wanted, now=now, asked=asked, held_to=end, raw=raw)
        )
    return checked


def complete_tables(
    parts: "StoreParts",
    symbols: Sequence[str],
    timeframe: "Timeframe",
    wanted: BarSelection,
    *,
    period: Period,
) -> list[pa.Table]:
    """Return the bars of each symbol, of which none is missing in a period.

    Raises:
        IncompleteError: some are.
        StoreError: as ``ColumnReader.read``.
    """
    now = parts.now
    has_no_start = wanted.last is not None or wanted.before > 0

    def check(tables: Sequence[pa.Table] | None) -> None:
        """Require the period of each symbol, and with it all bars that were read."""
        periods, held_to = [period] * len(symbols), None
        if tables is not None:
            held_to = [one["ts"][-1].as_py() + _MOMENT if one.num_rows else None for one in tables]
        if tables is not None and has_no_start:
            periods = [
                replace(period, start=one["ts"][0].as_py()) if one.num_rows else period
                for one in tables
            ]
        require_ready(
            readiness_of(
                parts, symbols, timeframe, periods, now=now, held_to=held_to, raw=wanted.raw
            )
        )

    # Before reading, as bars may be saved afterwards; where the period begins is to be read first.
    check(bar_tables(parts, symbols, timeframe, wanted) if has_no_start else None)
    tables = bar_tables(parts, symbols, timeframe, wanted)
    check(tables)  # bars may have been left out since, when a re-basing was found
    return tables


def found_gaps(
    parts: "StoreParts", symbol: str | None, timeframe: "Timeframe | None"
) -> "pd.DataFrame":
    """Return the gaps of one or all symbols of the universe as a frame; see ``Store.gaps``."""
    universe = parts.workspace.universe
    names = list(universe.instruments) if symbol is None else [parts.instrument(symbol).symbol]
    series = []
    for name in names:
        instrument = universe.instrument(name)
        kinds = instrument.timeframes
        if timeframe is not None:
            kinds = (timeframe,) if symbol is not None or timeframe in kinds else ()
        series += [Series(instrument, kind) for kind in kinds]
    rows: list[tuple[object, ...]] = []
    index = parts.workspace.gap_index()
    for found in without_damaged(index.store, index.series_gaps(series, parts.now)):
        key = (found.series.symbol, str(found.series.timeframe))
        if found.error is not None:
            rows.append((*key, "error", None, None, 0, 0, None, str(found.error)))
        for gap in found.gaps:
            counts = (gap.sessions, gap.bars, gap.next_try_at, gap.detail)
            rows.append((*key, gap.reason.value, gap.interval.start, gap.interval.end, *counts))
    return gaps_frame(rows)


def require_ready(checked: Sequence[Readiness]) -> None:
    """Refuse to read bars that are not complete.

    Raises:
        IncompleteError: some are not; it names what is missing and why.
    """
    incomplete = [one for one in checked if not one]
    if not incomplete:
        return
    shown = "; ".join(str(one) for one in incomplete[:_SHOWN])
    more = len(incomplete) - _SHOWN
    series = ",".join(one.symbol for one in incomplete[:_SHOWN])
    raise IncompleteError(
        f"reading complete bars of {len(checked)} series",
        reason=f"{shown}{f'; and {more} more series' if more > 0 else ''}",
        hint=f"`ktrdr load {series} {incomplete[0].timeframe}` requests what can be requested, "
        "`ktrdr gaps` says when the rest is; or read without require_complete",
    )


def gaps_frame(rows: Iterable[tuple[object, ...]]) -> "pd.DataFrame":
    """Return gaps as a pandas frame: a row of values for each, in the order of its columns."""
    kinds: dict[str, Any] = {
        "symbol": "str",
        "timeframe": "str",
        "reason": "str",
        "starts": _INSTANT,
        "ends": _INSTANT,
        "sessions": np.int64,
        "bars": np.int64,
        "next_try_at": _INSTANT,
        "detail": "str",
    }
    return _typed(kinds, rows)


def coverage_frame(coverage: Coverage) -> "pd.DataFrame":
    """Return coverage as a pandas frame; see ``Store.coverage``."""
    rows: list[tuple[object, ...]] = [
        ("bars", one.start, one.end, None, None) for one in coverage.bars
    ]
    rows += [
        ("empty", one.interval.start, one.interval.end, one.proved_at, one.kind.value)
        for one in coverage.empty
    ]
    kinds: dict[str, Any] = {
        "verdict": "str",
        "starts": _INSTANT,
        "ends": _INSTANT,
        "proved_at": _INSTANT,
        "kind": "str",
    }
    return _typed(kinds, rows).sort_values("starts", ignore_index=True)


def _typed(kinds: dict[str, Any], rows: Iterable[tuple[object, ...]]) -> "pd.DataFrame":
    """Return rows as a frame of columns of some types, also without any."""
    import pandas as pd

    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    return pd.DataFrame(
        {
            name: pd.Series(list(column), dtype=kind)
            for (name, kind), column in zip(kinds.items(), columns, strict=True)
        }
    )


def _part(grid: SessionGrid, part: Interval, why: tuple[str, str, datetime | None]) -> MissingRange:
    spans = grid.meeting(part)
    starts = np.maximum(spans.starts, micros(part.start))
    ends = np.minimum(spans.ends, micros(part.end))
    bars = int(spans.bars_in(starts, ends).sum()) if len(spans) else 0
    reason, detail, next_try_at = why
    return MissingRange(part.start, part.end, len(spans), bars, reason, detail, next_try_at)


def _parts(grid: SessionGrid, parts: IntervalSet, reason: str, detail: str) -> list[MissingRange]:
    """Return ranges as far as bars are expected in them."""
    found = [_part(grid, part, (reason, detail, None)) for part in parts]
    return [one for one in found if one.bars]


def _text(at: datetime) -> str:
    if at.time() == datetime.min.time():
        return f"{at:%Y-%m-%d}"
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
