"""A market that holds the requests for the bars of one symbol until it is let go."""

import threading
from collections.abc import Sequence
from datetime import datetime

from ktrdr_pipelines.simulator.market.hours import Hours
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.market.simulated_instruments import SimulatedInstrument
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket


class HeldMarket:
    """A market that does not respond for one symbol until it is let go.

    Attributes:
        requested: is set when bars of the symbol are requested.
        let_go: is to be set for the response.
    """

    def __init__(self, symbol: str) -> None:
        self._market = SyntheticMarket(seed=1)
        self._symbol = symbol
        self.requested, self.let_go = threading.Event(), threading.Event()

    def instruments(self) -> Sequence[SimulatedInstrument]:
        return self._market.instruments()

    def hours(self, instrument: SimulatedInstrument, *, use_rth: bool) -> Hours:
        return self._market.hours(instrument, use_rth=use_rth)

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        if instrument.symbol == self._symbol:
            self.requested.set()
            self.let_go.wait()
        return self._market.bars(instrument, query)

    def head(self, instrument: SimulatedInstrument, what: What, *, use_rth: bool) -> int | None:
        return self._market.head(instrument, what, use_rth=use_rth)

    def default_now(self) -> datetime | None:
        return self._market.default_now()
