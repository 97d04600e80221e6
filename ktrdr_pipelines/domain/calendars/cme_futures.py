"""Calendars of CME Group's futures on Globex, by family of products.

Days and early closes come from pandas_market_calendars, hours from the tables below. A trade date
opens on the evening before (Sunday for Monday).

Not here: which future belongs to which family (``domain.universe.ib_exchanges``).

Source: equity index hours of November 2012 (close 15:15 to 16:15 Chicago, halt 15:15 to 15:30)
from CME Group's notice, quoted in http://traderhabits.com/cme-changes-hours-for-equity-indexes-
starting-nov-18th/; close at 16:00 from 21 September 2015, NYMEX and COMEX too,
https://ninjatrader.com/Advisories/Advisory25; no halt from 28 June 2021, from
pandas_market_calendars' notes on CME_Equity. 30 October 2012 (hurricane): equity until 08:15,
https://prnewswire.com/news-releases/cme-group-to-reopen-us-equity-index-and-interest-rate-
complexes-tonight-176339591.html. 5 December 2018: equity until 08:30, rates closed,
https://www.prnewswire.com/news-releases/cme-group-us-equity-interest-rate-markets-to-close-for-
national-day-of-mourning-300758702.html. The national day of mourning on 9 January 2025:
equity until 08:30, rates and agriculture until 12:15, others regular,
https://mondovisione.com/media-and-resources/news/cme-group-announces-trading-hours-for-us-
national-day-of-mourning-to-honor-for/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from ktrdr_pipelines.domain.calendars.arrays import KNOWN_FROM, KNOWN_TO, at_clock, dates_of
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar

if TYPE_CHECKING:
    import pandas as pd

CHICAGO: Final = "America/Chicago"

_EVER: Final = KNOWN_FROM
_ROLL: Final = timedelta(hours=7)
_EVENING: Final = 17 * 60 - 24 * 60


def _clock(hours: int, minutes: int = 0) -> int:
    return hours * 60 + minutes


@dataclass(frozen=True, slots=True)
class _Era:
    """Hours from a date on, in minutes after Chicago's midnight of the trade date."""

    since: str
    opens: int
    closes: int
    pause: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Family:
    """Hours of one family; ``library`` is the calendar with its days and early closes.

    ``early`` are closes that the library lacks, ``closed`` days that it wrongly has as sessions.
    """

    library: str
    eras: tuple[_Era, ...]
    early: Mapping[str, int] = field(default_factory=dict)
    closed: tuple[str, ...] = ()


_LATE_HALT: Final = (_clock(15, 15), _clock(15, 30))
_NIGHT_BREAK: Final = (_clock(7, 45), _clock(8, 30))

FAMILIES: Final[Mapping[str, _Family]] = MappingProxyType(
    {
        "GLOBEX.EQUITY": _Family(
            "CME Globex Equity",
            (
                _Era(_EVER, _EVENING, _clock(15, 15)),
                _Era("2012-11-19", _EVENING, _clock(16, 15), _LATE_HALT),
                _Era("2015-09-21", _EVENING, _clock(16), _LATE_HALT),
                _Era("2021-06-28", _EVENING, _clock(16)),
            ),
            {"2012-10-30": _clock(8, 15), "2018-12-05": _clock(8, 30), "2025-01-09": _clock(8, 30)},
        ),
        "GLOBEX.RATES": _Family(
            "CME Globex Fixed Income",
            (_Era(_EVER, _EVENING, _clock(16)),),
            {"2025-01-09": _clock(12, 15)},
            closed=("2018-12-05",),
        ),
        "GLOBEX.FX": _Family("CMEGlobex_FX", (_Era(_EVER, _EVENING, _clock(16)),)),
        "GLOBEX.ENERGY_METALS": _Family(
            "CMEGlobex_EnergyAndMetals",
            (
                _Era(_EVER, _EVENING, _clock(16, 15)),
                _Era("2015-09-21", _EVENING, _clock(16)),
            ),
        ),
        "GLOBEX.GRAINS": _Family(
            "CMEGlobex_Grains",
            (_Era(_EVER, _clock(19) - _clock(24), _clock(13, 20), _NIGHT_BREAK),),
            {"2025-01-09": _clock(12, 15)},
        ),
        "GLOBEX.LIVESTOCK": _Family(
            "CMEGlobex_Livestock",
            (_Era(_EVER, _clock(8, 30), _clock(13, 5)),),
            {"2025-01-09": _clock(12, 15)},
        ),
    }
)
"""All families by the key of their calendar."""


def globex_hours(key: str) -> SessionCalendar:
    """Build the calendar of a family.

    Raises:
        KeyError: there is no such family; the known ones are ``FAMILIES``.
    """
    family = FAMILIES[key]
    days, early = _days_and_closes(family)
    # The hours of each day are those of its era; an era without a pause has an empty one.
    since = np.array([era.since for era in family.eras], dtype="datetime64[D]")
    era_of = np.searchsorted(since, dates_of(days), side="right") - 1
    opens = np.array([era.opens for era in family.eras])[era_of]
    closes = np.minimum(np.array([era.closes for era in family.eras])[era_of], early)
    pauses = np.array([era.pause or (0, 0) for era in family.eras])[era_of]
    starts, ends = (np.minimum(side, closes) for side in (pauses[:, 0], pauses[:, 1]))
    there = starts < ends
    return SessionCalendar(
        key=key,
        zone=CHICAGO,
        days=dates_of(days),
        opens=at_clock(days, opens, CHICAGO),
        closes=at_clock(days, closes, CHICAGO),
        breaks=np.column_stack(
            [at_clock(days[there], side[there], CHICAGO) for side in (starts, ends)]
        ),
        roll=_ROLL,
    )


def _days_and_closes(family: _Family) -> "tuple[pd.DatetimeIndex, np.ndarray]":
    """Return the trade dates, and for each its early close, or midnight where it has none."""
    import pandas as pd
    import pandas_market_calendars

    calendar = pandas_market_calendars.get_calendar(family.library)
    schedule = calendar.schedule(KNOWN_FROM, KNOWN_TO)
    wall = pd.DatetimeIndex(schedule["market_close"]).tz_convert(CHICAGO)
    clock = pd.Series(wall.hour * 60 + wall.minute, index=pd.DatetimeIndex(schedule.index))
    clock[clock >= clock.mode().iloc[0]] = _clock(24)
    own = pd.Series(list(family.early.values()), index=pd.DatetimeIndex(list(family.early)))
    closed = pd.DatetimeIndex(family.closed)
    clock = clock.drop(own.index.union(closed), errors="ignore")
    clock = pd.concat([clock, own]).sort_index()
    return pd.DatetimeIndex(clock.index), clock.to_numpy(dtype=np.int64)
