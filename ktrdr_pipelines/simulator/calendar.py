"""When markets are open: sessions as parallel arrays, in seconds since 1970.

Here: the hours of US stocks and of FX, regular and extended. Not here: what a duration means
over them (``durations``). The project's own calendars live elsewhere on purpose: a gateway that
shared them would agree with every mistake in them.

Source: exchange_calendars XNYS for regular hours, holidays and half days; extended hours
04:00-20:00 New York (17:00 on half days) and the FX week (Sunday 17:15 to Friday 17:00 with a
daily break 17:00-17:15, closed 25 December and 1 January) as IB shows them in the trading hours
of its contracts (grade L).
"""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import exchange_calendars
import numpy as np
import numpy.typing as npt
import pandas as pd

Ints = npt.NDArray[np.int64]

ZONE = "US/Eastern"
"""Zone of both markets, by the name that the gateway's contract details use."""

FIRST_DATE = "1980-01-02"
LAST_DATE = "2045-12-29"
DAY_S = 86_400
MINUTE_S = 60

_PRE_OPEN_S = 4 * 3_600
_POST_CLOSE_S = 20 * 3_600
_HALF_DAY_POST_CLOSE_S = 17 * 3_600
_FULL_CLOSE_S = 16 * 3_600
_FX_OPEN_S = 17 * 3_600 + 15 * MINUTE_S
_FX_CLOSE_S = 17 * 3_600


class MarketKind(StrEnum):
    """The markets that have hours of their own."""

    STOCK = "STK"
    FX = "CASH"


@dataclass(frozen=True, slots=True)
class Hours:
    """Sessions in order: ``labels`` in days since 1970, ``opens`` and ``closes`` in seconds.

    ``offsets`` are the seconds local time is ahead of UTC; no session spans a change of it.
    """

    labels: Ints
    opens: Ints
    closes: Ints
    offsets: Ints

    def last_opened_before(self, moment_s: int) -> int:
        """Return the index of the last session that opens before a moment, or -1."""
        return int(np.searchsorted(self.opens, moment_s, side="left")) - 1

    def owners(self, times: Ints) -> Ints:
        """Return for each moment the session it belongs to: the first that closes after it."""
        found = np.searchsorted(self.closes, times, side="right")
        return np.minimum(found, len(self.closes) - 1).astype(np.int64)

    def overlapping(self, start_s: int, end_s: int) -> range:
        """Return the indices of the sessions that have time in ``[start_s, end_s)``."""
        first = int(np.searchsorted(self.closes, start_s, side="right"))
        return range(first, max(first, self.last_opened_before(end_s) + 1))

    def reaches_back_from(self, index: int) -> int:
        """Return the moment from which time belongs to a session: the close before it."""
        return int(self.closes[index - 1]) if index > 0 else int(self.opens[0])


@dataclass(frozen=True, slots=True)
class MarketCalendar:
    """The sessions of one market, in all hours and in regular hours."""

    kind: MarketKind
    all_hours: Hours
    regular: Hours

    def hours(self, *, use_rth: bool) -> Hours:
        """Return the hours that a request with or without ``useRTH`` sees."""
        return self.regular if use_rth else self.all_hours


@cache
def calendar_of(kind: MarketKind) -> MarketCalendar:
    """Return the calendar of a market; it is built once a process."""
    return _stock_calendar() if kind is MarketKind.STOCK else _fx_calendar()


def _seconds(moments: pd.DatetimeIndex) -> Ints:
    return moments.as_unit("s").asi8.copy()


def _utc_of_local(dates: pd.DatetimeIndex, local_s: Ints | int) -> Ints:
    local = dates + pd.to_timedelta(local_s, unit="s")
    return _seconds(pd.DatetimeIndex(local).tz_localize(ZONE).tz_convert("UTC"))


def _xnys_schedule() -> pd.DataFrame:
    with warnings.catch_warnings():
        # exchange_calendars 4.13 builds its schedule with calls that pandas 3 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        calendar = exchange_calendars.get_calendar("XNYS", start=FIRST_DATE, end=LAST_DATE)
        schedule: pd.DataFrame = calendar.schedule[["open", "close"]]
    return schedule


def _stock_calendar() -> MarketCalendar:
    schedule = _xnys_schedule()
    dates = pd.DatetimeIndex(schedule.index)
    midnights = _utc_of_local(dates, 0)
    labels = _seconds(dates) // DAY_S
    opens = _seconds(pd.DatetimeIndex(schedule["open"]))
    closes = _seconds(pd.DatetimeIndex(schedule["close"]))
    offsets = labels * DAY_S - midnights
    half_day = closes - midnights < _FULL_CLOSE_S
    post_closes = midnights + np.where(half_day, _HALF_DAY_POST_CLOSE_S, _POST_CLOSE_S)
    return MarketCalendar(
        MarketKind.STOCK,
        all_hours=Hours(labels, midnights + _PRE_OPEN_S, post_closes, offsets),
        regular=Hours(labels, opens, closes, offsets),
    )


def _fx_calendar() -> MarketCalendar:
    days = pd.bdate_range(FIRST_DATE, LAST_DATE)
    month_day = days.month * 100 + days.day
    dates = days[~np.isin(month_day, (101, 1225))]
    labels = _seconds(dates) // DAY_S
    opens = _utc_of_local(dates - pd.Timedelta(days=1), _FX_OPEN_S)
    closes = _utc_of_local(dates, _FX_CLOSE_S)
    offsets = labels * DAY_S + _FX_CLOSE_S - closes
    hours = Hours(labels, opens, closes, offsets)
    return MarketCalendar(MarketKind.FX, all_hours=hours, regular=hours)
