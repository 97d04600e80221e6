"""In what gateways differ from each other while nothing is wrong: one immutable value.

A default is what this simulator does unless told; every other value was seen at a real gateway
(grade L unless said otherwise; ``tests/simulator/test_specimens.py`` holds the literal frames).
Here: the names, their values and how ``--variant NAME=VALUE`` is read. Not here: the parts of an
answer that follow from them, and what goes wrong (``faults``).
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from ktrdr_pipelines.errors import SimulatorError, UsageError
from ktrdr_pipelines.simulator.market.hours import ZONE
from ktrdr_pipelines.simulator.requests.pacing_rules import END_FACTOR

GREETING_ENCODING = "gb2312"
"""In what a greeting is written: a Chinese Windows names its zone so (grade C,
https://github.com/wboayue/rust-ibapi/pull/364); ASCII stays as it is."""


class HoursZone(StrEnum):
    """In whose zone the trading hours of a contract are told."""

    EXCHANGE = "exchange"
    LOGIN = "login"


class ZoneNames(StrEnum):
    """By what names contract details call their zones: ``US/Eastern`` or ``America/New_York``.

    Source: https://github.com/pst-group/pysystemtrade/issues/1622 has the new ones, in 2026.
    """

    OLD = "old"
    MODERN = "modern"


class BeforeFirstTrade(StrEnum):
    """What an end before a session's first trade gives: when a day begins to count as a session.

    ``no_data``: at its open, so that ``1 D`` to an end between open and first trade is 162.
    ``previous``: with its first trade. Both were seen at one gateway, once and three times:
    https://github.com/erdewit/ib_insync/issues/550. ``no_data_from_midnight``: at the midnight
    before it; whether any gateway does so is not known (grade P).
    """

    NO_DATA = "no_data"
    PREVIOUS = "previous"
    NO_DATA_FROM_MIDNIGHT = "no_data_from_midnight"


class Language(StrEnum):
    """In what language errors are told: ``foreign`` leaves no word that a client could know."""

    ENGLISH = "en"
    SPANISH = "es"
    GERMAN = "de"
    FOREIGN = "foreign"


class WeekName(StrEnum):
    """By what name bars of a week may be requested; today's gateways are unknown."""

    BOTH = "both"
    WORD = "1 week"
    LETTER = "1W"
    NONE = "none"

    def admits(self, text: str) -> bool:
        """Say whether a bar size of weeks may be called so."""
        return self in {WeekName.BOTH, text}


@dataclass(frozen=True, slots=True)
class Variants:
    """In what one gateway differs from others.

    ``zone`` is that of its login, any name that ``zoneinfo`` knows: empty is that of New York, but
    last trade dates are told in the exchange's. ``plain_expiry_days``: contracts that end later
    than so many days from now have a last trade date without a time. ``greeting_zone`` replaces
    the short name of the zone in the greeting. ``account_comma`` ends the list of accounts with a
    comma.

    Raises:
        SimulatorError: the zone is unknown, or the greeting's cannot be written.
    """

    zone: str = ""
    hours_zone: HoursZone = HoursZone.EXCHANGE
    zone_names: ZoneNames = ZoneNames.OLD
    plain_expiry_days: int | None = None
    before_first_trade: BeforeFirstTrade = BeforeFirstTrade.NO_DATA
    language: Language = Language.ENGLISH
    greeting_zone: str = ""
    account_comma: bool = False
    week_name: WeekName = WeekName.BOTH

    def __post_init__(self) -> None:
        if self.zone:
            check_zone(self.zone)
        try:
            self.greeting_zone.encode(GREETING_ENCODING)
        except UnicodeEncodeError as error:
            raise SimulatorError(
                f"greet with the zone {self.greeting_zone!r}",
                reason=f"{GREETING_ENCODING} has no such characters",
            ) from error

    @property
    def login_zone(self) -> str:
        """The zone of the login, by its name."""
        return self.zone or ZONE


@dataclass(frozen=True, slots=True)
class MarketVariants:
    """In what the synthetic market may differ.

    ``flat_bars`` names instruments, by symbol, or security types, or is ``all``: intervals
    without a trade come as bars of the last price and no volume. ``crypto_zone``: crypto has
    sessions of that zone (``calendar.crypto_sessions``); empty, it trades round the clock.

    Raises:
        SimulatorError: the zone is unknown.
    """

    flat_bars: frozenset[str] = frozenset()
    crypto_zone: str = ""

    def __post_init__(self) -> None:
        if self.crypto_zone:
            check_zone(self.crypto_zone)

    def fills(self, names: Iterable[str]) -> bool:
        """Say whether an instrument of these names has flat bars."""
        return not self.flat_bars.isdisjoint({*names, "all"})


@dataclass(frozen=True, slots=True)
class ReadVariants:
    """What the options of a command say: ``end_factor`` counts under soft pacing."""

    gateway: Variants = Variants()
    market: MarketVariants = MarketVariants()
    end_factor: float = END_FACTOR


def check_zone(name: str) -> None:
    """Check that a zone's name is known.

    Raises:
        SimulatorError: it is not.
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise SimulatorError(
            f"tell times in the zone {name!r}",
            reason="no such zone is known",
            hint="Name one such as Europe/Zurich, US/Eastern or GB",
        ) from error


def read_variants(zone: str, texts: Iterable[str]) -> ReadVariants:
    """Read ``NAME=VALUE`` texts beside the login's zone.

    Raises:
        UsageError: a name is unknown, or a value is none of its own.
    """
    try:
        return _read(zone, texts)
    except SimulatorError as error:
        raise UsageError(error.what, reason=error.reason, hint=error.hint) from error


def _read(zone: str, texts: Iterable[str]) -> ReadVariants:
    read = ReadVariants(Variants(zone=zone))
    for text in texts:
        name, _, value = text.partition("=")
        if name not in _READERS:
            near = difflib.get_close_matches(name, _READERS, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"--variant {text}",
                reason=f"there is no variant {name!r}",
                hint=f"{hint}Known are {', '.join(_READERS)}",
            )
        try:
            found = _READERS[name](value)
        except ValueError as error:
            raise UsageError(f"--variant {text}", reason=str(error)) from error
        read = _with(read, name, found)
    return read


def _with(read: ReadVariants, name: str, value: Any) -> ReadVariants:
    if name == "end_factor":
        return replace(read, end_factor=value)
    if name in MarketVariants.__dataclass_fields__:
        return replace(read, market=replace(read.market, **{name: value}))
    return replace(read, gateway=replace(read.gateway, **{name: value}))


def _choice(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def read(value: str) -> StrEnum:
        if value not in list(kind):
            raise ValueError(f"it must be one of {', '.join(kind)}")
        return kind(value)

    return read


def _text(value: str) -> str:
    if not value:
        raise ValueError("it has no value")
    return value


def _names(value: str) -> frozenset[str]:
    return frozenset(_text(value).split(","))


def _days(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("it must be a whole number of days")
    return int(value)


def _factor(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 1 <= found <= 1_000:
        raise ValueError("it must be a number from 1 to 1000")
    return found


def _yes(value: str) -> bool:
    if value not in {"yes", "no"}:
        raise ValueError("it must be yes or no")
    return value == "yes"


_READERS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "hours_zone": _choice(HoursZone),
        "zone_names": _choice(ZoneNames),
        "plain_expiry_days": _days,
        "before_first_trade": _choice(BeforeFirstTrade),
        "language": _choice(Language),
        "greeting_zone": _text,
        "account_comma": _yes,
        "week_name": _choice(WeekName),
        "flat_bars": _names,
        "crypto_zone": _text,
        "end_factor": _factor,
    }
)
