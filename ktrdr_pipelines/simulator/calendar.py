"""When the simulated markets are open.

Here: the hours of US stocks and of FX, regular and extended. Not here: what a duration means
over them (``durations``). The project's own calendars live elsewhere on purpose: a gateway that
shared them would agree with every mistake in them.

Source: exchange_calendars XNYS for regular hours, holidays and half days; extended hours
04:00-20:00 New York (17:00 on half days) and the FX week (Sunday 17:15 to Friday 17:00 with a
daily break 17:00-17:15, closed 25 December and 1 January) as IB shows them in the trading hours
of its contracts (grade L).
"""

import warnings
from functools import cache

import exchange_calendars
import numpy as np
import pandas as pd

from ktrdr_pipelines.simulator.hours import (
    DAY_S,
    MINUTE_S,
    ZONE,
    Hours,
    Ints,
    MarketCalendar,
    MarketKind,
)

FIRST_DATE = "1980-01-02"
LAST_DATE = "2045-12-29"

_PRE_OPEN_S = 4 * 3_600
_POST_CLOSE_S = 20 * 3_600
_HALF_DAY_POST_CLOSE_S = 17 * 3_600
_FULL_CLOSE_S = 16 * 3_600
_REGULAR_OPEN_S = 9 * 3_600 + 30 * 60
_FX_OPEN_S = 17 * 3_600 + 15 * MINUTE_S
_FX_CLOSE_S = 17 * 3_600


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


def within_regular_clock(local_times: Ints) -> bool:
    """Say whether all of some local times lie between 09:30 and 16:00, on whatever day."""
    clock = local_times % DAY_S
    return bool(np.all((clock >= _REGULAR_OPEN_S) & (clock < _FULL_CLOSE_S)))


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
