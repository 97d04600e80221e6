"""Which calendar an entry of the universe keeps, and what to set where none can be derived.

A calendar is never guessed: an instrument whose sessions nobody knows is refused, by an error that
names what to set. Not here: what the calendars are (``core.calendars``), the exchanges
(``universe_markets``).
"""

from ktrdr_pipelines.core.calendars import GATEWAY, is_calendar, is_gateways
from ktrdr_pipelines.core.globex import FAMILIES
from ktrdr_pipelines.core.instruments import Instrument, SecType
from ktrdr_pipelines.universe_fields import Entry, shown
from ktrdr_pipelines.universe_markets import Market

_REGULAR, _EXTENDED = ".RTH", ".ETH"


def calendar_for(entry: Entry, made: Instrument, market: Market | None) -> str:
    """Give the key of the calendar that an instrument keeps.

    Args:
        entry: what was said, for the places of errors.
        made: the instrument, with the calendar that was said or derived; empty where neither.
        market: where it trades, as far as tables say.

    Raises:
        UniverseError: none can be derived, or the one that is said cannot be.
    """
    derived = market.calendar(use_rth=made.use_rth) if market else ""
    if made.calendar == GATEWAY:
        if market is None:
            raise entry.at("calendar").error(
                f"is {GATEWAY}, and the zone of {_place(made)} is not known",
                f"Say it too, such as `calendar: {GATEWAY}:Europe/London`, or "
                f"`{GATEWAY}:Asia/Tokyo@16:00` where a session day begins on the day before",
            )
        return market.gateways
    if not made.calendar:
        raise entry.item.error(
            f"is {made.sec_type} at {_place(made)} with use_rth: {shown(made.use_rth)}, "
            "whose sessions are not known",
            _ways(made),
        )
    is_free = is_gateways(made.calendar) and is_calendar(made.calendar)
    if made.calendar != derived and not is_free:
        _refuse_other(entry, made, derived)
    return made.calendar


def _refuse_other(entry: Entry, made: Instrument, derived: str) -> None:
    """Refuse a calendar that contradicts what is known, or that there is not."""
    allowed = f"for {made.sec_type} with use_rth: {shown(made.use_rth)}"
    if derived:
        raise entry.at("calendar").error(
            f"is {made.calendar!r}", f"Allowed {allowed} is {derived}, or {GATEWAY}"
        )
    if not is_calendar(made.calendar):
        raise entry.at("calendar").error(
            f"is {made.calendar!r}, which there is not",
            f"Allowed are XLON{_REGULAR} and its like by ISO 10383, the GLOBEX families, or "
            f"{GATEWAY}",
        )
    wrong = _EXTENDED if made.use_rth else _REGULAR
    if made.calendar.endswith(wrong):
        raise entry.at("calendar").error(
            f"is {made.calendar!r}, and use_rth is {shown(made.use_rth)}",
            f"Set use_rth: {shown(not made.use_rth)}, or calendar: {GATEWAY}",
        )


def _place(made: Instrument) -> str:
    return f"{made.exchange}/{made.primary_exchange}".rstrip("/")


def _ways(made: Instrument) -> str:
    """Say what a person can set."""
    gateway = f"`calendar: {GATEWAY}` (only what the gateway says of it)"
    if made.sec_type is SecType.FUT:
        other = "`use_rth: false`" if made.use_rth else f"one of {', '.join(FAMILIES)}"
        return f"Set {other}, or {gateway}"
    if not made.use_rth:
        return f"Set {gateway}, or `use_rth: true` where it has regular hours"
    example = "`calendar: XLON.RTH` with the exchange's ISO 10383 code"
    return f"Set primary_exchange, {example}, or {gateway}"
