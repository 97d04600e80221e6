"""The gateway as a source of bars: one request at a time through the budget, values out.

Putting one question to the gateway, when the way is free and the budget allows it.

The gateway as a source of bars: instruments and requests in, values or typed errors out.

Every call ends before a deadline; outages of the gateway's own connections are outlived for a
while (``ib.source``). Failures are not tried twice here: that is the loader's decision, by the
policy of ``sync.engine.source_session``.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.instruments import Instrument, Origin
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, OnSent, Response, unheard
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ConnectionLostError,
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
from ktrdr_pipelines.ib.connection.notices import ZONE_HINT, Notices, OnNotice
from ktrdr_pipelines.ib.connection.notices import unheard as unheard_notice
from ktrdr_pipelines.ib.connection.pending_requests import Topic
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.circuit_breaker import Depth, depth_of
from ktrdr_pipelines.ib.pacing.entitlements import Entitlement, Entitlements, entitlement_of
from ktrdr_pipelines.ib.pacing.rate_limiter import OnWait, Permit, RateLimiter, untold
from ktrdr_pipelines.ib.pacing.rules import PacedRequest
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
    contract_for,
    described,
)
from ktrdr_pipelines.ib.protocol.error_codes import NoDataError, QueryDroppedError
from ktrdr_pipelines.ib.protocol.requests import (
    HistoryQuery,
    HistoryReply,
    bar_query,
    head_query,
    paced_bars,
    paced_contract,
    paced_head,
    paced_schedule,
    route_of,
    schedule_query,
)
from ktrdr_pipelines.ib.protocol.schedule_messages import details_days, schedule_days
from ktrdr_pipelines.ib.protocol.times import UnknownZone
from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, DisconnectReason, TransportError

HOLD_FACTOR = 1.5
"""How many deadlines long an unanswered request keeps its slot: the gateway may work on it."""

_TOO_MANY_OPEN, _LINK_LOST, _HISTORICAL_ERROR = 322, 1100, 162
_log = logging.getLogger(__name__)
T = TypeVar("T")


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Ask:
    """A question on its way: its topic, its words, what the budget sees of it, and its route.

    ``sent`` is told whenever it goes to the gateway. Where ``is_late`` when its turn has come, it
    is not sent.
    """

    topic: Topic
    what: str
    paced: PacedRequest
    route: str
    sent: OnSent = unheard
    is_late: Callable[[], bool] = _never


class Requester:
    """Puts questions to one connected gateway, under the budget of all processes."""

    def __init__(
        self,
        connection: GatewayConnection,
        rate_limiter: RateLimiter,
        config: GatewayConfig,
        *,
        waits: OnWait = untold,
    ) -> None:
        self._connection, self._rate_limiter, self._waits = connection, rate_limiter, waits
        self._hold_s, self._outage_s = config.timeout_s * HOLD_FACTOR, config.outage_s
        self._entitlements = Entitlements(rate_limiter)
        connection.on_pacing(self._heed_complaint)

    @contextmanager
    def permitted(
        self, entitlement: Entitlement, what: str, *, probes: bool = False
    ) -> Iterator[None]:
        """Let through what was not refused before, and remember a refusal.

        What ``probes`` goes past the refusals that earlier runs met; if it is answered they are
        forgotten.
        """
        self._entitlements.check(entitlement, what, probes=probes)
        try:
            yield
        except EntitlementError as error:
            self._entitlements.note(entitlement, error)
            raise
        except NoDataError:
            self._entitlements.granted(entitlement)
            raise
        self._entitlements.granted(entitlement)

    async def ask(self, ask: Ask, call: Call[T]) -> T:
        """Ask, and ask again after outages of the gateway's own connections.

        These are no failures of the request: the connection to the gateway stays, and nobody
        above hears of them, until they have lasted too long. What is asked again within 15 s of
        its first asking waits for IB's rule of identical requests: that rule knows no excuse, and
        a request that is almost the same would be another one (an end that is a second later
        moves the start of a duration too, and clips another bar). Others go meanwhile.
        """
        begun_at_s: float | None = None
        while True:
            way = await self._connection.wait_for_way(
                ask.topic, ask.route, ask.what, waits=self._waits
            )
            try:
                with way:
                    await self._rate_limiter.admit(
                        ask.what, probe_s=self._hold_s, waits=self._waits
                    )
                    return await self._once(ask, call)
            except OutageError as error:
                begun_at_s = boot_time_s() if begun_at_s is None else begun_at_s
                if boot_time_s() - begun_at_s >= self._outage_s:
                    raise
                _log.info("asked again: %s", error)

    async def _once(self, ask: Ask, call: Call[T]) -> T:
        """Ask when the budget allows it.

        What the gateway may still be working on keeps its slot for a while. A turn that comes
        when the connection has ended, or the gateway has lost its own to IB, is given back unused.
        """

        def write() -> None:
            if lost := self._connection.lost_link:
                raise OutageError(ask.what, reason=lost, code=_LINK_LOST)
            if ask.is_late():
                raise RequestExpiredError(
                    ask.what,
                    reason="its turn came when now meant another time",
                    hint="It is requested with an end instead",
                )
            call.put()

        async with self._rate_limiter.permit(
            ask.paced, hold_s=self._hold_s, waits=self._waits, write=write
        ) as permit:
            ask.sent()
            try:
                answer = await call.answer()
            except GatewayError as error:
                self._apply_error(permit, error, depth_of(ask.paced.kind))
                raise
            permit.answered()
        return answer

    def _apply_error(self, permit: Permit, error: GatewayError, depth: Depth) -> None:
        """Decide what a failed request means for the budget."""
        if isinstance(error, ConnectionLostError | OutageError):
            permit.cut()
        elif not isinstance(error, GatewayTimeoutError):
            permit.release()
        is_ill = isinstance(error, GatewayTimeoutError) or _is_gone(error)
        if is_ill or isinstance(error, PacingError | QueryDroppedError) or _is_unclear(error):
            ill_with = error.reason if is_ill else None
            self._rate_limiter.note_trouble(permit.sent_at_s, ill_with=ill_with, depth=depth)
        if isinstance(error, PacingError) and error.code != _TOO_MANY_OPEN:
            self._rate_limiter.pause_after_violation()

    def _heed_complaint(self) -> None:
        """Pause after a complaint about all requests together.

        It comes in the middle of reading the socket: an error of the disk must not end the
        connection there, and the next request meets it again.
        """
        try:
            self._rate_limiter.pause_after_violation()
        except DiskError as error:
            _log.warning("no pause could be noted: %s", error)


def _is_unclear(error: GatewayError) -> bool:
    """Say whether a refusal may be a complaint about too many requests, in words not known."""
    return isinstance(error, BadAnswerError) and error.code == _HISTORICAL_ERROR


def _is_gone(error: GatewayError) -> bool:
    """Say whether the connection ended, rather than that the gateway told of a lost query."""
    return isinstance(error, ConnectionLostError) and error.code is None


_NO_LISTENER = NO_LISTENER | {DisconnectReason.VERSION}
_NO_HEAD = 162
_CLOCKS_APART = timedelta(days=1)


@asynccontextmanager
async def open_source(
    config: GatewayConfig,
    operation: str = "cli",
    *,
    batch_size: int = 1,
    rate_limiter: RateLimiter | None = None,
    waits: OnWait = untold,
    notices: OnNotice = unheard_notice,
) -> AsyncIterator["GatewaySource"]:
    """Connect to a gateway for one operation and give it as a source; all is undone at the end.

    Args:
        config: the gateway.
        operation: a value of ``ib.connection.strategy.Operation``.
        batch_size: how many series will be asked for.
        rate limiter: the budget; None takes the one that all processes share for this gateway.
        waits: told what is waited for, and how many seconds at most.
        notices: told what a person should know of the gateway, each thing once a connection.

    Raises:
        GatewayError: on entering: no connection came about.
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
            yield GatewaySource(connection, budget, config, waits=waits)
    finally:
        await strategy.cleanup_temporary_connections()
        if rate_limiter is None:
            budget.close()


async def _entered(
    stack: AsyncExitStack,
    entering: AbstractAsyncContextManager[GatewayConnection],
    budget: RateLimiter,
) -> GatewayConnection:
    """Connect, and take in what that says about the gateway's health.

    Where nothing listens nothing is hammered either: that counts as no failure.
    """
    try:
        connection = await stack.enter_async_context(entering)
    except (GatewayTimeoutError, GatewayUnreachableError) as error:
        cause = error.__cause__
        no_listener = isinstance(cause, TransportError) and cause.disconnect_reason in _NO_LISTENER
        if not no_listener:
            budget.note_trouble(ill_with=error.reason)
        raise
    budget.note_life()
    return connection


class GatewaySource:
    """Bars of one connected gateway; a ``domain.planning.responses.BarSource``."""

    def __init__(
        self,
        connection: GatewayConnection,
        rate_limiter: RateLimiter,
        config: GatewayConfig,
        *,
        waits: OnWait = untold,
    ) -> None:
        self._connection, self._rate_limiter = connection, rate_limiter
        self._requester = Requester(connection, rate_limiter, config, waits=waits)
        self._sizes = BarSizes(rate_limiter)
        self._contracts: dict[str, Candidate] = {}
        self._resolving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __repr__(self) -> str:
        return f"GatewaySource({self._connection!r})"

    @property
    def gateway(self) -> str:
        """Host and port, for messages and for telling gateways apart."""
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
        """What a person should know of how the gateway answers."""
        return self._connection.notices

    def now(self) -> datetime:
        """Give the gateway's time."""
        return self._connection.now()

    @property
    def concurrency(self) -> int:
        """How many requests for bars it is worth to have open at once now."""
        return self._rate_limiter.concurrency

    async def health(self) -> Health:
        """Say how connection and data path are, by a round trip that asks for no data."""
        return with_vitals(await self._connection.health(), self._rate_limiter.vitals())

    async def contract_id(self, instrument: Instrument) -> int:
        """Give the gateway's id of the instrument's contract; asked once per connection.

        Raises:
            ContractUnknownError: there is none.
            ContractAmbiguousError: there are several; the text lists them.
            GatewayError: no answer, or another one.
        """
        return (await self._contract(instrument)).contract_id

    async def bars(self, request: BarRequest, *, sent: OnSent = unheard) -> Response | NoData:
        """Ask for bars.

        Raises:
            RequestExpiredError: it could not be sent in time.
            GatewayError: no answer, a refusal, or an answer that cannot be.
        """
        instrument = request.series.instrument
        contract = await self._contract(instrument)
        query = bar_query(request, contract.contract_id)
        self._connection.refresh_clock()

        def is_late() -> bool:
            return request.not_after is not None and self.now() >= request.not_after

        try:
            entitlement = entitlement_of(instrument, contract)
            with self._requester.permitted(entitlement, query.what, probes=request.probes):
                reply = await self._history(
                    request.series.timeframe,
                    query,
                    lambda sized: Ask(
                        Topic.BARS,
                        sized.what,
                        paced_bars(request, sized),
                        sized.route,
                        sent,
                        is_late,
                    ),
                )
        except NoDataError as error:
            return NoData(request, error.reason)
        with self._read(query.what):
            history = history_of(reply.fields)
            if (zone := unknown_zone(history)) is not None:
                self._connection.notices.unknown_zone(zone, "the range that responses state")
            return _answer(request, history, self.now(), lacks_newest=reply.lacks_newest)

    async def head(self, instrument: Instrument, *, sent: OnSent = unheard) -> datetime | None:
        """Give the start of the oldest data, or None where the gateway cannot say.

        Raises:
            GatewayError: no answer, or a refusal that is about more than this data.
        """
        contract = await self._contract(instrument)
        query = head_query(instrument, contract.contract_id)
        try:
            with self._requester.permitted(entitlement_of(instrument, contract), query.what):
                fields = await self._requester.ask(
                    Ask(Topic.HEAD, query.what, paced_head(query), query.route, sent),
                    self._connection.head(query),
                )
        except (RequestRejectedError, BadAnswerError) as error:
            if error.code == _NO_HEAD:
                return None
            raise
        try:
            with self._read(query.what, "head timestamps"):
                head = head_of(fields[2])
                if head is not None and head > self.now() + _CLOCKS_APART:
                    raise ValueError(f"data that begin in the future, {head:%Y-%m-%d %H:%M:%SZ}")
        except UnknownZoneError:
            return None
        return head

    async def hours(self, instrument: Instrument) -> list[LearnedDay]:
        """Give the sessions that the contract's details tell of the next days; asks nothing more.

        Told in a zone that is not known, they are none.

        Raises:
            GatewayError: they cannot be read, or the contract is not known.
        """
        contract = await self._contract(instrument)
        try:
            with self._read(f"trading hours of {instrument.symbol}", "trading hours"):
                return details_days(instrument, contract)
        except UnknownZoneError:
            return []

    async def schedule(
        self, instrument: Instrument, ends_at: datetime, days: int, *, sent: OnSent = unheard
    ) -> list[LearnedDay]:
        """Give the sessions of so many days before a moment; none where the gateway has none.

        Raises:
            GatewayError: no answer, a refusal, or an answer that cannot be.
        """
        contract = await self._contract(instrument)
        query = schedule_query(instrument, contract.contract_id, ends_at=ends_at, days=days)
        try:
            reply = await self._history(
                Timeframe.D1,
                query,
                lambda sized: Ask(Topic.BARS, sized.what, paced_schedule(sized), sized.route, sent),
            )
        except NoDataError:
            return []
        with self._read(query.what, "schedules"):
            return schedule_days(reply.fields)

    @contextmanager
    def _read(self, what: str, subject: str = "") -> Iterator[None]:
        """Make what cannot be read an error of the gateway's.

        Args:
            asked: what was asked for.
            subject: what is told in a zone, for the notice where that is not known.
        """
        try:
            yield
        except UnknownZone as error:
            self._connection.notices.unknown_zone(error.name, subject)
            raise UnknownZoneError(what, reason=str(error), hint=ZONE_HINT) from error
        except (ValueError, IndexError, OverflowError) as error:
            raise BadAnswerError(
                what, reason=f"an answer that cannot be: {error}", hint="Nothing of it is kept."
            ) from error

    async def _history(
        self,
        timeframe: Timeframe,
        query: HistoryQuery,
        ask: Callable[[HistoryQuery], Ask],
    ) -> HistoryReply:
        """Request bars or sessions, by another bar size string where the gateway refuses one."""

        def request(bar_size: str) -> Awaitable[HistoryReply]:
            sized = replace(query, bar_size=bar_size)
            return self._requester.ask(ask(sized), self._connection.history(sized))

        return await self._sizes.accepted(timeframe, query.what, request)

    async def _contract(self, instrument: Instrument) -> Candidate:
        what = described(instrument)
        async with self._resolving[what]:
            if what not in self._contracts:
                self._contracts[what] = await self._request_contract(instrument, what)
        return self._contracts[what]

    async def _request_contract(self, instrument: Instrument, what: str) -> Candidate:
        contract = contract_for(instrument, instrument.contract_id)
        frames = await self._requester.ask(
            Ask(Topic.CONTRACT, what, paced_contract(what), route_of(contract)),
            self._connection.contracts(contract, what),
        )
        with self._read(what):
            version = self._connection.server_version
            candidates = [candidate_of(fields, version) for fields in frames]
        for one in candidates:
            if one.unknown_zone and not one.expires:
                self._connection.notices.unknown_zone(one.unknown_zone, "last trade dates")
        return chosen(instrument, candidates)


def _answer(
    request: BarRequest, history: History, now: datetime, *, lacks_newest: bool
) -> Response | NoData:
    if history.count == 0:
        return NoData(request, "the gateway answered with 0 bars")
    requested = requested_interval(request.ends_at or now, request.duration)
    found = bars_of(history, request.series, requested)
    return Response(
        request,
        found.bars,
        reach_of(history),
        lacks_newest=lacks_newest,
        impossible=found.impossible,
        implausible=found.implausible,
    )
