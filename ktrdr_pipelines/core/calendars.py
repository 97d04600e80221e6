"""The calendars that instruments name, and the book of what is expected by them.

Not here: where a calendar's facts come from (``core.exchanges``, ``core.globex``,
``core.round_clock``), what is done with sessions (``core.sessions``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ktrdr_pipelines.core.exchanges import EXTENDED, exchange_codes, exchange_hours, is_exchange
from ktrdr_pipelines.core.globex import FAMILIES, globex_hours
from ktrdr_pipelines.core.instruments import Instrument
from ktrdr_pipelines.core.round_clock import CRYPTO, SPOT_FX, crypto, spot_fx
from ktrdr_pipelines.core.schedules import LearnedDay, overlaid
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.tables import KNOWN_FROM, KNOWN_TO

__all__ = ["GATEWAY", "KNOWN_FROM", "KNOWN_TO", "Calendars", "calendar_keys", "calendar_named"]

GATEWAY: Final = "GATEWAY"
"""Calendars of which only the gateway knows the sessions: ``GATEWAY:Europe/London``.

``GATEWAY:Asia/Tokyo@16:00`` is one whose session days begin at 16:00 of the day before.
"""

_GATEWAY_KEY = re.compile(rf"{GATEWAY}:([A-Za-z0-9_+/-]+)(?:@([01][0-9]|2[0-3]):([0-5][0-9]))?")
_DAY = timedelta(days=1)


def calendar_keys() -> list[str]:
    """Give every calendar that can be named without a gateway, in order."""
    exchanges = (f"{code}.RTH" for code in exchange_codes())
    return sorted((*exchanges, EXTENDED, *FAMILIES, SPOT_FX, CRYPTO))


def is_gateways(key: str) -> bool:
    """Say whether only the gateway knows the sessions of a calendar."""
    return key.startswith(f"{GATEWAY}:")


@cache
def calendar_named(key: str) -> SessionCalendar:
    """Give the calendar of a key as it is known offline; it is built when first asked for.

    Raises:
        KeyError: no such calendar; the known ones are ``calendar_keys()`` and ``GATEWAY:ZONE``.
    """
    if key == SPOT_FX:
        return spot_fx()
    if key == CRYPTO:
        return crypto()
    if key in FAMILIES:
        return globex_hours(key)
    return _unknown_sessions(key) if is_gateways(key) else exchange_hours(key)


def is_calendar(key: str) -> bool:
    """Say whether a key names a calendar."""
    if is_gateways(key):
        try:
            _unknown_sessions(key)
        except KeyError:
            return False
        return True
    return key in {SPOT_FX, CRYPTO, *FAMILIES} or is_exchange(key)


def _unknown_sessions(key: str) -> SessionCalendar:
    """Give a calendar that knows zone and roll, and no session."""
    found = _GATEWAY_KEY.fullmatch(key)
    if found is None:
        raise KeyError(key)
    zone, hours, minutes = found.groups()
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise KeyError(key) from None
    begins = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    return SessionCalendar(
        key=key,
        zone=zone,
        days=np.array([], dtype="datetime64[D]"),
        opens=np.array([], dtype=np.int64),
        closes=np.array([], dtype=np.int64),
        roll=_DAY - begins if begins else timedelta(0),
    )


def learned_key(instrument: Instrument) -> str:
    """Name the calendar that a schedule of an instrument is learned for.

    One schedule serves all symbols of a known calendar; where only the gateway knows the
    sessions, every symbol has its own.
    """
    key = instrument.calendar
    return f"{key} {instrument.symbol}" if is_gateways(key) else key


class Calendars:
    """The book of calendars: which sessions are expected of each instrument.

    A value: what is learned later makes another book. Whoever decides what is *expected* asks the
    book; zone and session dates of a moment never depend on it (``calendar_named``).

    Args:
        learned: what the gateway told of session dates, oldest first, by ``learned_key``; it wins
            over what the libraries know.
    """

    __slots__ = ("_learned", "_made")

    def __init__(self, learned: Mapping[str, Sequence[LearnedDay]] | None = None) -> None:
        self._learned = dict(learned or {})
        self._made: dict[str, SessionCalendar] = {}

    def __repr__(self) -> str:
        days = sum(map(len, self._learned.values()))
        return f"Calendars({days} days learned of {len(self._learned)} calendars)"

    def of(self, instrument: Instrument) -> SessionCalendar:
        """Give the calendar that an instrument's sessions are expected by, up to its end.

        Raises:
            KeyError: it names a calendar that there is not.
        """
        if instrument.end is None:
            return self._whole(instrument)
        key = f"{learned_key(instrument)} until {instrument.end}"
        if key not in self._made:
            self._made[key] = self._whole(instrument).until(instrument.end)
        return self._made[key]

    def told_closed(self, instrument: Instrument) -> frozenset[date]:
        """Return session dates that the contract's own schedule or hours call closed."""
        _ = instrument
        return frozenset()

    def each(self, instruments: Iterable[Instrument]) -> dict[str, SessionCalendar]:
        """Give the calendars of some instruments by ``learned_key``, whole, each once."""
        return {learned_key(one): self._whole(one) for one in instruments}

    def _whole(self, instrument: Instrument) -> SessionCalendar:
        key = learned_key(instrument)
        if key not in self._learned:
            return calendar_named(instrument.calendar)
        if key not in self._made:
            self._made[key] = overlaid(calendar_named(instrument.calendar), self._learned[key])
        return self._made[key]
