"""The faults that can be injected, when each happens, and which one a request meets.

Not here: reading the fault file (``fault_file``), the effects of faults (``effects``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from random import Random
from types import MappingProxyType


class Occasion(StrEnum):
    """The kinds of occasions at which a fault can happen; ``time`` is a time request."""

    CONNECT = "connect"
    CONTRACT = "contract"
    HISTORY = "history"
    HEAD = "head"
    TIME = "time"


class Fault(StrEnum):
    """The faults, by their names in a fault file."""

    NO_RESPONSE = "silence"
    HANG_UP = "hang_up"
    CUT = "cut"
    LATE = "late"
    TRICKLE = "trickle"
    BARS_AFTER_CANCEL = "bars_after_cancel"
    ERROR = "error"
    INVALID = "invalid"
    UNKNOWN_CONTRACT = "unknown_contract"
    NO_DATA = "no_data"
    PAST_OLDEST = "past_oldest"
    PACING = "pacing"
    NEWEST_MISSING = "newest_missing"
    PARTIAL = "partial"
    DUPLICATED = "duplicated"
    CONFLICTING = "conflicting"
    UNORDERED = "unordered"
    RESTATED = "restated"
    LINK_LOST = "link_lost"
    FARM_BROKEN = "farm_broken"
    NIGHTLY_RESET = "nightly_reset"
    FARM_FLAPS = "farm_flaps"
    NIGHTLY_FARMS = "nightly_farms"
    FARM_UNNAMED = "farm_unnamed"
    IDS_HELD = "ids_held"
    CLOCK_OFF = "clock_off"


OUTAGES = frozenset(
    {
        Fault.LINK_LOST,
        Fault.FARM_BROKEN,
        Fault.NIGHTLY_RESET,
        Fault.FARM_FLAPS,
        Fault.NIGHTLY_FARMS,
        Fault.FARM_UNNAMED,
    }
)
"""Faults of the gateway as a whole; the request that meets one begins the outage."""

RESPONSE_MUTATIONS = frozenset(
    {
        Fault.NEWEST_MISSING,
        Fault.PARTIAL,
        Fault.DUPLICATED,
        Fault.CONFLICTING,
        Fault.UNORDERED,
        Fault.RESTATED,
    }
)
"""Faults that change the bars of a response."""

SETTINGS: Mapping[Fault, Mapping[str, float]] = MappingProxyType(
    {
        Fault.CUT: {"share": 0.5},
        Fault.LATE: {"seconds": 1.0},
        Fault.TRICKLE: {"seconds": 1.0},
        Fault.BARS_AFTER_CANCEL: {"seconds": 0.05},
        Fault.ERROR: {"code": 162},
        Fault.NEWEST_MISSING: {"bars": 3},
        Fault.PARTIAL: {"share": 0.5},
        Fault.RESTATED: {"factor": 0.5},
        Fault.LINK_LOST: {"seconds": 5.0, "code": 1102, "repeats": 1},
        Fault.FARM_BROKEN: {"seconds": 5.0},
        Fault.NIGHTLY_RESET: {"seconds": 5.0},
        Fault.FARM_FLAPS: {"seconds": 0.7, "repeats": 1},
        Fault.NIGHTLY_FARMS: {"seconds": 5.0, "repeats": 5, "flap": 0.7},
        Fault.FARM_UNNAMED: {"seconds": 5.0, "repeats": 1},
        Fault.IDS_HELD: {"seconds": 30.0},
        Fault.CLOCK_OFF: {"minutes": 10.0},
    }
)
"""The settings of each fault with their defaults; a fault without an entry has none."""

_DATA = frozenset({Occasion.CONTRACT, Occasion.HISTORY, Occasion.HEAD})
_OF_DATA = OUTAGES | {Fault.CUT, Fault.LATE, Fault.TRICKLE, Fault.ERROR, Fault.UNKNOWN_CONTRACT}


def occasions_of(fault: Fault) -> frozenset[Occasion]:
    """Return the occasions of a fault; most concern historical requests only."""
    if fault is Fault.NO_RESPONSE:
        return frozenset(Occasion)
    if fault is Fault.IDS_HELD:
        return frozenset({Occasion.CONNECT})
    if fault is Fault.HANG_UP:
        return _DATA | {Occasion.CONNECT}
    return _DATA if fault in _OF_DATA else frozenset({Occasion.HISTORY})


@dataclass(frozen=True, slots=True)
class Met:
    """One occasion: its kind, all names of its instrument, and the gateway's time.

    ``is_past_oldest`` is true for a request that reaches past the oldest bar.
    """

    occasion: Occasion
    names: frozenset[str] = frozenset()
    now: datetime | None = None
    is_past_oldest: bool = False


@dataclass(frozen=True, slots=True)
class FaultRule:
    """A fault and its selectors.

    ``nth`` holds numbers among the occasions that match the other selectors, ``every`` selects one
    of so many; without either all match. ``times`` is the most times that it happens. ``settings``
    holds those that differ from the defaults. ``text`` is that of an error, or the list of farms in
    1102. ``bars_start`` and ``bars_until`` select the bars that are restated, by their start.
    """

    fault: Fault
    occasion: Occasion = Occasion.HISTORY
    symbol: str = ""
    start: datetime | None = None
    until: datetime | None = None
    nth: frozenset[int] = frozenset()
    every: int | None = None
    times: int | None = None
    probability: float = 1.0
    settings: Mapping[str, float] = field(default_factory=dict)
    text: str = ""
    bars_start: datetime | None = None
    bars_until: datetime | None = None

    def number(self, name: str) -> float:
        """Return a setting."""
        return self.settings.get(name, SETTINGS[self.fault][name])

    def fits(self, met: Met) -> bool:
        """Return whether the rule applies to an occasion."""
        if self.occasion is not met.occasion or (self.symbol and self.symbol not in met.names):
            return False
        if self.fault is Fault.PAST_OLDEST and not met.is_past_oldest:
            return False
        return self.is_due(met.now)

    def counts(self, position: int) -> bool:
        """Return whether the fault happens at the occasion of a number, from 1."""
        if self.every is not None and position % self.every == 0:
            return True
        return position in self.nth or not (self.nth or self.every)

    def is_due(self, now: datetime | None) -> bool:
        """Return whether a time lies between ``start`` and ``until``."""
        if now is None:
            return self.start is None and self.until is None
        return _is_between(self.start, now, self.until)

    def restates(self, bar_start: datetime) -> bool:
        """Return whether a bar lies between ``bars_start`` and ``bars_until``."""
        return _is_between(self.bars_start, bar_start, self.bars_until)


def _is_between(start: datetime | None, moment: datetime, until: datetime | None) -> bool:
    return (start is None or start <= moment) and (until is None or moment < until)


@dataclass(slots=True)
class _Tally:
    """How often a rule was met and how often it happened, and its own random numbers."""

    chance: Random
    met: int = 0
    happened: int = 0


@dataclass(slots=True)
class FaultPlan:
    """The faults of one gateway; the first rule that happens wins, all keep counting.

    The same rules and seed give the same faults for the same requests.
    """

    rules: Sequence[FaultRule] = ()
    seed: int = 0
    _tallies: list[_Tally] = field(init=False)

    def __post_init__(self) -> None:
        self._tallies = [_Tally(Random(f"{self.seed}/{at}")) for at in range(len(self.rules))]  # noqa: S311 - a repeatable chance

    @property
    def happened(self) -> tuple[int, ...]:
        """How often each rule happened."""
        return tuple(tally.happened for tally in self._tallies)

    def choose(self, met: Met) -> FaultRule | None:
        """Return the fault that an occasion meets, if any."""
        chosen = [
            (rule, tally)
            for rule, tally in zip(self.rules, self._tallies, strict=True)
            if rule.fits(met) and _happens(rule, tally)
        ]
        if not chosen:
            return None
        rule, tally = chosen[0]
        tally.happened += 1
        return rule

    def clock_off_s(self, now: datetime) -> float:
        """Return how far, in seconds, the clock reported to clients is ahead."""
        off = (rule for rule in self.rules if rule.fault is Fault.CLOCK_OFF and rule.is_due(now))
        return sum(60 * rule.number("minutes") for rule in off)


def _happens(rule: FaultRule, tally: _Tally) -> bool:
    """Count an occasion that fits, and return whether the fault happens at it."""
    if rule.fault is Fault.CLOCK_OFF:
        return False
    tally.met += 1
    by_chance = rule.probability >= 1 or tally.chance.random() < rule.probability
    is_left = rule.times is None or tally.happened < rule.times
    return by_chance and rule.counts(tally.met) and is_left
