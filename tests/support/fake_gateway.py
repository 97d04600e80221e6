"""A hand-written gateway for the loading: true bars, IB's habits, and misbehaviour on demand."""

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
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, OnSent, Response, unheard
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, RequestExpiredError

PARTIAL = -1.0
"""The close of a bar that the gateway cut: none of these may ever be stored."""

Twist = Callable[[BarRequest, pa.Table], pa.Table | NoData | Response | GatewayError]

NOT_ANSWERED = "HMDS query returned no data"


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


def instrument_of(calendar: str) -> Instrument:
    """Make an instrument of a calendar."""
    return fx() if calendar == "FX" else stock(calendar=calendar)


def bars_at(keys: Iterable[int], calendar: SessionCalendar, *, daily: bool = False) -> pa.Table:
    """Make bars at timestamps (microseconds), with values that tell one from another."""
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
    """Give the timestamps of every bar that a market without silences has."""
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
class Truth:
    """All bars of a series, and from when to when in real time each of them trades."""

    bars: pa.Table
    opens: np.ndarray
    closes: np.ndarray

    def seen(self, start: datetime, end: datetime) -> pa.Table:
        """Give the bars that trade between two moments; the close of a cut one is PARTIAL."""
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


def truth_of(keys: np.ndarray, timeframe: Timeframe, calendar: SessionCalendar) -> Truth:
    """Make a series' truth of its timestamps."""
    bars = bars_at(keys, calendar, daily=not timeframe.is_intraday)
    if len(keys) == 0:
        return Truth(bars, keys, keys)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    sessions = calendar.sessions(days[0].item(), days[-1].item() + timedelta(days=7))
    dates = np.array([session.day for session in sessions], dtype="datetime64[D]")
    opens = np.array([micros(session.opens_at) for session in sessions], dtype=np.int64)
    closes = np.array([micros(session.closes_at) for session in sessions], dtype=np.int64)
    if not timeframe.is_intraday:
        length = np.timedelta64(1 if timeframe is Timeframe.D1 else 7, "D")
        first = np.searchsorted(dates, days)
        return Truth(bars, opens[first], closes[np.searchsorted(dates, days + length) - 1])
    length_us = timeframe.seconds * 1_000_000
    grid_end = (keys // length_us + 1) * length_us
    return Truth(bars, keys, np.minimum(grid_end, closes[np.searchsorted(dates, days)]))


def daily_truth(
    bars: pa.Table, timeframe: Timeframe, calendar: str, life: tuple[date, date]
) -> Truth:
    """Make the daily bars of a market: of the days that other bars are of, and of later ones."""
    sessions = calendar_named(calendar)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    if timeframe is Timeframe.W1:
        weeks = np.unique(days)
        days = sessions.days[np.isin(sessions.days - (sessions.days.astype(int) + 3) % 7, weeks)]
    traded = np.unique(days).astype("datetime64[us]").astype(np.int64)
    keys = np.union1d(traded, dense_keys(calendar, Timeframe.D1, *life))
    return truth_of(keys, Timeframe.D1, sessions)


def schedule_of(calendar: SessionCalendar, ends_at: datetime, days: int) -> list[LearnedDay]:
    """Tell the sessions of a calendar as a gateway would."""
    sessions = calendar.sessions_meeting(Interval(ends_at - timedelta(days=days), ends_at))
    return [LearnedDay(one.day, (Interval(one.opens_at, one.closes_at),)) for one in sessions]


def start_of(request: BarRequest, end: datetime) -> datetime:
    """Say how far back a request reaches; ``N D`` counts sessions, years are of the calendar."""
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
    """Give the open of the first session that is dated after the end's date minus some years."""
    calendar = calendar_named("XNYS.ETH" if is_gateways(key) else key)
    day = calendar.day_of(end)
    is_leap_day = (day.month, day.day) == (2, 29)
    before = day.replace(year=day.year - years, day=28 if is_leap_day else day.day)
    return calendar.day_starts_at(before + timedelta(days=1))


def _session_opens(key: str, end: datetime, count: int) -> datetime:
    """Give the open of the n-th session back from a moment.

    Hours that only the gateway knows are in truth those of New York, extended.
    """
    calendar = calendar_named("XNYS.ETH" if is_gateways(key) else key)
    day = calendar.day_of(end) + timedelta(days=1)
    sessions = calendar.sessions(day - timedelta(days=3 * count + 14), day)
    return [session for session in sessions if session.opens_at < end][-count].opens_at


def _reaches_past(request: BarRequest, start: datetime, truth: Truth) -> bool:
    """Say whether a session (1w: a week) lies between a request's start and the oldest bar."""
    oldest = moment_of(truth.opens[0])
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
    """Answers requests from true bars as IB would; ``twist`` makes it misbehave."""

    truth: dict[tuple[str, Timeframe], Truth]
    time: datetime
    origin: Origin = Origin.IB
    gateway: str = "fake:1"
    login: str = "login 1"
    head_at: datetime | None = None
    twist: Twist | None = None
    nothing_past_oldest: bool = False
    before_answer: Callable[[BarRequest], Awaitable[None]] | None = None
    asked: list[BarRequest] = field(default_factory=list)
    heads: int = 0
    details: tuple[LearnedDay, ...] = ()
    details_of: dict[str, tuple[LearnedDay, ...]] = field(default_factory=dict)
    schedules_asked: list[tuple[str, datetime, int]] = field(default_factory=list)
    schedule_twist: Callable[[datetime, int], list[LearnedDay]] | None = None
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
        self, instrument: Instrument, ends_at: datetime, days: int, *, sent: OnSent = unheard
    ) -> list[LearnedDay]:
        sent()
        self.schedules_asked.append((instrument.symbol, ends_at, days))
        if self.schedule_twist is not None:
            return self.schedule_twist(ends_at, days)
        return schedule_of(calendar_named(instrument.calendar), ends_at, days)

    async def head(self, instrument: Instrument, *, sent: OnSent = unheard) -> datetime | None:
        sent()
        self.heads += 1
        return self.head_at

    async def bars(self, request: BarRequest, *, sent: OnSent = unheard) -> Response | NoData:
        self.asked.append(request)
        if self.before_answer is not None:
            await self.before_answer(request)
        if request.not_after is not None and self.time >= request.not_after:
            raise RequestExpiredError(str(request))
        bars = self.honest(request)
        if self.twist is not None:
            twisted = self.twist(request, bars)
            if isinstance(twisted, GatewayError):
                if twisted.was_sent:
                    sent()
                raise twisted
            sent()
            if isinstance(twisted, NoData | Response):
                return twisted
            bars = twisted
        else:
            sent()
        if bars.num_rows == 0:
            return NoData(request, NOT_ANSWERED)
        return Response(request, bars, None)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["FakeGateway"]:
        self.opened += 1
        yield self

    def honest(self, request: BarRequest) -> pa.Table:
        """Give what a gateway without quirks would answer."""
        truth = self.truth.get((request.series.symbol, request.series.timeframe))
        if truth is None or truth.bars.num_rows == 0:
            return BAR_SCHEMA.empty_table()
        end = min(request.ends_at or self.time, self.time)
        start = start_of(request, end)
        if self.nothing_past_oldest and _reaches_past(request, start, truth):
            return BAR_SCHEMA.empty_table()
        return truth.seen(start, end)

    @property
    def sizes(self) -> list[str]:
        """The durations that were asked for, in their order."""
        return [request.duration for request in self.asked]


@cache
def dense_keys(calendar: str, timeframe: Timeframe, first: date, end: date) -> np.ndarray:
    """Give the timestamps of a market without silences, remembered."""
    return true_keys(calendar_named(calendar), timeframe, first, end)


def thinned(keys: np.ndarray, drop: float, seed: int = 1) -> np.ndarray:
    """Leave out a share of timestamps."""
    return keys[np.random.default_rng(seed).random(len(keys)) >= drop]


def series_of(instrument: Instrument, timeframe: Timeframe) -> Series:
    """Make a series."""
    return Series(instrument, timeframe)


def moment_of(timestamp: int) -> datetime:
    """Give microseconds since 1970 as a moment."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(timestamp))


def utc(*parts: int) -> datetime:
    """Make a moment in UTC."""
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def keys_of(bars: pa.Table) -> list[int]:
    """Give timestamps as a list."""
    keys: list[int] = timestamps(bars).tolist()
    return keys
