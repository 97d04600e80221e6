"""Calendars of markets without an exchange: spot currencies and crypto.

Source: spot FX at IB (IDEALPRO) Sunday 17:15 to Friday 17:00 New York with a break 17:00 to 17:15,
from https://www.interactivebrokers.com/en/trading/products-spot-currencies.php. That crypto trades
round the clock and has daily bars of UTC days is an assumption (grade C). Hours in contract details
were seen as ``20260507:1601-20260508:1600;20260509:CLOSED``, and orders are routed from Sunday
03:00 to Friday 16:00 New York
(https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/pull/260); neither proves which
hours have data. So a contract's own hours replace this calendar
(``domain.calendars.gateway_schedules.with_own_hours``), and bars of days and weeks, which may be
of these sessions or of UTC days, are requested when both are over.
"""

from datetime import timedelta
from typing import Final

import numpy as np

from ktrdr_pipelines.domain.calendars.arrays import (
    KNOWN_FROM,
    KNOWN_TO,
    NEW_YORK,
    at_clock,
    dates_of,
)
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar

SPOT_FX: Final = "FX"
CRYPTO: Final = "CRYPTO"

_FX_CLOSED: Final = ("01-01", "12-25")
_DAY_MICROS: Final = 86_400_000_000


def spot_fx() -> SessionCalendar:
    """Build the calendar of spot currencies; a session begins on the evening before its date."""
    import pandas as pd

    days = pd.bdate_range(KNOWN_FROM, KNOWN_TO)
    days = days[~np.isin(days.strftime("%m-%d"), _FX_CLOSED)]
    return SessionCalendar(
        key=SPOT_FX,
        zone=NEW_YORK,
        days=dates_of(days),
        opens=at_clock(days, -6 * 60 - 45, NEW_YORK),
        closes=at_clock(days, 17 * 60, NEW_YORK),
        roll=timedelta(hours=7),
    )


def crypto() -> SessionCalendar:
    """Build the calendar of crypto: every UTC day is a session."""
    import pandas as pd

    days = dates_of(pd.date_range(KNOWN_FROM, KNOWN_TO))
    opens = days.astype("datetime64[us]").astype(np.int64)
    return SessionCalendar(
        key=CRYPTO,
        zone="UTC",
        days=days,
        opens=opens,
        closes=opens + _DAY_MICROS,
        days_may_differ=True,
    )
