"""Instruments that tests share, and the reading of a universe with one entry."""

from dataclasses import replace
from datetime import date

from ktrdr_pipelines.domain.instruments import Instrument, SecType, WhatToShow
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe

GOOD = "symbols:\n  AAPL: {}\n"
AAPL = Instrument(
    symbol="AAPL",
    ib_symbol="AAPL",
    sec_type=SecType.STK,
    exchange="SMART",
    currency="USD",
    what_to_show=WhatToShow.TRADES,
    use_rth=True,
    calendar="XNYS.RTH",
    timeframes=(Timeframe.M1, Timeframe.H1, Timeframe.D1),
    start=date(2020, 1, 1),
)
EURUSD = replace(
    AAPL,
    symbol="EURUSD",
    ib_symbol="EUR",
    sec_type=SecType.CASH,
    exchange="IDEALPRO",
    what_to_show=WhatToShow.MIDPOINT,
    use_rth=False,
    calendar="FX",
)


def one(entry: str, defaults: str = "{}") -> Instrument:
    """Read a universe of one entry and return its instrument."""
    text = f"defaults: {defaults}\nsymbols:\n  {entry}\n"
    (found,) = parse_universe(text, "u.yaml").instruments.values()
    return found
