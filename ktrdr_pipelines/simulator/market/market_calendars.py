"""Regular and extended hours of the simulated markets.

The project's own calendars are separate on purpose: a gateway that shared them would agree with
every mistake in them. Not here: what a duration means over hours (``requests.durations``).

Source: exchange_calendars XNYS, XTSE, XLON, CMES and others for regular hours, holidays and half
days; index futures of Eurex trade from 01:10 to 22:00 Frankfurt since 10 December 2018, from 07:50
before (grade O: Eurex's trading hours); the zones of exchanges abroad are the older names that IB's
contract details use (grade C);
extended hours 04:00-20:00 New York (17:00 on half days) and the FX week (Sunday 17:15 to Friday
17:00 with a daily break 17:00-17:15, closed 25 December and 1 January) as IB shows them in the
trading hours of its contracts (grade L). Globex trades from 17:00 Chicago of the day before to
16:00, to 12:00 on the early closes of CMES (grade O: CME's trading hours); equity indices close at
12:15 on half days of the stock market (grade L: MES on 24 December 2025,
https://github.com/ib-api-reloaded/ib_async/issues/128). Regular hours are 08:30-16:00 for equity
indices (grade L, same source) and the former pit's 09:00-14:30 New York for crude oil (grade P). An
index is reported in the regular hours of stocks. Crypto trades round the clock in UTC days (grade
P), or in sessions from 16:01 of the date before to 16:00, Monday to Friday (grade C: an author's
list of ``20260507:1601-20260508:1600;20260509:CLOSED``, whose zone the author does not state).
"""

import warnings
from collections.abc import Callable
from functools import cache

import exchange_calendars
import numpy as np
import pandas as pd

from ktrdr_pipelines.simulator.market.hours import DAY_S, ZONES, Hours, Ints, MarketCalendar, Venue

FIRST_DATE = "1980-01-02"
LAST_DATE = "2045-12-29"

_HOUR_S = 3_600
_PRE_OPEN_S = 4 * _HOUR_S
_POST_CLOSE_S = 20 * _HOUR_S
_HALF_DAY_POST_CLOSE_S = 17 * _HOUR_S
_FULL_CLOSE_S = 16 * _HOUR_S
_REGULAR_OPEN_S = 9 * _HOUR_S + 1_800
_FX_CLOSE_S = 17 * _HOUR_S
_FX_OPEN_S = _FX_CLOSE_S + 900 - DAY_S
_GLOBEX_OPEN_S = 17 * _HOUR_S - DAY_S
_GLOBEX_CLOSE_S = 16 * _HOUR_S
_CHICAGO = "US/Central"
_EQUITY_HALF_DAY_S = 12 * _HOUR_S + 900
_CRYPTO_OPEN_S = 16 * _HOUR_S + 60 - DAY_S
_CRYPTO_CLOSE_S = 16 * _HOUR_S

_EUREX_NIGHT_SINCE = "2018-12-10"
_EUREX_NIGHT_OPEN_S = _HOUR_S + 600
_EUREX_OPEN_S = 7 * _HOUR_S + 50 * 60
_EUREX_CLOSE_S = 22 * _HOUR_S

_GLOBEX_REGULAR = {
    Venue.CME: (8 * _HOUR_S + 1_800, 16 * _HOUR_S),
    Venue.NYMEX: (9 * _HOUR_S, 14 * _HOUR_S + 1_800),
}
"""Regular hours of the futures, in seconds of their own zone's day."""


@cache
def calendar_of(venue: Venue) -> MarketCalendar:
    """Return the calendar of a market; it is built once a process."""
    return _BUILDERS[venue](venue)


@cache
def crypto_sessions(zone: str) -> MarketCalendar:
    """Return crypto in sessions of a zone, 16:01 to 16:00, Monday to Friday (grade C).

    Their dates are those of their close; Saturday and Sunday have none.
    """
    dates = pd.bdate_range(FIRST_DATE, LAST_DATE)
    labels = _seconds(dates) // DAY_S
    opens = _utc_of_local(dates, _CRYPTO_OPEN_S, zone)
    closes = _utc_of_local(dates, _CRYPTO_CLOSE_S, zone)
    hours = Hours(labels, opens, closes, labels * DAY_S + _CRYPTO_CLOSE_S - closes)
    return MarketCalendar(Venue.CRYPTO, all_hours=hours, regular=hours)


def within_regular_clock(local_times: Ints) -> bool:
    """Return whether all local times lie between 09:30 and 16:00, on whatever day."""
    clock = local_times % DAY_S
    return bool(np.all((clock >= _REGULAR_OPEN_S) & (clock < _FULL_CLOSE_S)))


def _seconds(moments: pd.DatetimeIndex) -> Ints:
    return moments.as_unit("s").asi8.copy()


def _utc_of_local(dates: pd.DatetimeIndex, local_s: Ints | int, zone: str) -> Ints:
    """Return moments so many seconds of wall clock after (or before) local midnights."""
    local = dates + pd.to_timedelta(local_s, unit="s")
    return _seconds(pd.DatetimeIndex(local).tz_localize(zone).tz_convert("UTC"))


_KNOWN_SINCE = {"XTKS": pd.Timestamp("1997-01-01")}
"""The first dates of the library's calendars that begin later than the others."""

_LUNCHES = {
    "XTKS": (11 * _HOUR_S + 1_800, 12 * _HOUR_S + 1_800),
    "XHKG": (12 * _HOUR_S, 13 * _HOUR_S),
}
"""Lunch breaks of today, in seconds of the local day."""


def _schedule(name: str) -> tuple[pd.DatetimeIndex, Ints, Ints]:
    """Return dates, opens and closes of a calendar of the library."""
    with warnings.catch_warnings():
        # exchange_calendars 4.13 builds its schedule with calls that pandas 3 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        first = max(pd.Timestamp(FIRST_DATE), _KNOWN_SINCE.get(name, pd.Timestamp.min))
        calendar = exchange_calendars.get_calendar(name, start=first, end=LAST_DATE)
        schedule: pd.DataFrame = calendar.schedule[["open", "close"]]
    opens, closes = (pd.DatetimeIndex(schedule[side]) for side in ("open", "close"))
    return pd.DatetimeIndex(schedule.index), _seconds(opens), _seconds(closes)


def _regular_hours(name: str, zone: str) -> Hours:
    dates, opens, closes = _schedule(name)
    labels = _seconds(dates) // DAY_S
    offsets = labels * DAY_S - _utc_of_local(dates, 0, zone)
    return Hours(labels, opens, closes, offsets, _LUNCHES.get(name, (0, 0)))


def _us_stocks(venue: Venue) -> MarketCalendar:
    regular = _regular_hours("XNYS", ZONES[venue])
    midnights = regular.labels * DAY_S - regular.offsets
    half_day = regular.closes - midnights < _FULL_CLOSE_S
    post_closes = midnights + np.where(half_day, _HALF_DAY_POST_CLOSE_S, _POST_CLOSE_S)
    extended = Hours(regular.labels, midnights + _PRE_OPEN_S, post_closes, regular.offsets)
    return MarketCalendar(venue, all_hours=extended, regular=regular)


def _regular_only(name: str) -> Callable[[Venue], MarketCalendar]:
    def build(venue: Venue) -> MarketCalendar:
        hours = _regular_hours(name, ZONES[venue])
        return MarketCalendar(venue, all_hours=hours, regular=hours)

    return build


def _fx(venue: Venue) -> MarketCalendar:
    days = pd.bdate_range(FIRST_DATE, LAST_DATE)
    month_day = days.month * 100 + days.day
    dates = days[~np.isin(month_day, (101, 1225))]
    labels = _seconds(dates) // DAY_S
    opens = _utc_of_local(dates, _FX_OPEN_S, ZONES[venue])
    closes = _utc_of_local(dates, _FX_CLOSE_S, ZONES[venue])
    hours = Hours(labels, opens, closes, labels * DAY_S + _FX_CLOSE_S - closes)
    return MarketCalendar(venue, all_hours=hours, regular=hours)


def _globex(venue: Venue) -> MarketCalendar:
    dates, _, library_closes = _schedule("CMES")
    labels = _seconds(dates) // DAY_S
    opens = _utc_of_local(dates, _GLOBEX_OPEN_S, _CHICAGO)
    closes = np.minimum(library_closes, _utc_of_local(dates, _GLOBEX_CLOSE_S, _CHICAGO))
    if venue is Venue.CME:
        half = np.isin(labels, _stock_half_days())
        closes[half] = _utc_of_local(dates[half], _EQUITY_HALF_DAY_S, _CHICAGO)
    midnights = _utc_of_local(dates, 0, ZONES[venue])
    offsets = labels * DAY_S - midnights
    first, last = _GLOBEX_REGULAR[venue]
    regular = Hours(labels, midnights + first, np.minimum(closes, midnights + last), offsets)
    return MarketCalendar(venue, Hours(labels, opens, closes, offsets), regular)


def _eurex(venue: Venue) -> MarketCalendar:
    dates, _, _ = _schedule("XEUR")
    labels = _seconds(dates) // DAY_S
    first_night = int(pd.Timestamp(_EUREX_NIGHT_SINCE).timestamp()) // DAY_S
    starts = np.where(labels >= first_night, _EUREX_NIGHT_OPEN_S, _EUREX_OPEN_S)
    opens = _utc_of_local(dates, starts, ZONES[venue])
    closes = _utc_of_local(dates, _EUREX_CLOSE_S, ZONES[venue])
    hours = Hours(labels, opens, closes, labels * DAY_S - _utc_of_local(dates, 0, ZONES[venue]))
    return MarketCalendar(venue, all_hours=hours, regular=hours)


def _stock_half_days() -> Ints:
    """Return the days, since 1970, on which the US stock market closes early."""
    regular = _regular_hours("XNYS", ZONES[Venue.US_STOCKS])
    midnights = regular.labels * DAY_S - regular.offsets
    half_days: Ints = regular.labels[regular.closes - midnights < _FULL_CLOSE_S]
    return half_days


def _crypto(venue: Venue) -> MarketCalendar:
    labels = _seconds(pd.date_range(FIRST_DATE, LAST_DATE)) // DAY_S
    hours = Hours(labels, labels * DAY_S, (labels + 1) * DAY_S, np.zeros_like(labels))
    return MarketCalendar(venue, all_hours=hours, regular=hours)


_BUILDERS: dict[Venue, Callable[[Venue], MarketCalendar]] = {
    Venue.US_STOCKS: _us_stocks,
    Venue.TORONTO: _regular_only("XTSE"),
    Venue.LONDON: _regular_only("XLON"),
    Venue.PARIS: _regular_only("XPAR"),
    Venue.AMSTERDAM: _regular_only("XAMS"),
    Venue.XETRA: _regular_only("XETR"),
    Venue.ZURICH: _regular_only("XSWX"),
    Venue.STOCKHOLM: _regular_only("XSTO"),
    Venue.TOKYO: _regular_only("XTKS"),
    Venue.HONG_KONG: _regular_only("XHKG"),
    Venue.SYDNEY: _regular_only("XASX"),
    Venue.FX: _fx,
    Venue.CME: _globex,
    Venue.NYMEX: _globex,
    Venue.EUREX: _eurex,
    Venue.US_INDEX: _regular_only("XNYS"),
    Venue.CRYPTO: _crypto,
}
