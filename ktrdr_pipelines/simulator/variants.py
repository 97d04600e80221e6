"""The differences between gateways that work correctly, as immutable values.

A default is this simulator's usual behaviour; every other value was seen at a real gateway
(grade L unless stated otherwise; the literal frames are in
``tests/simulator/test_variants_recorded_frames.py``).
This module defines the names of the variants, their values, and how ``--variant NAME=VALUE`` is
read.

Not here: the parts of a response that follow from them (``protocol``, ``requests``), and faults
(``faults``).
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from ktrdr_pipelines.errors import SimulatorError, UsageError
from ktrdr_pipelines.simulator.market.hours import ZONE
from ktrdr_pipelines.simulator.requests.pacing_rules import Speed, WorkersFrom

GREETING_ENCODING = "gb2312"
"""The encoding of a greeting: a Chinese Windows names its zone in it (grade C,
https://github.com/wboayue/rust-ibapi/pull/364); ASCII text is the same in it."""


SPEED_VARIANTS = frozenset(
    {
        "workers",
        "request_s",
        "bar_s",
        "most_waiting",
        "load",
        "noise",
        "wide_bars",
        "wide_factor",
        "end_factor",
    }
)
"""The variants of a gateway's speed, which applies under soft pacing."""

_MOST_WORKERS = 1_000


class HoursZone(StrEnum):
    """The time zone in which the trading hours of a contract are stated."""

    EXCHANGE = "exchange"
    LOGIN = "login"


class ZoneNames(StrEnum):
    """The zone names in contract details: ``US/Eastern`` or ``America/New_York``.

    Source: https://github.com/pst-group/pysystemtrade/issues/1622 shows the modern names, in 2026.
    """

    OLD = "old"
    MODERN = "modern"


class BeforeFirstTrade(StrEnum):
    """The response to an end before a session's first trade: when a day counts as a session.

    ``no_data``: from its open, so that ``1 D`` to an end between open and first trade is error 162.
    ``previous``: from its first trade. Both were seen at one gateway, once and three times:
    https://github.com/erdewit/ib_insync/issues/550. ``no_data_from_midnight``: from the
    midnight before it; whether any gateway does so is not known (grade P).
    """

    NO_DATA = "no_data"
    PREVIOUS = "previous"
    NO_DATA_FROM_MIDNIGHT = "no_data_from_midnight"


class Language(StrEnum):
    """The language of errors; ``foreign`` contains no word that a client could recognise."""

    ENGLISH = "en"
    SPANISH = "es"
    GERMAN = "de"
    FOREIGN = "foreign"


class WeekName(StrEnum):
    """The accepted names of weekly bars; which ones today's gateways accept is not known."""

    BOTH = "both"
    WORD = "1 week"
    LETTER = "1W"
    NONE = "none"

    def admits(self, text: str) -> bool:
        """Return whether a gateway accepts this text for weekly bars."""
        return self in {WeekName.BOTH, text}


@dataclass(frozen=True, slots=True)
class Variants:
    """How one gateway differs from others.

    Attributes:
        zone: the time zone of its login, any name that ``zoneinfo`` knows; empty is that of New
            York, while last trade dates are stated in the exchange's zone.
        hours_zone: the zone in which trading hours are stated.
        zone_names: the zone names in contract details.
        plain_expiry_days: contracts that end more than this number of days from now have a last
            trade date without a time; None is none.
        before_first_trade: the response to an end before a session's first trade.
        language: the language of errors.
        greeting_zone: replaces the short name of the zone in the greeting.
        account_comma: whether the list of accounts ends with a comma.
        week_name: the accepted names of weekly bars.

    Raises:
        SimulatorError: the zone is unknown, or the greeting's zone cannot be encoded.
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
        """The name of the zone of the login."""
        return self.zone or ZONE


@dataclass(frozen=True, slots=True)
class MarketVariants:
    """How the synthetic market may differ.

    Attributes:
        flat_bars: symbols or security types, or ``all``: their intervals without a trade have bars
            of the last price and no volume.
        crypto_zone: the time zone of the sessions of crypto (``crypto_sessions`` in
            ``market.market_calendars``); empty, crypto trades round the clock.

    Raises:
        SimulatorError: the zone is unknown.
    """

    flat_bars: frozenset[str] = frozenset()
    crypto_zone: str = ""

    def __post_init__(self) -> None:
        if self.crypto_zone:
            check_zone(self.crypto_zone)

    def fills(self, names: Iterable[str]) -> bool:
        """Return whether an instrument of these names has flat bars."""
        return not self.flat_bars.isdisjoint({*names, "all"})


@dataclass(frozen=True, slots=True)
class ReadVariants:
    """The variants that a command's options select; ``speed`` applies under soft pacing."""

    gateway: Variants = Variants()
    market: MarketVariants = MarketVariants()
    speed: Speed = Speed()  # noqa: RUF009 - immutable


def check_zone(name: str) -> None:
    """Check that the name of a time zone is known.

    Raises:
        SimulatorError: it is not known.
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise SimulatorError(
            f"use the time zone {name!r}",
            reason="no such zone is known",
            hint="Use a name such as Europe/Zurich, US/Eastern or GB",
        ) from error


def read_variants(zone: str, texts: Iterable[str]) -> ReadVariants:
    """Read the zone of the login and ``NAME=VALUE`` texts.

    Raises:
        UsageError: a name is unknown, or a value is not valid for it.
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
        if name == "workers":
            first, *changes = found
            speed = replace(read.speed, workers=first.workers, changes=tuple(changes))
            read = replace(read, speed=speed)
        elif name in SPEED_VARIANTS:
            read = replace(read, speed=replace(read.speed, **{name: found}))
        elif name in MarketVariants.__dataclass_fields__:
            read = replace(read, market=replace(read.market, **{name: found}))
        else:
            read = replace(read, gateway=replace(read.gateway, **{name: found}))
    return read


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


def _days(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("it must be a whole number of days")
    return int(value)


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise ValueError(f"it must be a number from {least:g} to {most:g}")
        return found

    return read


def _count(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= _MOST_WORKERS:
        raise ValueError(f"it must be a whole number from 1 to {_MOST_WORKERS}")
    return int(value)


def _workers(value: str) -> list[WorkersFrom]:
    """Read ``6`` or ``6,3@60,12@120``: numbers of workers, and when each begins."""
    first, *later = value.split(",")
    found = [WorkersFrom(_count(first))]
    for text in later:
        count, at, seconds = text.partition("@")
        if not at or not seconds.isdecimal() or int(seconds) <= found[-1].after_s:
            raise ValueError("it must be like 6 or 6,3@60,12@120, with growing seconds")
        found.append(WorkersFrom(_count(count), float(seconds)))
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
        "flat_bars": lambda value: frozenset(_text(value).split(",")),
        "crypto_zone": _text,
        "workers": _workers,
        "request_s": _number(0, 3_600),
        "bar_s": _number(0, 60),
        "most_waiting": _count,
        "load": _number(0, 10),
        "noise": _number(0, 2),
        "wide_bars": lambda value: round(_number(1, 1_000_000)(value)),
        "wide_factor": _number(1, 1_000),
        "end_factor": _number(1, 1_000),
    }
)
