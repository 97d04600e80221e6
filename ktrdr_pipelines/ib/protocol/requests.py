"""Requests in the gateway's parameters, and as the budget counts them.

Not here: sending them (``ib.connection.connection``), their responses
(``ib.protocol.bar_messages``).
"""

from dataclasses import dataclass
from datetime import datetime

from ib_async.contract import Contract

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.intervals import utc
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.ib.pacing.rules import PacedRequest, RequestKind, weight_of
from ktrdr_pipelines.ib.protocol.contract_messages import contract_for
from ktrdr_pipelines.limits import IbLimitsRegistry

EPOCH_DATES = 2
"""The format of dates that depends on no setting of the gateway and no zone."""

SCHEDULE = "SCHEDULE"
"""The whatToShow of a request for sessions; only allowed with bars of 1 day."""

_NEWEST_HELD_BACK = frozenset({2188, 10090, 10167})
"""Codes: not subscribed to the newest, to a part of the data, or to more than delayed data."""


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A request for bars, sessions or a head timestamp in the gateway's parameters.

    ``end`` is UTC in the gateway's format, or empty for now; a head timestamp request has no end,
    duration or bar size. ``dates`` is IB's formatDate. ``what`` describes the request in the
    universe's words, for messages.
    """

    what: str
    contract: Contract
    what_to_show: str
    use_rth: bool
    end: str = ""
    duration: str = ""
    bar_size: str = ""
    dates: int = EPOCH_DATES

    @property
    def route(self) -> str:
        """The key by which IB's data farm for it is presumably chosen (``route_of``)."""
        return route_of(self.contract)


@dataclass(frozen=True, slots=True)
class HistoryReply:
    """Message 17, and the codes that the gateway noted about it."""

    fields: list[str]
    codes: set[int]

    @property
    def lacks_newest(self) -> bool:
        """Return whether the gateway withholds the newest bars."""
        return bool(_NEWEST_HELD_BACK & self.codes)


def route_of(contract: Contract) -> str:
    """Return what decides, as far as is known, which of IB's farms serves a contract."""
    return f"{contract.secType} {contract.exchange} {contract.currency}"


def bar_query(request: BarRequest, contract_id: int) -> HistoryQuery:
    """Return the query of a request for bars."""
    instrument = request.series.instrument
    return HistoryQuery(
        what=str(request),
        contract=contract_for(instrument, contract_id),
        what_to_show=instrument.what_to_show.value,
        use_rth=instrument.use_rth,
        end=end_text(request.ends_at),
        duration=request.duration,
        bar_size=request.series.timeframe.ib_bar_size,
    )


def head_query(instrument: Instrument, contract_id: int) -> HistoryQuery:
    """Return the query for the oldest data of an instrument."""
    return HistoryQuery(
        what=f"oldest data of {instrument.symbol} {instrument.what_to_show}",
        contract=contract_for(instrument, contract_id),
        what_to_show=instrument.what_to_show.value,
        use_rth=instrument.use_rth,
    )


def schedule_query(
    instrument: Instrument, contract_id: int, *, ends_at: datetime, days: int
) -> HistoryQuery:
    """Return the query for the sessions of ``days`` days before ``ends_at``."""
    return HistoryQuery(
        what=f"schedule of {instrument.symbol}, {days} D to {ends_at:%Y-%m-%d %H:%M:%SZ}",
        contract=contract_for(instrument, contract_id),
        what_to_show=SCHEDULE,
        use_rth=instrument.use_rth,
        end=end_text(ends_at),
        duration=f"{days} D",
        bar_size=IbLimitsRegistry.BAR_SIZES.value["1d"],
    )


def end_text(moment: datetime | None) -> str:
    """Return an end in UTC, the one format that depends on no machine's zone; None is now."""
    return "" if moment is None else f"{utc(moment):%Y%m%d-%H:%M:%S}"


def paced_bars(request: BarRequest, query: HistoryQuery) -> PacedRequest:
    """Return a request for bars as the budget counts it."""
    small = request.series.timeframe.seconds <= IbLimitsRegistry.SMALL_BAR_MAX_S.value
    return PacedRequest(
        RequestKind.BARS,
        _contract_key(query),
        _identical_key(query),
        weight=weight_of(query.what_to_show),
        small=small,
        tail=request.tail,
        size=f"{query.bar_size}, {query.duration}",
    )


def paced_schedule(query: HistoryQuery) -> PacedRequest:
    """Return a request for a schedule as the budget counts it: like one for daily bars."""
    return PacedRequest(
        RequestKind.BARS,
        _contract_key(query),
        _identical_key(query),
        weight=weight_of(query.what_to_show),
        small=False,
        size=f"{query.what_to_show}, {query.duration}",
    )


def paced_head(query: HistoryQuery) -> PacedRequest:
    """Return a head timestamp request as the budget counts it: under the small-bar rules."""
    return PacedRequest(
        RequestKind.HEAD,
        _contract_key(query),
        f"head|{_identical_key(query)}",
        weight=weight_of(query.what_to_show),
        small=True,
    )


def paced_query(query: HistoryQuery, kind: RequestKind) -> PacedRequest:
    """Return a query of a given kind as the budget counts it, under the small-bar rules."""
    return PacedRequest(
        kind,
        _contract_key(query),
        f"{kind}|{_identical_key(query)}",
        weight=weight_of(query.what_to_show),
        small=True,
    )


def paced_contract(what: str) -> PacedRequest:
    """Return a request for contract details as the budget counts it."""
    return PacedRequest(RequestKind.CONTRACT, what, what)


def _contract_key(query: HistoryQuery) -> str:
    return f"{query.contract.conId}|{query.contract.exchange}|{query.what_to_show}"


def _identical_key(query: HistoryQuery) -> str:
    """Return all that makes two requests identical; symbol and timeframe alone do not."""
    when = f"{query.end}|{query.duration}|{query.bar_size}|{int(query.use_rth)}"
    return f"{_contract_key(query)}|{when}"
