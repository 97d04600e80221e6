"""The calendars that instruments name, and where their facts come from.

Not here: what is done with sessions (``core.sessions``).

Source: exchange_calendars for the New York Stock Exchange; extended hours 04:00 to 20:00 New
York, to 17:00 on half days, from https://www.nyse.com/markets/hours-calendars; spot FX at IB
(IDEALPRO) Sunday 17:15 to Friday 17:00 New York with a break 17:00 to 17:15, from
https://www.interactivebrokers.com/en/trading/products-spot-currencies.php.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import exchange_calendars
import numpy as np
import pandas as pd

from ktrdr_pipelines.core.instruments import Instrument
from ktrdr_pipelines.core.sessions import SessionCalendar

KNOWN_FROM, KNOWN_TO = "1970-01-01", "2049-12-31"
NEW_YORK = "America/New_York"
_FX_CLOSED = ("01-01", "12-25")


@cache
def calendar_named(key: str) -> SessionCalendar:
    """Give the calendar of a key.

    Raises:
        KeyError: no such calendar; the known ones are ``CALENDARS``.
    """
    return CALENDARS[key](key)


@dataclass(frozen=True, slots=True)
class Calendars:
    """The book of calendars: which sessions are expected of each instrument.

    A value: what is learned later makes another book. Whoever decides what is *expected* asks the
    book; zone and session dates of a moment never depend on it (``calendar_named``).
    """

    def of(self, instrument: Instrument) -> SessionCalendar:
        """Give the calendar that an instrument's sessions are expected by.

        Raises:
            KeyError: its calendar is not one of ``CALENDARS``.
        """
        return calendar_named(instrument.calendar)

    def each(self, instruments: Iterable[Instrument]) -> dict[str, SessionCalendar]:
        """Give the calendars of some instruments by their keys, each once."""
        return {instrument.calendar: self.of(instrument) for instrument in instruments}


def _regular(key: str) -> SessionCalendar:
    schedule = _new_york()
    return SessionCalendar(
        key=key,
        zone=NEW_YORK,
        days=_days(schedule.index),
        opens=_micros(pd.DatetimeIndex(schedule["open"])),
        closes=_micros(pd.DatetimeIndex(schedule["close"])),
    )


def _extended(key: str) -> SessionCalendar:
    schedule = _new_york()
    days = pd.DatetimeIndex(schedule.index)
    closes = pd.DatetimeIndex(schedule["close"]).tz_convert(NEW_YORK)
    half_day = np.asarray(closes.hour < 16)
    ends = days + pd.to_timedelta(np.where(half_day, 17, 20), unit="h")
    return SessionCalendar(
        key=key,
        zone=NEW_YORK,
        days=_days(days),
        opens=_micros((days + timedelta(hours=4)).tz_localize(NEW_YORK)),
        closes=_micros(ends.tz_localize(NEW_YORK)),
    )


def _spot_fx(key: str) -> SessionCalendar:
    days = pd.bdate_range(KNOWN_FROM, KNOWN_TO)
    days = days[~np.isin(days.strftime("%m-%d"), _FX_CLOSED)]
    opens = (days - timedelta(hours=6, minutes=45)).tz_localize(NEW_YORK)
    closes = (days + timedelta(hours=17)).tz_localize(NEW_YORK)
    return SessionCalendar(
        key=key,
        zone=NEW_YORK,
        days=_days(days),
        opens=_micros(opens),
        closes=_micros(closes),
        roll=timedelta(hours=7),
    )


CALENDARS: dict[str, Callable[[str], SessionCalendar]] = {
    "XNYS.RTH": _regular,
    "XNYS.ETH": _extended,
    "FX": _spot_fx,
}
"""Every calendar that an instrument may name."""


@cache
def _new_york() -> pd.DataFrame:
    calendar = exchange_calendars.get_calendar("XNYS", start=KNOWN_FROM, end=KNOWN_TO)
    schedule: pd.DataFrame = calendar.schedule
    return schedule


def _days(index: pd.Index) -> np.ndarray:
    return np.asarray(pd.DatetimeIndex(index).to_numpy().astype("datetime64[D]"))


def _micros(moments: pd.DatetimeIndex) -> np.ndarray:
    plain = moments.tz_convert("UTC").tz_localize(None).to_numpy()
    return np.asarray(plain.astype("datetime64[us]").astype(np.int64))
