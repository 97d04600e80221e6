"""A fake gateway: it returns true bars as IB does, and mutated responses where a test sets them."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, timestamps
from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.calendars.registry import calendar_named, is_gateways
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.domain.instruments import Instrument, Origin, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.responses import (
    BarRequest,
    NoData,
    OnSent,
    Response,
    ignore_sent,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, RequestExpiredError

PARTIAL = -1.0
"""The close of a bar that was cut short: no such bar may ever be stored."""

Mutation = Callable[[BarRequest, pa.Table], pa.Table | NoData | Response | GatewayError]

NO_DATA_TEXT = "HMDS query returned no data"


def stock(symbol: str = "AAPL", calendar: str = "XNYS.RTH") -> Instrument:
    """Return a stock with regular or extended hours."""
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
    """Return a currency pair."""
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


def instrument_of(calendar: str) -> Instrument:
    """Return an instrument that trades by a calendar."""
    return fx() if calendar == "FX" else stock(calendar=calendar)


def bars_at(keys: Iterable[int], calendar: SessionCalendar, *, daily: bool = False) -> pa.Table:
    """Return bars at timestamps (microseconds), each with values of its own."""
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


def true_keys(
    calendar: SessionCalendar, timeframe: Timeframe, first: date, end: date
) -> np.ndarray:
    """Return the timestamps of all bars of a market that trades in every interval."""
    sessions = calendar.sessions(first, end)
    if timeframe is Timeframe.D1:
        keys = [micros(midnight(session.day)) for session in sessions]
    elif timeframe is Timeframe.W1:
        keys = sorted({micros(midnight(monday_of(session.day))) for session in sessions})
    else:
        length = timeframe.seconds * 1_000_000
        keys = []
        for session in sessions:
            opens, closes = micros(session.opens_at), micros(session.closes_at)
            keys.extend((opens, *range(opens // length * length + length, closes, length)))
    return np.array(keys, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TrueBars:
    """All bars of a series, with the moments at which each begins and ends to trade."""

    bars: pa.Table
    opens: np.ndarray
    closes: np.ndarray

    def between(self, start: datetime, end: datetime) -> pa.Table:
        """Return the bars that trade between two moments; the close of a cut one is PARTIAL."""
        low, high = micros(start), micros(end)
        first = int(np.searchsorted(self.closes, low, side="right"))
        last = max(first, int(np.searchsorted(self.opens, high, side="left")))
        bars = self.bars.slice(first, last - first)
        cut = (self.opens[first:last] < low) | (self.closes[first:last] > high)
        if not cut.any():
            return bars
        closing = np.where(cut, PARTIAL, bars["close"].to_numpy())
        place = bars.schema.get_field_index("close")
        return bars.set_column(place, bars.schema.field("close"), pa.array(closing))


def true_bars_of(keys: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar) -> TrueBars:
    """Return the true bars of a series at timestamps."""
    bars = bars_at(keys, calendar, daily=not timeframe.is_intraday)
    if len(keys) == 0:
        return TrueBars(bars, keys, keys)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    sessions = calendar.sessions(days[0].item(), days[-1].item() + timedelta(days=7))
    dates = np.array([session.day for session in sessions], dtype="datetime64[D]")
    opens = np.array([micros(session.opens_at) for session in sessions], dtype=np.int64)
    closes = np.array([micros(session.closes_at) for session in sessions], dtype=np.int64)
    if not timeframe.is_intraday:
        length = np.timedelta64(1 if timeframe is Timeframe.D1 else 7, "D")
        first = np.searchsorted(dates, days)
        return TrueBars(bars, opens[first], closes[np.searchsorted(dates, days + length) - 1])
    length_us = timeframe.seconds * 1_000_000
    grid_end = (keys // length_us + 1) * length_us
    return TrueBars(bars, keys, np.minimum(grid_end, closes[np.searchsorted(dates, days)]))


def true_daily_bars(
    bars: pa.Table, timeframe: Timeframe, calendar: str, life: tuple[date, date]
) -> TrueBars:
    """Return true daily bars: of the session dates of other bars, and of all dates of ``life``."""
    sessions = calendar_named(calendar)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    if timeframe is Timeframe.W1:
        weeks = np.unique(days)
        days = sessions.days[np.isin(sessions.days - (sessions.days.astype(int) + 3) % 7, weeks)]
    traded = np.unique(days).astype("datetime64[us]").astype(np.int64)
    keys = np.union1d(traded, dense_keys(calendar, Timeframe.D1, *life))
    return true_bars_of(keys, Timeframe.D1, sessions)


def schedule_of(calendar: SessionCalendar, ends_at: datetime, days: int) -> list[LearnedDay]:
    """Return the sessions of a calendar as a gateway returns a schedule."""
    sessions = calendar.sessions_meeting(Interval(ends_at - timedelta(days=days), ends_at))
    return [LearnedDay(one.day, (Interval(one.opens_at, one.closes_at),)) for one in sessions]


def start_of(request: BarRequest, end: datetime) -> datetime:
    """Return the moment from which a request reaches; ``N D`` counts sessions, ``N Y`` years."""
    match = re.fullmatch(r"(\d+) ([SDWMY])", request.duration)
    assert match is not None, request.duration
    count, unit = int(match[1]), match[2]
    if unit == "D":
        return _session_opens(request.series.instrument.calendar, end, count)
    if unit == "Y":
        return _session_opens_after(request.series.instrument.calendar, end, count)
    days = {"W": 7, "M": 30}
    length = timedelta(seconds=count) if unit == "S" else timedelta(days=days[unit] * count)
    return end - length


def _session_opens_after(key: str, end: datetime, years: int) -> datetime:
    """Return the open of the first session dated after the end's date minus some years."""
    calendar = calendar_named("XNYS.ETH" if is_gateways(key) else key)
    day = calendar.day_of(end)
    is_leap_day = (day.month, day.day) == (2, 29)
    before = day.replace(year=day.year - years, day=28 if is_leap_day else day.day)
    return calendar.day_starts_at(before + timedelta(days=1))


def _session_opens(key: str, end: datetime, count: int) -> datetime:
    """Return the open of the n-th session back from a moment.

    For hours that only the gateway knows, the extended hours of New York are used.
    """
    calendar = calendar_named("XNYS.ETH" if is_gateways(key) else key)
    day = calendar.day_of(end) + timedelta(days=1)
    sessions = calendar.sessions(day - timedelta(days=3 * count + 14), day)
    return [session for session in sessions if session.opens_at < end][-count].opens_at


def _reaches_past(request: BarRequest, start: datetime, true_bars: TrueBars) -> bool:
    """Return whether a session (1w: a week) lies between a request's start and the oldest bar."""
    oldest = moment_of(true_bars.opens[0])
    if request.series.timeframe is Timeframe.W1:
        return start < oldest - timedelta(days=7)
    if start >= oldest:
        return False
    sessions = calendar_named(request.series.instrument.calendar).sessions_meeting(
        Interval(start, oldest)
    )
    return any(start <= one.opens_at and one.closes_at <= oldest for one in sessions)


@dataclass
class FakeGateway:
    """Returns true bars as IB does; ``mutate`` replaces its responses to requests for bars."""

    true_bars: dict[tuple[str, Timeframe], TrueBars]
    time: datetime
    origin: Origin = Origin.IB
    gateway: str = "fake:1"
    login: str = "login 1"
    head_at: datetime | None = None
    mutate: Mutation | None = None
    nothing_past_oldest: bool = False
    before_response: Callable[[BarRequest], Awaitable[None]] | None = None
    requests: list[BarRequest] = field(default_factory=list)
    head_requests: int = 0
    details: tuple[LearnedDay, ...] = ()
    details_of: dict[str, tuple[LearnedDay, ...]] = field(default_factory=dict)
    schedule_requests: list[tuple[str, datetime, int]] = field(default_factory=list)
    mutate_schedule: Callable[[datetime, int], list[LearnedDay]] | None = None
    opened: int = 0
    contract_ids: dict[str, int] = field(default_factory=dict)
    concurrency: int = 6

    def now(self) -> datetime:
        return self.time

    async def contract_id(self, instrument: Instrument) -> int:
        return self.contract_ids.get(instrument.symbol, 265598)

    async def hours(self, instrument: Instrument) -> list[LearnedDay]:
        return list(self.details_of.get(instrument.symbol, self.details))

    async def schedule(
        self, instrument: Instrument, ends_at: datetime, days: int, *, sent: OnSent = ignore_sent
    ) -> list[LearnedDay]:
        sent()
        self.schedule_requests.append((instrument.symbol, ends_at, days))
        if self.mutate_schedule is not None:
            return self.mutate_schedule(ends_at, days)
        return schedule_of(calendar_named(instrument.calendar), ends_at, days)

    async def head(self, instrument: Instrument, *, sent: OnSent = ignore_sent) -> datetime | None:
        sent()
        self.head_requests += 1
        return self.head_at

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        self.requests.append(request)
        if self.before_response is not None:
            await self.before_response(request)
        if request.not_after is not None and self.time >= request.not_after:
            raise RequestExpiredError(str(request))
        bars = self.unmutated(request)
        if self.mutate is not None:
            mutated = self.mutate(request, bars)
            if isinstance(mutated, GatewayError):
                if mutated.was_sent:
                    sent()
                raise mutated
            sent()
            if isinstance(mutated, NoData | Response):
                return mutated
            bars = mutated
        else:
            sent()
        if bars.num_rows == 0:
            return NoData(request, NO_DATA_TEXT)
        return Response(request, bars, None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["FakeGateway"]:
        self.opened += 1
        yield self

    def unmutated(self, request: BarRequest) -> pa.Table:
        """Return the bars of the response before it is mutated."""
        true_bars = self.true_bars.get((request.series.symbol, request.series.timeframe))
        if true_bars is None or true_bars.bars.num_rows == 0:
            return BAR_SCHEMA.empty_table()
        end = min(request.ends_at or self.time, self.time)
        start = start_of(request, end)
        if self.nothing_past_oldest and _reaches_past(request, start, true_bars):
            return BAR_SCHEMA.empty_table()
        return true_bars.between(start, end)

    @property
    def sizes(self) -> list[str]:
        """The requested durations, in order."""
        return [request.duration for request in self.requests]


@cache
def dense_keys(calendar: str, timeframe: Timeframe, first: date, end: date) -> np.ndarray:
    """Return the same as ``true_keys`` for the name of a calendar, cached."""
    return true_keys(calendar_named(calendar), timeframe, first, end)


def thinned(keys: np.ndarray, drop: float, seed: int = 1) -> np.ndarray:
    """Return timestamps without a random share of them."""
    return keys[np.random.default_rng(seed).random(len(keys)) >= drop]


def series_of(instrument: Instrument, timeframe: Timeframe) -> Series:
    """Return a series."""
    return Series(instrument, timeframe)


def moment_of(timestamp: int) -> datetime:
    """Return microseconds since 1970 as a moment."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(timestamp))


def utc(*parts: int) -> datetime:
    """Return a moment in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def keys_of(bars: pa.Table) -> list[int]:
    """Return timestamps as a list."""
    keys: list[int] = timestamps(bars).tolist()
    return keys
