"""Sessions as parallel arrays, and looking up moments in them.

Not here: which hours a market has (``market_calendars``), so that the protocol needs no calendar
library.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

ZONE = "US/Eastern"
"""The gateway's own zone, by the name that contract details use."""

DAY_S = 86_400
MINUTE_S = 60


class Venue(StrEnum):
    """The markets that have hours of their own."""

    US_STOCKS = "US stocks"
    TORONTO = "Toronto stocks"
    LONDON = "London stocks"
    PARIS = "Paris stocks"
    AMSTERDAM = "Amsterdam stocks"
    XETRA = "Xetra stocks"
    ZURICH = "Zurich stocks"
    STOCKHOLM = "Stockholm stocks"
    TOKYO = "Tokyo stocks"
    HONG_KONG = "Hong Kong stocks"
    SYDNEY = "Sydney stocks"
    FX = "FX"
    CME = "CME Globex"
    NYMEX = "NYMEX on Globex"
    EUREX = "Eurex"
    US_INDEX = "US indices"
    CRYPTO = "crypto"


ZONES = {
    Venue.US_STOCKS: ZONE,
    Venue.TORONTO: ZONE,
    Venue.LONDON: "GB-Eire",
    Venue.PARIS: "MET",
    Venue.AMSTERDAM: "MET",
    Venue.XETRA: "MET",
    Venue.ZURICH: "MET",
    Venue.STOCKHOLM: "MET",
    Venue.TOKYO: "Japan",
    Venue.HONG_KONG: "Hongkong",
    Venue.SYDNEY: "Australia/NSW",
    Venue.FX: ZONE,
    Venue.CME: "US/Central",
    Venue.NYMEX: ZONE,
    Venue.EUREX: "MET",
    Venue.US_INDEX: "US/Central",
    Venue.CRYPTO: "UTC",
}
"""The zone in which a venue's bars, sessions and hours are reported."""


@dataclass(frozen=True, slots=True)
class Hours:
    """Sessions in order: ``labels`` in days since 1970, ``opens`` and ``closes`` in seconds.

    ``offsets`` are the seconds local time is ahead of UTC; no session spans a change of it.
    ``pause`` is a break in seconds of the local day, in which nothing trades; empty for none.
    """

    labels: Ints
    opens: Ints
    closes: Ints
    offsets: Ints
    pause: tuple[int, int] = (0, 0)

    def trading(self, times: Ints, sessions: Ints) -> npt.NDArray[np.bool_]:
        """Return for each moment of a session whether it lies outside the session's break."""
        local = (times + self.offsets[sessions]) % DAY_S
        outside: npt.NDArray[np.bool_] = (local < self.pause[0]) | (local >= self.pause[1])
        return outside

    def parts(self, index: int) -> list[tuple[int, int]]:
        """Return the parts of a session before and after its break, as seconds since 1970."""
        opens, closes = int(self.opens[index]), int(self.closes[index])
        midnight = (opens + int(self.offsets[index])) // DAY_S * DAY_S - int(self.offsets[index])
        begins, ends = midnight + self.pause[0], midnight + self.pause[1]
        if opens < begins < ends < closes:
            return [(opens, begins), (ends, closes)]
        return [(opens, closes)]

    def last_opened_before(self, moment_s: int) -> int:
        """Return the index of the last session that opens before a moment, or -1."""
        return int(np.searchsorted(self.opens, moment_s, side="left")) - 1

    def owners(self, times: Ints) -> Ints:
        """Return for each moment the session it belongs to: the first that closes after it."""
        found = np.searchsorted(self.closes, times, side="right")
        return np.minimum(found, len(self.closes) - 1).astype(np.int64)

    def overlapping(self, start_s: int, end_s: int) -> range:
        """Return the indices of the sessions that have time in ``[start_s, end_s)``."""
        first = int(np.searchsorted(self.closes, start_s, side="right"))
        return range(first, max(first, self.last_opened_before(end_s) + 1))

    def reaches_back_from(self, index: int) -> int:
        """Return the moment from which time belongs to a session: the close before it."""
        return int(self.closes[index - 1]) if index > 0 else int(self.opens[0])


@dataclass(frozen=True, slots=True)
class MarketCalendar:
    """The sessions of one market, in all hours and in regular hours."""

    venue: Venue
    all_hours: Hours
    regular: Hours

    @property
    def has_extended_hours(self) -> bool:
        """Whether a session has time outside the regular hours."""
        return self.regular is not self.all_hours

    def hours(self, *, use_rth: bool) -> Hours:
        """Return the hours that a request with or without ``useRTH`` sees."""
        return self.regular if use_rth else self.all_hours
