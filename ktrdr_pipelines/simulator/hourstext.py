"""Trading hours as contract details state them, from today on.

Source (grade L): ``20260105:0930-20260105:1600;20260106:CLOSED``. A day is told as closed where no
session of the list touches it: 25 December 2025 is closed in the liquid hours of MES and not in its
trading hours, as a session begins in its evening; so is a Sunday of FX
(https://github.com/ib-api-reloaded/ib_async/issues/128 and the stubs of nautilus_trader). The list
is told in the zone that it names, which is the exchange's beside a login in another one.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np

from ktrdr_pipelines.simulator.details import TradingHours
from ktrdr_pipelines.simulator.durations import Window
from ktrdr_pipelines.simulator.hours import DAY_S, Hours
from ktrdr_pipelines.simulator.instruments import Instrument
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.timetext import date_text, local_text, offset_s
from ktrdr_pipelines.simulator.variants import HoursZone, Variants, ZoneNames

_DAYS = 6
_MODERN = {"US/Eastern": "America/New_York", "US/Central": "America/Chicago"}


def trading_hours(
    market: Market, instrument: Instrument, now_s: int, variants: Variants
) -> TradingHours:
    """Return all and regular hours of a contract from today on."""
    zone = instrument.zone
    if variants.hours_zone is HoursZone.LOGIN:
        zone = variants.login_zone
    today = (now_s + offset_s(now_s, zone)) // DAY_S
    trading, liquid = (
        ";".join(_texts(market.hours(instrument, use_rth=use_rth), today, zone))
        for use_rth in (False, True)
    )
    name = _MODERN.get(zone, zone) if variants.zone_names is ZoneNames.MODERN else zone
    return TradingHours(name, trading, liquid)


def _texts(hours: Hours, today: int, zone: str) -> Iterator[str]:
    """Write the sessions that end on each day, or else begin on it; CLOSED where none does."""
    near = slice(*np.searchsorted(hours.labels, (today - 3, today + _DAYS + 3)).tolist())
    opens, closes = (
        [moment + offset_s(moment, zone) for moment in moments[near].tolist()]
        for moments in (hours.opens, hours.closes)
    )
    sessions = list(zip(opens, closes, strict=True))
    told: set[tuple[int, int]] = set()
    for day in range(today, today + _DAYS):
        ending = [each for each in sessions if (each[1] - 1) // DAY_S == day]
        beginning = [each for each in sessions if each[0] // DAY_S == day]
        if not (ending or beginning):
            yield f"{date_text(day)}:CLOSED"
        for each in ending or beginning:
            if each not in told:
                told.add(each)
                yield f"{_minute(each[0])}-{_minute(each[1])}"


def _minute(local_s: int) -> str:
    return f"{datetime.fromtimestamp(local_s, UTC):%Y%m%d:%H%M}"


def session_texts(hours: Hours, window: Window, zone: str) -> list[tuple[str, str, str]]:
    """Return start, end and date of every session in a window, as message 106 states them."""
    return [
        (
            local_text(int(hours.opens[at]), zone),
            local_text(int(hours.closes[at]), zone),
            date_text(int(hours.labels[at])),
        )
        for at in hours.overlapping(window.start_s, window.end_s)
    ]
