"""Stores in temporary folders, and factories of the series, bars and coverage saved in them."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import Session, midnight, monday_of
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.instruments import (
    Identity,
    Instrument,
    Origin,
    SecType,
    Series,
    WhatToShow,
    identity_of,
)
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore, SaveResult
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.rebasing import record_adjustment


class Make:
    """Factories of instruments, series, bars and coverage."""

    def instrument(self, symbol: str = "AAPL", calendar: str = "XNYS.RTH") -> Instrument:
        is_fx = calendar == "FX"
        return Instrument(
            symbol=symbol,
            ib_symbol=symbol,
            sec_type=SecType.CASH if is_fx else SecType.STK,
            exchange="IDEALPRO" if is_fx else "SMART",
            currency="USD",
            what_to_show=WhatToShow.MIDPOINT if is_fx else WhatToShow.TRADES,
            use_rth=calendar.endswith("RTH"),
            calendar=calendar,
            timeframes=tuple(Timeframe),
            start=date(2020, 1, 1),
        )

    def series(
        self,
        timeframe: Timeframe = Timeframe.M1,
        symbol: str = "AAPL",
        calendar: str = "XNYS.RTH",
    ) -> Series:
        return Series(self.instrument(symbol, calendar), timeframe)

    def identity(
        self, series: Series, *, contract_id: int = 265598, origin: Origin = Origin.IB
    ) -> Identity:
        return identity_of(series, contract_id=contract_id, origin=origin)

    def bars(self, series: Series, at: Iterable[datetime], value: float = 1.0) -> pa.Table:
        """Return bars with these timestamps, all of one value."""
        keys = np.array([micros(moment) for moment in at], dtype=np.int64)
        calendar = calendar_named(series.instrument.calendar)
        days = calendar.days_of(keys) if series.timeframe.is_intraday else keys // 86_400_000_000
        prices = pa.array(np.full(len(keys), value))
        return pa.Table.from_arrays(
            [
                pa.array(keys, BAR_SCHEMA.field("ts").type),
                pa.array(days.astype("datetime64[D]"), pa.date32()),
                *([prices] * 6),
                pa.array(np.full(len(keys), 7), pa.int32()),
            ],
            schema=BAR_SCHEMA,
        )

    def run(self, series: Series, first: datetime, count: int, value: float = 1.0) -> pa.Table:
        """Return consecutive bars."""
        return self.bars(series, [first + n * series.timeframe.length for n in range(count)], value)

    def covering(self, series: Series, bars: pa.Table) -> Coverage:
        """Return the coverage of exactly these bars."""
        length = series.timeframe.length
        starts = [moment(int(key)) for key in timestamps(bars)]
        return Coverage(IntervalSet(Interval(start, start + length) for start in starts))

    def empty(self, start: datetime, end: datetime, proved_at: datetime) -> Coverage:
        """Return coverage with one interval that is confirmed empty."""
        return Coverage(empty=(Emptiness(Interval(start, end), proved_at),))

    def save(self, store: BarStore, series: Series, bars: pa.Table) -> SaveResult:
        """Save bars with their coverage."""
        return store.save(series, self.identity(series), bars, self.covering(series, bars))

    def split(self, number: int, ratio: float, day: date = date(2024, 6, 3)) -> Adjustment:
        """Return a split that was found at noon of its effective session."""
        noon = datetime.combine(day, time(12), UTC)
        return Adjustment(
            number=number,
            ratio=ratio,
            volume_ratio=1 / ratio,
            kind=AdjustmentKind.SPLIT,
            effective=day,
            is_estimated=False,
            found_at=noon,
            old_until=noon - timedelta(hours=12),
            evidence="390 bars of AAPL 1m",
        )

    def rebase(self, store: BarStore, found: Adjustment, symbol: str = "AAPL") -> bool:
        """Record an adjustment that a comparison with bars of long ago has found."""
        compared = Interval(datetime(2000, 1, 3, tzinfo=UTC), datetime(2000, 1, 4, tzinfo=UTC))
        return record_adjustment(store, self.series(symbol=symbol), found, compared=compared)

    def true_ends(self, series: Series, first: date, end: date) -> dict[datetime, datetime]:
        """Return the timestamps expected in ``[first, end)``, with the end of each bar."""
        calendar = calendar_named(series.instrument.calendar)
        sessions = calendar.sessions(first, end)
        if series.timeframe is Timeframe.D1:
            return {midnight(session.day): session.closes_at for session in sessions}
        if series.timeframe is Timeframe.W1:
            return {midnight(monday_of(session.day)): session.closes_at for session in sessions}
        ends: dict[datetime, datetime] = {}
        for session in sessions:
            marks = [*_grid(session, series.timeframe, calendar.zone), session.closes_at]
            ends |= dict(pairwise(marks))
        return ends


def _grid(session: Session, timeframe: Timeframe, zone: str) -> list[datetime]:
    """Return the open, and the multiples of the timeframe in local time before the close."""
    marks = [session.opens_at]
    wall = datetime.combine(session.opens_at.astimezone(ZoneInfo(zone)).date(), time())
    while True:
        wall += timeframe.length
        mark = wall.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        if mark >= session.closes_at:
            return marks
        if mark > session.opens_at:
            marks.append(mark)


@pytest.fixture(scope="session")
def make() -> Make:
    """Return the factories."""
    return Make()


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    """Return a new store."""
    return create_store(tmp_path / "data")


@pytest.fixture
def ledger(layout: StoreLayout) -> Iterator[Ledger]:
    """Yield the ledger of the new store."""
    ledger = Ledger(layout.ledger)
    with closing(ledger):
        yield ledger


@pytest.fixture
def clock() -> datetime:
    """Return the time of the store's clock."""
    return datetime(2024, 6, 3, 20, tzinfo=UTC) + timedelta(minutes=30)


@pytest.fixture
def store(layout: StoreLayout, ledger: Ledger, clock: datetime) -> BarStore:
    """Return the bars of the new store."""
    return BarStore(layout, ledger, clock=lambda: clock)
