"""Calendars of stock exchanges: the libraries' tables, and corrections of them.

Not here: futures (``domain.calendars.cme_futures``), markets without an exchange
(``domain.calendars.fx_crypto``).

Source: exchange_calendars for exchanges by their ISO 10383 code, pandas_market_calendars for those
that only it has; extended hours of US stocks 04:00 to 20:00 New York, to 17:00 on half days, from
https://www.nyse.com/markets/hours-calendars. No library has extended hours of other exchanges:
they are never guessed.

The libraries are imported when a calendar is first built: they take a second, which reading bars
does not need.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from ktrdr_pipelines.domain.calendars.arrays import (
    KNOWN_FROM,
    KNOWN_TO,
    NEW_YORK,
    at_clock,
    breaks_of,
    dates_of,
    micros_of,
)
from ktrdr_pipelines.domain.calendars.kept_arrays import kept_arrays
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar

if TYPE_CHECKING:
    import exchange_calendars
    import pandas as pd

EXTENDED: Final = "XNYS.ETH"

_REGULAR: Final = ".RTH"
_NO_EXCHANGES: Final = frozenset({"24/5", "24/7", "CMES", "IEPA", "us_futures", "XCBF"})
"""Names of exchange_calendars that are not stock exchanges."""

_BROKEN: Final = frozenset({"ASEX", "XBEL", "XBSE", "XCYS", "XTAE"})
"""Calendars that exchange_calendars 4.13 lists and cannot build."""

_ONLY_IN_MARKET_CALENDARS: Final = {"XNSE": "Asia/Kolkata"}

_CLOSED: Final = {"XHKG": ("2023-09-01", "2023-09-08")}
"""Days that the library wrongly has as sessions. Hong Kong: typhoon Saola and the black rainstorm.

Source: https://www.scmp.com/business/markets/article/3233800/
"""


@dataclass(frozen=True, slots=True)
class _Lunch:
    """A break until a date, in minutes of local time; the library only has the later ones."""

    until: str
    starts: int
    ends: int


_LUNCHES: Final = {
    "XHKG": (
        _Lunch("2011-03-04", 12 * 60 + 30, 14 * 60 + 30),
        _Lunch("2012-03-02", 12 * 60, 13 * 60 + 30),
    ),
    "XTKS": (_Lunch("2011-11-18", 11 * 60, 12 * 60 + 30),),
}
"""Lunch breaks of earlier years, oldest first.

Source: Hong Kong, http://www.hkex.com.hk/News/News-Release/2010/101123news?sc_lang=en; Tokyo
shortened its break of 90 minutes in November 2011, https://exbulletin.com/business/1242965/.
"""

_HALF_DAY_BEFORE: Final = 16 * 60


@cache
def exchange_codes() -> frozenset[str]:
    """Return the ISO 10383 codes of the exchanges whose regular hours are known."""

    def listed() -> Mapping[str, np.ndarray]:
        import exchange_calendars

        return {"names": np.array(exchange_calendars.get_calendar_names(include_aliases=False))}

    names = kept_arrays("exchanges", listed)["names"].tolist()
    return frozenset(names) - _NO_EXCHANGES - _BROKEN | frozenset(_ONLY_IN_MARKET_CALENDARS)


def is_exchange(key: str) -> bool:
    """Return whether a key such as ``XLON.RTH`` names known hours."""
    return key == EXTENDED or (
        key.endswith(_REGULAR) and key.removesuffix(_REGULAR) in exchange_codes()
    )


def exchange_hours(key: str) -> SessionCalendar:
    """Build the calendar of an exchange, with lunch breaks where it has them.

    Raises:
        KeyError: no library has these hours.
    """
    if not is_exchange(key):
        raise KeyError(key)
    if key == EXTENDED:
        return _new_york_extended()
    import pandas as pd

    schedule, zone = _schedule(key.removesuffix(_REGULAR))
    return SessionCalendar(
        key=key,
        zone=zone,
        days=dates_of(schedule.index),
        opens=micros_of(pd.DatetimeIndex(schedule["open"])),
        closes=micros_of(pd.DatetimeIndex(schedule["close"])),
        breaks=breaks_of(schedule["break_start"], schedule["break_end"]),
    )


def _new_york_extended() -> SessionCalendar:
    import pandas as pd

    schedule, zone = _schedule("XNYS")
    days = pd.DatetimeIndex(schedule.index)
    closes = pd.DatetimeIndex(schedule["close"]).tz_convert(zone)
    half_day = np.asarray(closes.hour * 60 + closes.minute < _HALF_DAY_BEFORE)
    return SessionCalendar(
        key=EXTENDED,
        zone=zone,
        days=dates_of(days),
        opens=at_clock(days, 4 * 60, zone),
        closes=at_clock(days, np.where(half_day, 17 * 60, 20 * 60), zone),
    )


def exchange_days(code: str) -> "pd.DatetimeIndex":
    """Return the session dates of an exchange by its ISO 10383 code."""
    import pandas as pd

    return pd.DatetimeIndex(_schedule(code)[0].index)


@cache
def _schedule(code: str) -> "tuple[pd.DataFrame, str]":
    """Return the table (open, close and breaks in UTC) of an exchange, and its time zone."""
    with warnings.catch_warnings():
        # exchange_calendars 4.13 builds its table with calls that pandas 3 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        if code in _ONLY_IN_MARKET_CALENDARS:
            return _market_schedule(code), _ONLY_IN_MARKET_CALENDARS[code]
        calendar = _library_calendar(code)
        schedule: pd.DataFrame = calendar.schedule
        zone = NEW_YORK if code == "XNYS" else str(calendar.tz)
    return _corrected(code, schedule, zone), zone


def _corrected(code: str, schedule: "pd.DataFrame", zone: str) -> "pd.DataFrame":
    """Return a table with the closed days and lunch breaks that the exchange published."""
    import pandas as pd

    right = schedule.drop(pd.DatetimeIndex(_CLOSED.get(code, ())))
    for lunch in reversed(_LUNCHES.get(code, ())):
        days = pd.DatetimeIndex(right.index)
        there = (days <= pd.Timestamp(lunch.until)) & right["break_start"].notna()
        for side, minutes in (("break_start", lunch.starts), ("break_end", lunch.ends)):
            moments = at_clock(days[there], minutes, zone).astype("datetime64[us]")
            right.loc[there, side] = pd.DatetimeIndex(moments).tz_localize("UTC")
    return right


def _library_calendar(code: str) -> "exchange_calendars.ExchangeCalendar":
    """Build a calendar over all dates that it supports, which only an attempt shows."""
    import exchange_calendars
    import pandas as pd

    try:
        return exchange_calendars.get_calendar(code, start=KNOWN_FROM, end=KNOWN_TO)
    except ValueError:
        some = exchange_calendars.get_calendar(code)
        low, high = (pd.Timestamp(day) for day in (KNOWN_FROM, KNOWN_TO))
        first, last = some.bound_min() or low, some.bound_max() or high
        return exchange_calendars.get_calendar(code, start=max(first, low), end=min(last, high))


def _market_schedule(code: str) -> "pd.DataFrame":
    import pandas as pd
    import pandas_market_calendars

    calendar = pandas_market_calendars.get_calendar(code)
    found: pd.DataFrame = calendar.schedule(KNOWN_FROM, KNOWN_TO)
    schedule = found.rename(columns={"market_open": "open", "market_close": "close"})
    for side in ("break_start", "break_end"):
        if side not in schedule:
            schedule[side] = pd.Series(pd.NaT, index=schedule.index, dtype=schedule["open"].dtype)
    return schedule
