"""The market protocol: what a gateway requests of a source of bars, and the bars it receives.

Not here: the markets themselves (``synthetic``, ``recorded``, ``splits``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ktrdr_pipelines.simulator.market.bar_arrays import Column
from ktrdr_pipelines.simulator.market.hours import Hours, Ints
from ktrdr_pipelines.simulator.market.simulated_instruments import SimulatedInstrument
from ktrdr_pipelines.simulator.requests.durations import BarSize, Window

Prices = npt.NDArray[np.float64]


class What(StrEnum):
    """The values of ``whatToShow`` that are served."""

    TRADES = "TRADES"
    AGGTRADES = "AGGTRADES"
    ADJUSTED_LAST = "ADJUSTED_LAST"
    MIDPOINT = "MIDPOINT"
    BID = "BID"
    ASK = "ASK"
    BID_ASK = "BID_ASK"
    SCHEDULE = "SCHEDULE"


TRADED = frozenset({What.TRADES, What.AGGTRADES, What.ADJUSTED_LAST})
"""What is made of trades, and so has volume where the instrument has any."""

QUOTED = frozenset({What.MIDPOINT, What.BID, What.ASK, What.BID_ASK})
"""What is made of quotes, and so has no volume."""


@dataclass(frozen=True, slots=True)
class BarQuery:
    """Which bars of an instrument are wanted; the window never reaches past now.

    ``now_s`` is the gateway's time, which decides the price basis; None is the window's end.
    """

    what: What
    size: BarSize
    use_rth: bool
    window: Window
    now_s: int | None = None


@dataclass(frozen=True, slots=True)
class PricedBars:
    """Bars as they are sent; None means "not available", sent as -1.

    ``start`` is in seconds since 1970, midnight UTC of the date for days and longer.
    """

    start: Ints
    open: Prices
    high: Prices
    low: Prices
    close: Prices
    volume: Column | None = None
    average: Prices | None = None
    count: Ints | None = None

    def __len__(self) -> int:
        return len(self.start)


class Market(Protocol):
    """A source of bars for a gateway; several threads call it at once."""

    @property
    def jumps_at_splits(self) -> bool:
        """Whether prices jump where a stock splits, because they are as traded."""

    def instruments(self) -> Sequence[SimulatedInstrument]:
        """Return every instrument that can be requested."""

    def hours(self, instrument: SimulatedInstrument, *, use_rth: bool) -> Hours:
        """Return the sessions of an instrument."""

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        """Return the bars of a query, oldest first; none where there are none."""

    def head(self, instrument: SimulatedInstrument, what: What, *, use_rth: bool) -> int | None:
        """Return when the oldest bar starts, in seconds since 1970."""

    def default_now(self) -> datetime | None:
        """Return the now that suits the market; None is the machine's own."""
