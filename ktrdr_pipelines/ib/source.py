"""The gateway as a source of bars: instruments and requests in, values or typed errors out.

``Requester`` sends one request at a time through the budget, the circuit breaker and the recorded
refusals; ``Contracts`` finds the contract of an instrument. ``GatewaySource`` turns responses into
values. Every call ends before a deadline; outages of the gateway's own connections are waited out
for a while. Other failures are not retried here: the loader decides on that, by the policy of
``sync.engine.source_session``.

Not here: the connection (``ib.connection``), the budget (``ib.pacing``), reading messages
(``ib.protocol``).
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from ib_async.contract import Contract

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.instruments import Instrument, Origin
from ktrdr_pipelines.domain.planning.responses import (
    BarRequest,
    NoData,
    OnSent,
    Response,
    ignore_sent,
)
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ConnectionLostError,
    ContractUnknownError,
    DiskError,
    EntitlementError,
    GatewayError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    OutageError,
    PacingError,
    RequestExpiredError,
    RequestRejectedError,
    UnknownZoneError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.connection import Call, GatewayConnection
from ktrdr_pipelines.ib.connection.gateway_status import Health, with_vitals
from ktrdr_pipelines.ib.connection.notices import Notices, OnNotice, ignore_notice
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.circuit_breaker import Depth, depth_of
from ktrdr_pipelines.ib.pacing.entitlements import Entitlements
from ktrdr_pipelines.ib.pacing.rate_limiter import OnWait, Permit, RateLimiter, ignore_wait
from ktrdr_pipelines.ib.protocol.bar_messages import (
    History,
    bars_of,
    head_of,
    history_of,
    reach_of,
    requested_interval,
    unknown_zone,
)
from ktrdr_pipelines.ib.protocol.bar_sizes import BarSizes
from ktrdr_pipelines.ib.protocol.contract_messages import (
    Candidate,
    candidate_of,
    chosen,
    contract_by_id,
    contract_for,
    described,
    is_as_described,
)
from ktrdr_pipelines.ib.protocol.error_codes import NoDataError, QueryDroppedError
from ktrdr_pipelines.ib.protocol.requests import (
    ContractQuery,
    HistoryQuery,
    HistoryReply,
    bar_query,
    head_query,
    schedule_query,
)
from ktrdr_pipelines.ib.protocol.schedule_messages import details_days, schedule_days
from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, DisconnectReason, TransportError

HOLD_FACTOR = 1.5
"""Deadlines for which a request without response keeps its permit: the gateway may work on it."""

_TOO_MANY_OPEN, _LINK_LOST, _HISTORICAL_ERROR, _NO_HEAD = 322, 1100, 162, 162
_NO_GATEWAY = NO_LISTENER | {DisconnectReason.VERSION}
_CLOCKS_APART = timedelta(days=1)
_log = logging.getLogger(__name__)
T = TypeVar("T")


def _never() -> bool:
    return False


class Requester:
    """Sends requests to one connected gateway, under the budget of all processes.

    ``rate_limiter`` is that budget.
    """

    def __init__(
        self,
        connection: GatewayConnection,
        rate_limiter: RateLimiter,
        config: GatewayConfig,
        *,
        waits: OnWait = ignore_wait,
    ) -> None:
        self.rate_limiter = rate_limiter
        self._connection, self._waits = connection, waits
        self._hold_s, self._outage_s = config.timeout_s * HOLD_FACTOR, config.outage_s
        self._entitlements, self._sizes = Entitlements(rate_limiter), BarSizes(rate_limiter)
        connection.on_pacing(self._pause_after_error)

    async def history(
        self,
        query: HistoryQuery,
        *,
        sent: OnSent = ignore_sent,
        is_late: Callable[[], bool] = _never,
        probes: bool = False,
        is_trial: bool = False,
    ) -> HistoryReply:
        """Request bars or sessions, with another bar size string if the gateway refuses one.

        Args and errors are those of ``ask``.
        """

        async def request(sized: HistoryQuery) -> HistoryReply:
            call = self._connection.history(sized)
            reply = await self.ask(
                sized, call, sent=sent, is_late=is_late, probes=probes, is_trial=is_trial
            )
            return replace(reply, at_once=call.at_once)

        return await self._sizes.accepted(query, request)

    async def ask(
        self,
        query: HistoryQuery | ContractQuery,
        call: Call[T],
        *,
        sent: OnSent = ignore_sent,
        is_late: Callable[[], bool] = _never,
        probes: bool = False,
        is_trial: bool = False,
    ) -> T:
        """Send a request, and again after the gateway's own outages; return the response.

        Such outages are not failures of the request: the connection to the gateway stays, and the
        caller does not see them until they have lasted too long. A request that is repeated within
        15 s waits for IB's rule of identical requests: that rule has no exception, and an almost
        identical request would be a different one (an end a second later moves the start of a
        duration too, and clips another bar). Other requests are sent meanwhile.

        Args:
            query: what is requested.
            call: sends it through the connection.
            sent: called each time it is sent to the gateway.
            is_late: if it returns true when the request gets its permit, it is not sent.
            probes: refusals of its permission that earlier runs received are ignored.
            is_trial: a timeout shows nothing of the gateway, as in ``BarRequest``.

        Raises:
            EntitlementError: its permission was refused, before or now.
            GatewayError: there is no response, or it is another refusal.
        """
        begun_at_s: float | None = None
        with self._permitted(query, probes=probes):
            while True:
                route = await self._connection.wait_for_route(query, waits=self._waits)
                try:
                    with route:
                        await self.rate_limiter.admit(
                            query.what, probe_s=self._hold_s, waits=self._waits
                        )
                        return await self._once(query, call, sent, is_late, is_trial=is_trial)
                except OutageError as error:
                    begun_at_s = boot_time_s() if begun_at_s is None else begun_at_s
                    if boot_time_s() - begun_at_s >= self._outage_s:
                        raise
                    _log.info("repeated after an outage: %s", error)

    @contextmanager
    def _permitted(self, query: HistoryQuery | ContractQuery, *, probes: bool) -> Iterator[None]:
        """Run a request unless its permission was refused before, and record a refusal.

        A response clears refusals, also those that a probe ignored.
        """
        if (entitlement := query.entitlement) is None:
            yield
            return
        self._entitlements.check(entitlement, query.what, probes=probes)
        try:
            yield
        except EntitlementError as error:
            self._entitlements.note(entitlement, error)
            raise
        except NoDataError:
            self._entitlements.granted(entitlement)
            raise
        self._entitlements.granted(entitlement)

    async def _once(
        self,
        query: HistoryQuery | ContractQuery,
        call: Call[T],
        sent: OnSent,
        is_late: Callable[[], bool],
        *,
        is_trial: bool,
    ) -> T:
        """Send a request once it has a permit, and return the response.

        A request that the gateway may still be working on keeps its permit for a while. A permit is
        released unused if the connection has ended, or the gateway has lost its own to IB.
        """

        def write() -> None:
            if lost := self._connection.lost_link:
                raise OutageError(query.what, reason=lost, code=_LINK_LOST)
            if is_late():
                raise RequestExpiredError(
                    query.what,
                    reason="its permit came too late for a request that ends now",
                    hint="It is requested with a fixed end instead",
                )
            call.put()

        async with self.rate_limiter.permit(
            query.paced, hold_s=self._hold_s, waits=self._waits, write=write
        ) as permit:
            sent()
            try:
                answer = await call.answer()
            except GatewayError as error:
                # Unless it is the one request by which the circuit breaker probes the gateway.
                is_too_wide = (
                    is_trial
                    and isinstance(error, GatewayTimeoutError)
                    and self.rate_limiter.is_closed()
                )
                if not is_too_wide:  # its permit stays taken as after any timeout
                    self._apply_error(permit, error, depth_of(query.kind))
                raise
            call.at_once = permit.answered()
        return answer

    def _apply_error(self, permit: Permit, error: GatewayError, depth: Depth) -> None:
        """Decide what a failed request means for the budget."""
        if isinstance(error, ConnectionLostError | OutageError):
            permit.cut()
        elif not isinstance(error, GatewayTimeoutError):
            permit.release()
        # Without a code the connection itself ended; with one the gateway reports a lost query.
        is_gone = isinstance(error, ConnectionLostError) and error.code is None
        is_ill = is_gone or isinstance(error, GatewayTimeoutError)
        # An unknown text of 162 may complain about too many requests.
        is_unclear = isinstance(error, BadAnswerError) and error.code == _HISTORICAL_ERROR
        if is_ill or is_unclear or isinstance(error, PacingError | QueryDroppedError):
            failure = error.reason if is_ill else None
            self.rate_limiter.note_trouble(permit.sent_at_s, failure=failure, depth=depth)
        if isinstance(error, PacingError) and error.code != _TOO_MANY_OPEN:
            self.rate_limiter.pause_after_violation()

    def _pause_after_error(self) -> None:
        """Pause after a pacing error about all requests together.

        It arrives while the socket is read, where a disk error must not end the connection; the
        next request raises it.
        """
        try:
            self.rate_limiter.pause_after_violation()
        except DiskError as error:
            _log.warning("the pause after a pacing violation was not recorded: %s", error)


@asynccontextmanager
async def open_source(
    config: GatewayConfig,
    operation: str = "cli",
    *,
    batch_size: int = 1,
    rate_limiter: RateLimiter | None = None,
    waits: OnWait = ignore_wait,
    notices: OnNotice = ignore_notice,
    pinned: "PinnedContract | None" = None,
) -> AsyncIterator["GatewaySource"]:
    """Connect to a gateway for one operation, yield it as a source, and close it at the end.

    Args:
        config: the gateway.
        operation: a value of ``ib.connection.strategy.Operation``.
        batch_size: how many series will be requested.
        rate_limiter: the budget; None uses the one that all processes share for this gateway.
        waits: called with the reason of each wait, and the seconds that it lasts at most.
        notices: called with each notice about the gateway for the user, once a connection.
        pinned: returns the contract that a store has for a symbol, by which it is requested.

    Raises:
        GatewayError: on entering: no connection was made.
        DiskError: the state folder cannot be used.
    """
    budget = RateLimiter.of(config) if rate_limiter is None else rate_limiter
    strategy = IbConnectionStrategy(config, rate_limiter=budget)
    try:
        async with AsyncExitStack() as stack:
            entering = strategy.get_connection_for_operation(operation, batch_size)
            what = f"connect to {config.gateway}"
            await budget.admit(what, probe_s=config.timeout_s, waits=waits)
            connection = await _entered(stack, entering, budget)
            connection.notices.listen(notices)
            requester = Requester(connection, budget, config, waits=waits)
            yield GatewaySource(connection, requester, pinned or nothing_pinned)
    finally:
        await strategy.cleanup_temporary_connections()
        if rate_limiter is None:
            budget.close()


async def _entered(
    stack: AsyncExitStack,
    entering: AbstractAsyncContextManager[GatewayConnection],
    budget: RateLimiter,
) -> GatewayConnection:
    """Connect, and record the outcome for the circuit breaker.

    A port without listener does not count as a failure: there is no gateway to protect.
    """
    try:
        connection = await stack.enter_async_context(entering)
    except (GatewayTimeoutError, GatewayUnreachableError) as error:
        cause = error.__cause__
        no_listener = isinstance(cause, TransportError) and cause.disconnect_reason in _NO_GATEWAY
        if not no_listener:
            budget.note_trouble(failure=error.reason)
        raise
    budget.note_response()
    return connection


PinnedContract = Callable[[str, Origin], int | None]
"""Return the contract id that a store has for a symbol and an origin, None if it has none."""


def nothing_pinned(_symbol: str, _origin: Origin) -> None:
    """Return no contract id: the default of ``pinned`` parameters."""


class Contracts:
    """The contracts of one connection, each requested once.

    A contract whose id is pinned, in the universe or by a store, is requested by that id: symbol
    and exchange of a contract change, its id does not.
    """

    def __init__(
        self, connection: GatewayConnection, requester: Requester, pinned: PinnedContract
    ) -> None:
        self._connection, self._requester, self._pinned = connection, requester, pinned
        self._known: dict[str, Candidate] = {}
        self._resolving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def contract(self, instrument: Instrument) -> Candidate:
        """Return the one contract that an instrument means.

        If a store has pinned a contract that the gateway describes otherwise than the universe,
        and another contract is as the universe describes it, that one is returned: the caller has
        to refuse it. Without such another one the pinned contract has changed its name.

        Raises:
            ContractUnknownError: there is none.
            ContractAmbiguousError: there are several; the text lists them.
            GatewayError: no response, or another error.
        """
        what = described(instrument)
        async with self._resolving[what]:
            if what not in self._known:
                self._known[what] = await self._resolved(instrument)
            return self._known[what]

    async def _resolved(self, instrument: Instrument) -> Candidate:
        if instrument.contract_id is not None:
            return await self._of_id(instrument, instrument.contract_id)
        pinned_id = self._pinned(instrument.symbol, self._connection.origin)
        if pinned_id is None:
            return await self._of_description(instrument)
        try:
            pinned = await self._of_id(instrument, pinned_id)
        except ContractUnknownError:
            return await self._of_description(instrument)
        if is_as_described(instrument, pinned):
            return pinned
        try:
            other = await self._of_description(instrument)
        except ContractUnknownError:
            self._connection.notices.renamed_contract(instrument.symbol, str(pinned))
            return pinned
        return other

    async def _of_id(self, instrument: Instrument, contract_id: int) -> Candidate:
        contract = contract_by_id(instrument, contract_id)
        return await self._ask(replace(instrument, contract_id=contract_id), contract)

    async def _of_description(self, instrument: Instrument) -> Candidate:
        return await self._ask(instrument, contract_for(instrument))

    async def _ask(self, instrument: Instrument, contract: Contract) -> Candidate:
        what, notices = described(instrument), self._connection.notices
        query = ContractQuery(what, contract)
        frames = await self._requester.ask(query, self._connection.contracts(query))
        with notices.reading(what):
            version = self._connection.server_version
            candidates = [candidate_of(fields, version) for fields in frames]
        for one in candidates:
            if one.unknown_zone and not one.expires:
                notices.unknown_zone(one.unknown_zone, "last trade dates")
        return chosen(instrument, candidates)


class GatewaySource:
    """Bars of one connected gateway; a ``domain.planning.responses.BarSource``."""

    def __init__(
        self,
        connection: GatewayConnection,
        requester: Requester,
        pinned: PinnedContract = nothing_pinned,
    ) -> None:
        self._connection, self._requester = connection, requester
        self._contracts = Contracts(connection, requester, pinned)

    def __repr__(self) -> str:
        return f"GatewaySource({self._connection!r})"

    @property
    def gateway(self) -> str:
        """Host and port, for messages and as the identity of the gateway."""
        return self._connection.gateway

    @property
    def origin(self) -> Origin:
        """Whether its bars are real or simulated."""
        return self._connection.origin

    @property
    def login(self) -> str:
        """The name of the gateway's login for the audit, such as ``login 1``."""
        return self._connection.login

    @property
    def notices(self) -> Notices:
        """What a user should know about the gateway's responses."""
        return self._connection.notices

    def now(self) -> datetime:
        """Return the gateway's time."""
        return self._connection.now()

    @property
    def concurrency(self) -> int:
        """How many requests for bars should be open at once now."""
        return self._requester.rate_limiter.concurrency

    async def health(self) -> Health:
        """Return the state of connection and data path after a round trip that requests no data."""
        seen = await self._connection.health()
        return with_vitals(seen, self._requester.rate_limiter.vitals())

    async def contract(self, instrument: Instrument) -> Candidate:
        """Return the instrument's contract as the gateway describes it; requested once.

        Raises:
            ContractUnknownError: there is none.
            ContractAmbiguousError: there are several; the text lists them.
            GatewayError: no response, or another error.
        """
        return await self._contracts.contract(instrument)

    async def contract_id(self, instrument: Instrument) -> int:
        """Return the gateway's id of the instrument's contract; as ``contract``."""
        return (await self.contract(instrument)).contract_id

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        """Request bars, and return the response.

        Raises:
            RequestExpiredError: the request could not be sent in time.
            GatewayError: no response, a refusal, or an invalid response.
        """
        query = bar_query(request, await self._contracts.contract(request.series.instrument))
        self._connection.refresh_clock()

        def is_late() -> bool:
            return request.not_after is not None and self.now() >= request.not_after

        try:
            reply = await self._requester.history(
                query,
                sent=sent,
                is_late=is_late,
                probes=request.probes,
                is_trial=request.is_trial,
            )
        except NoDataError as error:
            return NoData(request, error.reason)
        with self.notices.reading(query.what):
            history = history_of(reply.message)
            if (zone := unknown_zone(history)) is not None:
                self.notices.unknown_zone(zone, "the range that responses state")
            return _answer(request, reply, history, self.now())

    async def head(self, instrument: Instrument, *, sent: OnSent = ignore_sent) -> datetime | None:
        """Return the start of the oldest data, or None if the gateway does not know it.

        Raises:
            GatewayError: no response, or a refusal that concerns more than this request.
        """
        query = head_query(instrument, await self._contracts.contract(instrument))
        try:
            fields = await self._requester.ask(query, self._connection.head(query), sent=sent)
        except (RequestRejectedError, BadAnswerError) as error:
            if error.code == _NO_HEAD:
                return None
            raise
        try:
            with self.notices.reading(query.what, "head timestamps"):
                head = head_of(fields[2])
                if head is not None and head > self.now() + _CLOCKS_APART:
                    raise ValueError(f"oldest data in the future, {head:%Y-%m-%d %H:%M:%SZ}")
        except UnknownZoneError:
            return None
        return head

    async def hours(self, instrument: Instrument) -> list[LearnedDay]:
        """Return the sessions of the next days from the contract's details, without a new request.

        The list is empty if they are in an unknown time zone.

        Raises:
            GatewayError: they cannot be read, or the contract is unknown.
        """
        contract = await self._contracts.contract(instrument)
        try:
            with self.notices.reading(f"trading hours of {instrument.symbol}", "trading hours"):
                return details_days(instrument, contract)
        except UnknownZoneError:
            return []

    async def schedule(
        self, instrument: Instrument, ends_at: datetime, days: int, *, sent: OnSent = ignore_sent
    ) -> list[LearnedDay]:
        """Return the sessions of ``days`` days before ``ends_at``; empty if the gateway has none.

        Raises:
            GatewayError: no response, a refusal, or an invalid response.
        """
        contract = await self._contracts.contract(instrument)
        query = schedule_query(instrument, contract, ends_at=ends_at, days=days)
        try:
            reply = await self._requester.history(query, sent=sent)
        except NoDataError:
            return []
        with self.notices.reading(query.what, "schedules"):
            return schedule_days(reply.fields)


def _answer(
    request: BarRequest, reply: HistoryReply, history: History, now: datetime
) -> Response | NoData:
    if history.count == 0:
        return NoData(request, "the gateway answered with 0 bars")
    requested = requested_interval(request.ends_at or now, request.duration)
    found = bars_of(history, request.series, requested)
    return Response(
        request,
        found.bars,
        reach_of(history),
        lacks_newest=reply.lacks_newest,
        impossible=found.impossible,
        implausible=found.implausible,
        at_once=reply.at_once,
    )
