"""The errors of refused requests: the gateway's texts, and the data that an instrument lacks.

Source: 10299, 10339 and the causes of 321 as live gateways and their clones write them (grade L
and R); which ``whatToShow`` a type has is official (grade O). ``No historical market data for``
names the data farm's exchange and the bar's seconds (grade L for CASH and IND).
"""

from ktrdr_pipelines.simulator.market.market import QUOTED, What
from ktrdr_pipelines.simulator.market.simulated_instruments import SecurityType, SimulatedInstrument

SERVICE = "Historical Market Data Service error message:"
UNKNOWN_CONTRACT = "No security definition has been found for the request"
EXPIRED = "HMDS Expired Contract Violation."
END_OF_CONTINUOUS = "Setting end date/time for continuous future security type is not allowed."

END_OF_ADJUSTED = "End date not supported with adjusted last"
LONG_ADJUSTED = "Multi day bar size not supported with adjusted last"
END_OF_LIVE = "End date not supported with live updates"
WHAT_OF_LIVE = "Source price not supported with live updates"
SIZE_OF_LIVE = "Bar size not supported with live updates"
SIZE_OF_SCHEDULE = "Only daily resolution supported for Schedule requests"
"""``SIZE_OF_LIVE`` is this simulator's text (grade P): bars below 5 s have no updates (grade O)."""

_FUTURE_SHOWS = frozenset({What.TRADES, What.SCHEDULE, *QUOTED})
_SHOWS = {
    SecurityType.STOCK: frozenset({What.TRADES, What.ADJUSTED_LAST, What.SCHEDULE, *QUOTED}),
    SecurityType.FX: frozenset({What.SCHEDULE, *QUOTED}),
    SecurityType.FUTURE: _FUTURE_SHOWS,
    SecurityType.CONTINUOUS: _FUTURE_SHOWS,
    SecurityType.INDEX: frozenset({What.TRADES, What.SCHEDULE}),
    SecurityType.CRYPTO: frozenset({What.AGGTRADES, What.SCHEDULE, *QUOTED}),
}

_FARM_LABELS = {
    What.TRADES: "Last",
    What.AGGTRADES: "AggLast",
    What.ADJUSTED_LAST: "AdjustedLast",
    What.MIDPOINT: "MidPoint",
    What.BID: "Bid",
    What.ASK: "Ask",
    What.BID_ASK: "BidAsk",
    What.SCHEDULE: "Schedule",
}
_FARM_EXCHANGES = {"SMART": "BEST", "IDEALPRO": "FXSUBPIP"}


class RefusedError(Exception):
    """The gateway refuses a request with an error code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def invalid(cause: str) -> RefusedError:
    """Return the refusal of a request that fails validation; its token varies (grade L)."""
    return RefusedError(321, f"Error validating request.-'bK' : cause - {cause}")


def service_error(text: str) -> RefusedError:
    """Return the refusal of a data farm, error 162."""
    return RefusedError(162, SERVICE + text)


def no_data(instrument: SimulatedInstrument, what: What) -> RefusedError:
    """Return the error of a request without bars."""
    shown = what.value.capitalize()
    return service_error(
        f"HMDS query returned no data: {instrument.local_symbol}@{instrument.exchange} {shown}"
    )


def check_shown(instrument: SimulatedInstrument, what: What, seconds: int) -> None:
    """Check that instruments of this type have the requested data.

    ``seconds`` is the bar size, 0 for a head timestamp.

    Raises:
        RefusedError: there is no such data.
    """
    if what in _SHOWS[instrument.sec_type]:
        return
    is_crypto = instrument.sec_type is SecurityType.CRYPTO
    if what is What.AGGTRADES or (is_crypto and what is What.TRADES):
        expected = What.AGGTRADES if is_crypto else What.TRADES
        raise RefusedError(
            10299, f"Expected what to show is {expected}, please use that instead of {what}."
        )
    exchange = _FARM_EXCHANGES.get(instrument.exchange, instrument.exchange)
    name = f"{instrument.symbol}/{instrument.sec_type}@{exchange} {_FARM_LABELS[what]} {seconds}"
    raise service_error(f"No historical market data for {name}")
