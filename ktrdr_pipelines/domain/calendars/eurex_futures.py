"""Hours of Eurex's futures, by family of products: days of a library, hours of their own.

Not here: which product is in which family (``domain.universe.ib_exchanges``).

Source: days from exchange_calendars XEUR; from 10 December 2018 index and interest rate futures
trade from 01:10 to 22:00 Frankfurt, https://www.eurex.com/ex-en/trade/trading-hours, before from
07:50 (index futures) and 08:00 (interest rate futures); the library has 08:00 throughout.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from ktrdr_pipelines.domain.calendars.arrays import KNOWN_FROM, KNOWN_TO, at_clock, dates_of
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar

if TYPE_CHECKING:
    import pandas as pd

_FRANKFURT: Final = "Europe/Berlin"
_NIGHT_SINCE: Final = np.datetime64("2018-12-10", "D")
_NIGHT_OPENS: Final = 60 + 10
_CLOSES: Final = 22 * 60

EUREX_FAMILIES: Final[Mapping[str, int]] = MappingProxyType(
    {"EUREX.INDEX": 7 * 60 + 50, "EUREX.RATES": 8 * 60}
)
"""All families by the key of their calendar: the open before the night session, in minutes."""


def eurex_hours(key: str, session_days: "pd.DatetimeIndex") -> SessionCalendar:
    """Build the calendar of a family.

    Args:
        key: one of ``EUREX_FAMILIES``.
        session_days: the days on which Eurex trades.
    """
    import pandas as pd

    first, last = pd.Timestamp(KNOWN_FROM), pd.Timestamp(KNOWN_TO)
    inside = session_days[(session_days >= first) & (session_days <= last)]
    days = dates_of(inside)
    opens = np.where(days >= _NIGHT_SINCE, _NIGHT_OPENS, EUREX_FAMILIES[key])
    return SessionCalendar(
        key=key,
        zone=_FRANKFURT,
        days=days,
        opens=at_clock(inside, opens, _FRANKFURT),
        closes=at_clock(inside, _CLOSES, _FRANKFURT),
    )
