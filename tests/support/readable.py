"""Stores with a universe and random bars of several markets, for the tests of reading them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.app.reading.bar_reader import Store
from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Instrument, Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import create_store, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.rebasing import record_adjustment

UNIVERSE = """\
defaults: {timeframes: [1m, 5m, 15m, 30m, 1h, 4h, 1d, 1w], start: 2023-01-02}
symbols:
  AAPL: {}
  MSFT: {}
  AAPL.ETH: {symbol: AAPL, use_rth: false}
  EURUSD: {}
  ESH24: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: "20240315", use_rth: false}
  "7203": {exchange: TSEJ}
"""

NOW = datetime(2024, 7, 5, 21, tzinfo=UTC)
"""A Friday evening after the close in New York."""


def random_bars(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    first: date,
    end: date,
    *,
    without: Iterable[date] = (),
) -> pa.Table:
    """Return bars of all expected timestamps of session dates ``[first, end)``, as IB aligns them.

    Intraday bars begin at the open of a session, after its breaks, and at full multiples of their
    length by the local clock.
    """
    keys: list[int] = []
    length = timeframe.seconds * 1_000_000
    left_out = set(without)
    for session in calendar.sessions(first, end):
        if session.day in left_out:
            continue
        midnight = micros(
            datetime(session.day.year, session.day.month, session.day.day, tzinfo=UTC)
        )
        if timeframe is Timeframe.D1:
            keys.append(midnight)
            continue
        if timeframe is Timeframe.W1:
            monday = midnight - session.day.weekday() * 86_400_000_000
            keys += [monday] if monday not in keys[-1:] else []
            continue
        opens, closes = micros(session.opens_at), micros(session.closes_at)
        begins, ends = [opens], []
        for pause, resumed in calendar.breaks.tolist():
            if opens < pause < closes:
                begins.append(resumed)
                ends.append(pause)
        for start, until in zip(begins, [*ends, closes], strict=True):
            shift = _utc_offset(calendar, start)
            following = (start + shift) // length * length + length - shift
            keys += [start, *range(following, until, length)]
    at = np.array(keys, np.int64)
    noise = np.random.default_rng(len(at) + timeframe.seconds)
    low = np.round(100 + np.cumsum(noise.normal(0, 0.05, len(at))), 2)
    prices = [np.round(low + noise.uniform(0, 1, len(at)), 2) for _ in range(2)]
    days = calendar.days_of(at) if timeframe.is_intraday else at.astype("datetime64[us]")
    return pa.Table.from_arrays(
        [
            pa.array(at, BAR_SCHEMA.field("ts").type),
            pa.array(days.astype("datetime64[D]"), pa.date32()),
            pa.array(prices[0]),
            pa.array(low + 1),
            pa.array(low),
            pa.array(prices[1]),
            pa.array(noise.integers(0, 1000, len(at)).astype(float)),
            pa.array(np.round(low + 0.5, 3)),
            pa.array(noise.integers(1, 99, len(at)), pa.int32()),
        ],
        schema=BAR_SCHEMA,
    )


def _utc_offset(calendar: SessionCalendar, at: int) -> int:
    """Return how far the local clock is ahead of UTC, in microseconds."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    ahead = moment.astimezone(ZoneInfo(calendar.zone)).utcoffset()
    assert ahead is not None
    return int(ahead.total_seconds()) * 1_000_000


@dataclass
class ReadableStore:
    """A store that tests fill and read; its clock stands at ``now``."""

    root: Path
    now: datetime = NOW
    universe: str = UNIVERSE
    _bars: BarStore = field(init=False)

    def __post_init__(self) -> None:
        layout = create_store(self.root, Origin.IB)
        layout.universe.write_text(self.universe)
        self._bars = BarStore(layout, Ledger(layout.ledger), clock=lambda: self.now)

    def close(self) -> None:
        """Close the ledger."""
        self._bars.ledger.close()

    @property
    def bar_store(self) -> BarStore:
        """The bars as the rest of the product reads them."""
        return self._bars

    def open(self) -> Store:
        """Return the store as a program opens it."""
        return Store(open_store(self.root), clock=lambda: self.now)

    def instrument(self, symbol: str) -> Instrument:
        """Return an instrument of the universe."""
        return parse_universe(self.universe, "universe.yaml").instrument(symbol)

    def calendar(self, symbol: str) -> SessionCalendar:
        """Return the calendar of a symbol."""
        return calendar_named(self.instrument(symbol).calendar)

    def series(self, symbol: str, timeframe: str) -> Series:
        """Return a series."""
        return Series(self.instrument(symbol), Timeframe(timeframe))

    def fill(
        self, symbol: str, timeframe: str, first: str, end: str, *, without: Iterable[str] = ()
    ) -> pa.Table:
        """Save all bars of session dates and cover them, but for some dates; return the bars."""
        calendar, kind = self.calendar(symbol), Timeframe(timeframe)
        start, until = date.fromisoformat(first), date.fromisoformat(end)
        skipped = [date.fromisoformat(one) for one in without]
        bars = random_bars(calendar, kind, start, until, without=skipped)
        covered = IntervalSet([interval_between(calendar, kind, start, until)])
        for day in skipped:
            left_out = interval_between(calendar, kind, day, day + timedelta(days=1))
            covered -= IntervalSet([left_out])
        self.save(symbol, timeframe, bars, Coverage(covered))
        return bars

    def save(
        self, symbol: str, timeframe: str, bars: pa.Table, coverage: Coverage | None = None
    ) -> None:
        """Save bars."""
        series = self.series(symbol, timeframe)
        identity = identity_of(series, contract_id=1, origin=Origin.IB)
        self._bars.save(series, identity, bars, Coverage() if coverage is None else coverage)

    def split(self, symbol: str, ratio: float, day: str, *, is_manual: bool = False) -> None:
        """Record an adjustment of a symbol, found on the evening of its first session."""
        effective = date.fromisoformat(day)
        found_at = datetime(effective.year, effective.month, effective.day, 22, tzinfo=UTC)
        known = self._bars.bases.of(symbol)
        adjustment = Adjustment(
            number=len(known) + 1,
            ratio=ratio,
            volume_ratio=1 / ratio,
            kind=AdjustmentKind.MANUAL if is_manual else AdjustmentKind.SPLIT,
            effective=effective,
            is_estimated=False,
            found_at=found_at,
            old_until=found_at - timedelta(hours=1),
            evidence="made for a test",
        )
        compared = Interval(datetime(2000, 1, 3, tzinfo=UTC), datetime(2000, 1, 4, tzinfo=UTC))
        held = self._bars.layout.timeframes_of(symbol)[0]
        series = self.series(symbol, held.value)
        assert record_adjustment(self._bars, series, adjustment, compared=compared)
