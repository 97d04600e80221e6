"""Trading hours as contract details state them, in the exchange's zone, from today on.

Source: ``20260105:0930-20260105:1600;20260106:CLOSED`` (grade L).
"""

from datetime import UTC, datetime

import numpy as np

from ktrdr_pipelines.simulator.details import TradingHours
from ktrdr_pipelines.simulator.durations import Window
from ktrdr_pipelines.simulator.hours import DAY_S, Hours
from ktrdr_pipelines.simulator.instruments import Instrument
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.timetext import date_text, local_text, offset_s

_DAYS = 6


def trading_hours(market: Market, instrument: Instrument, now_s: int) -> TradingHours:
    """Return all and regular hours of a contract from today on."""
    today = (now_s + offset_s(now_s, instrument.zone)) // DAY_S
    trading, liquid = (
        _hours_text(market.hours(instrument, use_rth=use_rth), today) for use_rth in (False, True)
    )
    return TradingHours(trading, liquid)


def _hours_text(hours: Hours, today: int) -> str:
    return ";".join(_day_text(hours, day) for day in range(today, today + _DAYS))


def _day_text(hours: Hours, day: int) -> str:
    index = int(np.searchsorted(hours.labels, day))
    is_known = index < len(hours.labels) and hours.labels[index] == day
    if not is_known:
        return f"{date_text(day)}:CLOSED"
    offset = int(hours.offsets[index])
    return (
        f"{_minute(int(hours.opens[index]) + offset)}-{_minute(int(hours.closes[index]) + offset)}"
    )


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
