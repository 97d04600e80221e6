"""A hand-written gateway for the loading: true bars, IB's habits, and misbehaviour on demand."""

import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.core.answers import Answer, BarRequest, NoData
from ktrdr_pipelines.core.bars import BAR_SCHEMA, micros, stamps
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.instruments import Instrument, Origin, SecType, Series, WhatToShow
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.core.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.load.keeper import Patience
from ktrdr_pipelines.load.manager import LoadManager
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger import Ledger
from ktrdr_pipelines.store.parquet import BarStore

PARTIAL = -1.0
"""The close of a bar that the gateway cut: none of these may ever be stored."""

Twist = Callable[[BarRequest, pa.Table], pa.Table | NoData | GatewayError]


def stock(symbol: str = "AAPL", calendar: str = "XNYS.RTH") -> Instrument:
    """Make a stock with regular or extended hours."""
    return Instrument(
        symbol=symbol,
        ib_symbol=symbol,
        sec_type=SecType.STK,
        exchange="SMART",
        currency="USD",
        what_to_show=WhatToShow.TRADES,
        use_rth=calendar.endswith("RTH"),
        calendar=calendar,
        timeframes=tuple(Timeframe),
        start=date(2020, 1, 1),
    )


def fx(symbol: str = "EURUSD") -> Instrument:
    """Make a currency pair."""
    return Instrument(
        symbol=symbol,
        ib_symbol=symbol[:3],
        sec_type=SecType.CASH,
        exchange="IDEALPRO",
        currency=symbol[3:],
        what_to_show=WhatToShow.MIDPOINT,
        use_rth=False,
        calendar="FX",
        timeframes=tuple(Timeframe),
        start=date(2020, 1, 1),
    )


def bars_at(keys: Iterable[int], calendar: SessionCalendar, *, daily: bool = False) -> pa.Table:
    """Make bars at stamps (microseconds), with values that tell one from another."""
    ts = np.array(list(keys), dtype=np.int64)
    price = (ts // 60_000_000 % 100_000).astype(float) + 1.0
    days = ts.astype("datetime64[us]").astype("datetime64[D]") if daily else calendar.days_of(ts)
    return pa.table(
        {
            "ts": pa.array(ts, pa.timestamp("us", tz="UTC")),
            "session_date": pa.array(days, pa.date32()),
            "open": price,
            "high": price + 1,
            "low": price - 1,
            "close": price,
            "volume": pa.array(np.full(len(ts), 100.0)),
            "average": price,
            "bar_count": pa.array(np.full(len(ts), 7), pa.int32()),
        },
        schema=BAR_SCHEMA,
    )


def true_keys(calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date) -> list[int]:
    """Give the stamps of every bar that a market without silences has."""
    sessions = calendar.sessions(first, end)
    if timeframe is Timeframe.D1:
        return [micros(midnight(session.day)) for session in sessions]
    if timeframe is Timeframe.W1:
        return sorted({micros(midnight(monday_of(session.day))) for session in sessions})
    keys: list[int] = []
    length = timeframe.seconds * 1_000_000
    for session in sessions:
        opens, closes = micros(session.opens_at), micros(session.closes_at)
        grid = range(opens // length * length + length, closes, length)
        keys.extend((opens, *grid))
    return keys


@dataclass
class FakeGateway:
    """Answers requests from a table of true bars as IB would."""

    truth: dict[tuple[str, Timeframe], pa.Table]
    time: datetime
    origin: Origin = Origin.IB
    gateway: str = "fake:1"
    account_hash: str = "hash"
    head_at: datetime | None = None
    twist: Twist | None = None
    asked: list[BarRequest] = field(default_factory=list)
    heads: int = 0
    opened: int = 0
    contract_ids: dict[str, int] = field(default_factory=dict)

    def now(self) -> datetime:
        return self.time

    async def contract_id(self, instrument: Instrument) -> int:
        return self.contract_ids.get(instrument.symbol, 265598)

    async def head(self, instrument: Instrument) -> datetime | None:
        self.heads += 1
        return self.head_at

    async def bars(self, request: BarRequest) -> Answer | NoData:
        self.asked.append(request)
        bars = self._honest(request)
        if self.twist is not None:
            twisted = self.twist(request, bars)
            if isinstance(twisted, GatewayError):
                raise twisted
            if isinstance(twisted, NoData):
                return twisted
            bars = twisted
        if bars.num_rows == 0:
            return NoData(request, "HMDS query returned no data")
        return Answer(request, bars, None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["FakeGateway"]:
        self.opened += 1
        yield self

    def _honest(self, request: BarRequest) -> pa.Table:
        series = request.series
        calendar = calendar_named(series.instrument.calendar)
        table = self.truth.get((series.symbol, series.timeframe))
        if table is None:
            return BAR_SCHEMA.empty_table()
        end = min(request.ends_at or self.time, self.time)
        start = _start(request.duration, end, calendar)
        keys = stamps(table)
        opens, closes = _real_times(keys, series.timeframe, calendar)
        low, high = micros(start), micros(end)
        inside = (closes > low) & (opens < high)
        cut = inside & ((opens < low) | (closes > high))
        chosen = table.filter(pa.array(inside))
        closing = np.where(cut[inside], PARTIAL, chosen["close"].to_numpy())
        place = chosen.schema.get_field_index("close")
        return chosen.set_column(place, chosen.schema.field("close"), pa.array(closing))


def _real_times(
    keys: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar
) -> tuple[np.ndarray, np.ndarray]:
    if timeframe.is_intraday:
        ends = keys + timeframe.seconds * 1_000_000
        ends[:-1] = np.minimum(ends[:-1], keys[1:])
        for place, key in enumerate(keys):
            moment = datetime.fromtimestamp(key / 1e6, tz=UTC)
            around = Interval(moment, moment + timedelta(microseconds=1))
            for session in calendar.sessions_meeting(around):
                ends[place] = min(ends[place], micros(session.closes_at))
        return keys, ends
    days = 1 if timeframe is Timeframe.D1 else 7
    opens, closes = keys.copy(), keys.copy()
    for place, key in enumerate(keys):
        day = datetime.fromtimestamp(key / 1e6, tz=UTC).date()
        inside = calendar.sessions(day, day + timedelta(days=days))
        opens[place], closes[place] = micros(inside[0].opens_at), micros(inside[-1].closes_at)
    return opens, closes


def _start(duration: str, end: datetime, calendar: SessionCalendar) -> datetime:
    match = re.fullmatch(r"(\d+) ([SDWMY])", duration)
    assert match is not None, duration
    count, unit = int(match[1]), match[2]
    if unit == "D":
        day = calendar.day_of(end) + timedelta(days=1)
        sessions = calendar.sessions(day - timedelta(days=3 * count + 14), day)
        return [session for session in sessions if session.opens_at < end][-count].opens_at
    days = {"S": 1 / 86_400, "W": 7, "M": 30, "Y": 365}[unit]
    return end - timedelta(seconds=round(count * days * 86_400))


async def no_sleep(_: float) -> None:
    """Wait for nothing."""


@dataclass
class Bench:
    """A store, a fake gateway and a manager between them."""

    layout: StoreLayout
    gateway: FakeGateway

    @property
    def store(self) -> BarStore:
        return BarStore(self.layout, Ledger(self.layout.ledger))

    def manager(self) -> LoadManager:
        patience = Patience(max_retries=1, delay_s=0.0, sleep=no_sleep, clock=self.gateway.now)
        return LoadManager(self.layout, self.gateway.open, self.gateway.gateway, patience)


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[FakeGateway], Bench]:
    """Make a bench of a gateway over an empty store."""
    made = iter(range(1000))

    def make(gateway: FakeGateway) -> Bench:
        return Bench(create_store(tmp_path / str(next(made))), gateway)

    return make


def series_of(instrument: Instrument, timeframe: Timeframe) -> Series:
    """Make a series."""
    return Series(instrument, timeframe)
