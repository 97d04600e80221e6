"""Find calendars by key, and the calendar by which the sessions of an instrument are expected.

Not here: the sources of calendars (``domain.calendars.exchanges``,
``domain.calendars.cme_futures``, ``domain.calendars.eurex_futures``,
``domain.calendars.fx_crypto``), what sessions mean for bars
(``domain.calendars.sessions``).
"""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from ktrdr_pipelines.domain.calendars.arrays import KNOWN_FROM, KNOWN_TO
from ktrdr_pipelines.domain.calendars.cme_futures import FAMILIES, globex_hours
from ktrdr_pipelines.domain.calendars.eurex_futures import EUREX_FAMILIES, eurex_hours
from ktrdr_pipelines.domain.calendars.exchanges import (
    EXTENDED,
    exchange_codes,
    exchange_days,
    exchange_hours,
    is_exchange,
)
from ktrdr_pipelines.domain.calendars.fx_crypto import CRYPTO, SPOT_FX, crypto, spot_fx
from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    SharedDay,
    extending,
    overlaid,
    with_own_hours,
)
from ktrdr_pipelines.domain.calendars.kept_arrays import Arrays, kept_arrays
from ktrdr_pipelines.domain.calendars.session_extension import (
    Extension,
    LateBar,
    extended,
    extensions,
)
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Instrument

__all__ = ["GATEWAY", "KNOWN_FROM", "KNOWN_TO", "Calendars", "calendar_keys", "calendar_named"]

GATEWAY: Final = "GATEWAY"
"""Prefix of calendars whose sessions only the gateway knows, such as ``GATEWAY:Europe/London``.

``GATEWAY:Asia/Tokyo@16:00`` is one whose session days begin at 16:00 of the day before.
"""

_GATEWAY_KEY = re.compile(rf"{GATEWAY}:([A-Za-z0-9_+/-]+)(?:@([01][0-9]|2[0-3]):([0-5][0-9]))?")
_DAY = timedelta(days=1)


def calendar_keys() -> list[str]:
    """Return the keys of all calendars that are known without a gateway, sorted."""
    exchanges = (f"{code}.RTH" for code in exchange_codes())
    return sorted((*exchanges, EXTENDED, *FAMILIES, *EUREX_FAMILIES, SPOT_FX, CRYPTO))


def is_gateways(key: str) -> bool:
    """Return whether only the gateway knows the sessions of a calendar."""
    return key.startswith(f"{GATEWAY}:")


def is_assumed(key: str) -> bool:
    """Return whether a calendar is an assumption, which each contract's own hours replace."""
    return key == CRYPTO


@cache
def calendar_named(key: str) -> SessionCalendar:
    """Return the calendar of a key as it is known offline; it is built on first use.

    Its arrays are kept between processes (``domain.calendars.kept_arrays``).

    Raises:
        KeyError: there is no such calendar; the known ones are ``calendar_keys()`` and
            ``GATEWAY:ZONE``.
    """
    if is_gateways(key):
        return _unknown_sessions(key)
    found = kept_arrays(key, lambda: _arrays_of(_built(key)))
    return SessionCalendar(
        key=key,
        zone=found["zone"].item(),
        days=found["days"],
        opens=found["opens"],
        closes=found["closes"],
        breaks=found["breaks"],
        roll=timedelta(microseconds=found["roll_us"].item()),
        days_may_differ=found["days_may_differ"].item(),
    )


def _arrays_of(calendar: SessionCalendar) -> Arrays:
    return {
        "zone": np.array(calendar.zone),
        "days": calendar.days,
        "opens": calendar.opens,
        "closes": calendar.closes,
        "breaks": calendar.breaks,
        "roll_us": np.array(calendar.roll // timedelta(microseconds=1)),
        "days_may_differ": np.array(calendar.days_may_differ),
    }


def _built(key: str) -> SessionCalendar:
    """Return a calendar as the libraries and the tables here have it."""
    if key == SPOT_FX:
        return spot_fx()
    if key == CRYPTO:
        return crypto()
    if key in FAMILIES:
        return globex_hours(key)
    if key in EUREX_FAMILIES:
        return eurex_hours(key, exchange_days("XEUR"))
    return exchange_hours(key)


def is_calendar(key: str) -> bool:
    """Return whether a key names a calendar."""
    if is_gateways(key):
        try:
            _unknown_sessions(key)
        except KeyError:
            return False
        return True
    return key in {SPOT_FX, CRYPTO, *FAMILIES, *EUREX_FAMILIES} or is_exchange(key)


def _unknown_sessions(key: str) -> SessionCalendar:
    """Return a calendar with a time zone and a roll, but without sessions."""
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
    """Return the key under which a contract's own hours are kept: calendar, a space, symbol."""
    return f"{instrument.calendar} {instrument.symbol}"


class Calendars:
    """All calendars, with what gateways have stated: which sessions are expected of an instrument.

    It is a value: what is learned later makes another one. Code that decides what is *expected*
    uses it; zone and session date of a moment never depend on it (``calendar_named``).

    The calendar of an instrument is the library's, changed where several contracts agree, extended
    by what its own contract stated and by bars after the close. Instruments with the same sessions
    get the identical object, so that its arrays of spans are made once. Where only the gateway
    knows the sessions, an instrument has those that its contract stated; where the library only
    assumes them, what the contract stated replaces them.

    Args:
        learned: session dates as contracts stated them, oldest first, by ``learned_key``.
        shared: session dates on which several contracts agree, oldest first, by calendar.
        late_bars: by symbol, the newest bar after the close of each session that has one.
    """

    __slots__ = ("_added", "_extensions", "_late", "_learned", "_made", "_shared")

    def __init__(
        self,
        learned: Mapping[str, Sequence[LearnedDay]] | None = None,
        *,
        shared: Mapping[str, Sequence[SharedDay]] | None = None,
        late_bars: Mapping[str, Mapping[date, LateBar]] | None = None,
    ) -> None:
        self._learned = dict(learned or {})
        self._shared = {key: tuple(days) for key, days in (shared or {}).items() if days}
        self._late = dict(late_bars or {})
        self._made: dict[Hashable, SessionCalendar] = {}
        self._added: dict[str, tuple[LearnedDay, ...]] = {}
        self._extensions: dict[str, tuple[Extension, ...]] = {}

    def __repr__(self) -> str:
        days = sum(map(len, self._learned.values()))
        return f"Calendars({days} days learned of {len(self._learned)} contracts)"

    def of(self, instrument: Instrument) -> SessionCalendar:
        """Return the calendar by which an instrument's sessions are expected, up to its end.

        Raises:
            KeyError: there is no calendar of that key.
        """
        whole = self._whole(instrument)
        if instrument.end is None:
            return whole
        key = (id(whole), instrument.end)
        if key not in self._made:
            self._made[key] = whole.until(instrument.end)
        return self._made[key]

    def shared(self, key: str) -> SessionCalendar:
        """Return the calendar of a key as its symbols share it.

        Raises:
            KeyError: there is no calendar of that key.
        """
        days = self._shared.get(key)
        if days is None:
            return calendar_named(key)
        if key not in self._made:
            self._made[key] = overlaid(calendar_named(key), [one.stated for one in days])
        return self._made[key]

    def shared_days(self, key: str) -> tuple[SharedDay, ...]:
        """Return the dates on which the shared sessions differ from the library's."""
        return self._shared.get(key, ())

    def changed(self) -> dict[str, tuple[SharedDay, ...]]:
        """Return the dates on which shared calendars differ from the library's, by their key."""
        return {key: self._shared[key] for key in sorted(self._shared)}

    def before_late_bars(self, instrument: Instrument) -> SessionCalendar:
        """Return the whole calendar of an instrument without extensions by bars after the close."""
        key = learned_key(instrument)
        if key not in self._learned:
            return self.shared(instrument.calendar)
        if is_gateways(instrument.calendar):
            if key not in self._made:
                self._made[key] = overlaid(calendar_named(instrument.calendar), self._learned[key])
            return self._made[key]
        base = self.shared(instrument.calendar)
        if is_assumed(instrument.calendar):
            if key not in self._made:
                self._made[key] = with_own_hours(base, self._learned[key])
            return self._made[key]
        if key not in self._added:
            self._added[key] = extending(base, self._learned[key]).days
        added = self._added[key]
        if not added:
            return base
        same = (instrument.calendar, added)
        if same not in self._made:
            self._made[same] = overlaid(base, added)
        return self._made[same]

    def late_bars(self, symbol: str) -> Mapping[date, LateBar]:
        """Return the newest bar after the close of each session of a symbol that has one."""
        return self._late.get(symbol, {})

    def extensions(self, instrument: Instrument) -> tuple[Extension, ...]:
        """Return the extensions of an instrument's sessions by bars after the close."""
        late = self._late.get(instrument.symbol)
        if late is None:
            return ()
        key = learned_key(instrument)
        if key not in self._extensions:
            self._extensions[key] = extensions(self.before_late_bars(instrument), late)
        return self._extensions[key]

    def stated_closed(self, instrument: Instrument) -> frozenset[date]:
        """Return the session dates that the contract's own schedule or hours call closed.

        They are still expected, because this is one statement of one contract.
        """
        closed = [
            one.day for one in self._learned.get(learned_key(instrument), ()) if not one.parts
        ]
        if not closed:
            return frozenset()
        dates = np.array(closed, dtype="datetime64[D]")
        return frozenset(dates[np.isin(dates, self.of(instrument).days)].tolist())

    def key_of(self, instrument: Instrument) -> str:
        """Return the key of an instrument's calendar, with its symbol if no other shares it."""
        is_own = is_gateways(instrument.calendar) or (
            self._whole(instrument) is not self.shared(instrument.calendar)
        )
        return learned_key(instrument) if is_own else instrument.calendar

    def each(self, instruments: Iterable[Instrument]) -> dict[str, SessionCalendar]:
        """Return the whole calendars of some instruments by ``key_of``, each once."""
        return {self.key_of(one): self._whole(one) for one in instruments}

    def _whole(self, instrument: Instrument) -> SessionCalendar:
        base = self.before_late_bars(instrument)
        found = self.extensions(instrument)
        if not found:
            return base
        key = (id(base), tuple((one.length_us, one.by_us, one.only) for one in found))
        if key not in self._made:
            self._made[key] = extended(base, found)
        return self._made[key]
