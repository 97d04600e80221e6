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
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.pacing.entitlements import Entitlement, entitlement_of
from ktrdr_pipelines.ib.pacing.rules import PacedRequest, RequestKind, weight_of
from ktrdr_pipelines.ib.protocol.bar_rows import Message, fields_of
from ktrdr_pipelines.ib.protocol.contract_messages import Candidate, contract_for
from ktrdr_pipelines.limits import IbLimitsRegistry

EPOCH_DATES = 2
"""The format of dates that depends on no setting of the gateway and no zone."""

SCHEDULE = "SCHEDULE"
"""The whatToShow of a request for sessions; only allowed with bars of 1 day."""

_NEWEST_HELD_BACK = frozenset({2188, 10090, 10167})
"""Codes: not subscribed to the newest, to a part of the data, or to more than delayed data."""


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A request for bars, sessions or a head timestamp: the gateway's parameters, and its budget.

    ``end`` is UTC in the gateway's format, or empty for now; a head timestamp request has no end,
    duration or bar size. ``dates`` is IB's formatDate. ``what`` describes the request in the
    universe's words, for messages.

    The budget counts it as a ``kind`` of request, before others if it is for a ``tail``, and by the
    hard rules if it is for ``small`` bars. ``entitlement`` is the permission that it needs, None if
    refusals are not remembered. ``timeframe`` names the bars for which the gateway may have another
    string than ``bar_size``; None tries no other.
    """

    what: str
    contract: Contract
    what_to_show: str
    use_rth: bool
    end: str = ""
    duration: str = ""
    bar_size: str = ""
    dates: int = EPOCH_DATES
    kind: RequestKind = RequestKind.BARS
    small: bool = False
    tail: bool = False
    entitlement: Entitlement | None = None
    timeframe: Timeframe | None = None

    @property
    def route(self) -> str:
        """The key by which IB's data farm for it is presumably chosen (``route_of``)."""
        return route_of(self.contract)

    @property
    def paced(self) -> PacedRequest:
        """The request as the budget counts it; schedules count like daily bars."""
        contract = f"{self.contract.conId}|{self.contract.exchange}|{self.what_to_show}"
        when = f"{self.end}|{self.duration}|{self.bar_size}|{int(self.use_rth)}"
        # All of it makes two requests identical; symbol and timeframe alone do not.
        identical, form = f"{contract}|{when}", self.bar_size
        if self.what_to_show == SCHEDULE:
            form = SCHEDULE
        is_head = self.kind is RequestKind.HEAD
        return PacedRequest(
            self.kind,
            contract,
            f"{self.kind}|{identical}" if is_head else identical,
            weight=weight_of(self.what_to_show),
            small=self.small,
            tail=self.tail,
            # One that ends now takes a fraction of the time of one with a fixed end.
            size="" if is_head else f"{form}, {self.duration}{'' if self.end else ' to now'}",
        )


@dataclass(frozen=True, slots=True)
class ContractQuery:
    """A request for the contracts of a description; ``what`` describes it, for messages."""

    what: str
    contract: Contract
    kind: RequestKind = RequestKind.CONTRACT
    entitlement: None = None

    @property
    def route(self) -> str:
        """The key by which IB's data farm for it is presumably chosen (``route_of``)."""
        return route_of(self.contract)

    @property
    def paced(self) -> PacedRequest:
        """The request as the budget counts it."""
        return PacedRequest(self.kind, self.what, self.what)


@dataclass(frozen=True, slots=True)
class HistoryReply:
    """Message 17 or 106, and the codes that the gateway noted about it.

    ``at_once`` is how many were in flight when it was requested, with it, of all processes.
    """

    message: Message
    codes: set[int]
    at_once: int = 1

    @property
    def fields(self) -> list[str]:
        """The texts of the message."""
        return fields_of(self.message)

    @property
    def lacks_newest(self) -> bool:
        """Return whether the gateway withholds the newest bars."""
        return bool(_NEWEST_HELD_BACK & self.codes)


def route_of(contract: Contract) -> str:
    """Return what decides, as far as is known, which of IB's farms serves a contract."""
    return f"{contract.secType} {contract.exchange} {contract.currency}"


def bar_query(request: BarRequest, contract: Candidate) -> HistoryQuery:
    """Return the query of a request for bars."""
    instrument, timeframe = request.series.instrument, request.series.timeframe
    return HistoryQuery(
        what=str(request),
        contract=contract_for(instrument, contract),
        what_to_show=instrument.what_to_show.value,
        use_rth=instrument.use_rth,
        end=end_text(request.ends_at),
        duration=request.duration,
        bar_size=timeframe.ib_bar_size,
        small=timeframe.seconds <= IbLimitsRegistry.SMALL_BAR_MAX_S.value,
        tail=request.tail,
        entitlement=entitlement_of(instrument, contract),
        timeframe=timeframe,
    )


def head_query(instrument: Instrument, contract: Candidate) -> HistoryQuery:
    """Return the query for the oldest data of an instrument, which obeys the hard rules."""
    return HistoryQuery(
        what=f"oldest data of {instrument.symbol} {instrument.what_to_show}",
        contract=contract_for(instrument, contract),
        what_to_show=instrument.what_to_show.value,
        use_rth=instrument.use_rth,
        kind=RequestKind.HEAD,
        small=True,
        entitlement=entitlement_of(instrument, contract),
    )


def schedule_query(
    instrument: Instrument, contract: Candidate, *, ends_at: datetime, days: int
) -> HistoryQuery:
    """Return the query for the sessions of ``days`` days before ``ends_at``."""
    return HistoryQuery(
        what=f"schedule of {instrument.symbol}, {days} D to {ends_at:%Y-%m-%d %H:%M:%SZ}",
        contract=contract_for(instrument, contract),
        what_to_show=SCHEDULE,
        use_rth=instrument.use_rth,
        end=end_text(ends_at),
        duration=f"{days} D",
        bar_size=Timeframe.D1.ib_bar_size,
        timeframe=Timeframe.D1,
    )


def end_text(moment: datetime | None) -> str:
    """Return an end in UTC, the one format that depends on no machine's zone; None is now."""
    return "" if moment is None else f"{utc(moment):%Y%m%d-%H:%M:%S}"
