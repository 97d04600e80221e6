"""The gateway as a source of bars: instruments and requests in, values or typed errors out.

Every call ends before a deadline; outages of the gateway's own connections are outlived for a
while (``ib.asker``). Failures are not tried twice here: that is the loader's decision, by the
policy of ``ib.retries``. Not here: the connection (``ib.gateway``), reading bars
(``ib.history``), the budget (``ib.pacer``).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import replace
from datetime import datetime, timedelta

from ktrdr_pipelines.core.answers import Answer, BarRequest, NoData, OnSent, unheard
from ktrdr_pipelines.core.instruments import Instrument, Origin
from ktrdr_pipelines.core.schedules import LearnedDay
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    BadAnswerError,
    GatewaySilentError,
    GatewayUnreachableError,
    RequestRejectedError,
    UnknownZoneError,
)
from ktrdr_pipelines.ib.asker import Ask, Asker
from ktrdr_pipelines.ib.bar_sizes import BarSizes
from ktrdr_pipelines.ib.codes import NoDataError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection import IbConnectionStrategy
from ktrdr_pipelines.ib.contracts import Candidate, candidate_of, chosen, contract_for, described
from ktrdr_pipelines.ib.entitlements import entitlement_of
from ktrdr_pipelines.ib.gateway import GatewayConnection
from ktrdr_pipelines.ib.health import Health, with_vitals
from ktrdr_pipelines.ib.history import (
    History,
    asked_of,
    bars_of,
    head_of,
    history_of,
    reach_of,
    unknown_zone,
)
from ktrdr_pipelines.ib.moments import UnknownZone
from ktrdr_pipelines.ib.notices import ZONE_HINT, Notices, OnNotice
from ktrdr_pipelines.ib.notices import unheard as unheard_notice
from ktrdr_pipelines.ib.pacer import Pacer
from ktrdr_pipelines.ib.queries import (
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
from ktrdr_pipelines.ib.questions import Topic
from ktrdr_pipelines.ib.schedules import details_days, schedule_days
from ktrdr_pipelines.ib.waiting import OnWait, untold
from ktrdr_pipelines.ib.wire import MET_NOBODY, Ending, WireError

_NOBODY = MET_NOBODY | {Ending.VERSION}
_NO_HEAD = 162
_CLOCKS_APART = timedelta(days=1)


@asynccontextmanager
async def open_source(
    config: GatewayConfig,
    operation: str = "cli",
    *,
    batch_size: int = 1,
    pacer: Pacer | None = None,
    waits: OnWait = untold,
    notices: OnNotice = unheard_notice,
) -> AsyncIterator["GatewaySource"]:
    """Connect to a gateway for one operation and give it as a source; all is undone at the end.

    Args:
        config: the gateway.
        operation: a value of ``ib.connection.Operation``.
        batch_size: how many series will be asked for.
        pacer: the budget; None takes the one that all processes share for this gateway.
        waits: told what is waited for, and how many seconds at most.
        notices: told what a person should know of the gateway, each thing once a connection.

    Raises:
        GatewayError: on entering: no connection came about.
    """
    budget = Pacer.of(config) if pacer is None else pacer
    strategy = IbConnectionStrategy(config, pacer=budget)
    try:
        async with AsyncExitStack() as stack:
            entering = strategy.get_connection_for_operation(operation, batch_size)
            asked = f"connect to {config.gateway}"
            await budget.admit(asked, probe_s=config.timeout_s, waits=waits)
            connection = await _entered(stack, entering, budget)
            connection.notices.listen(notices)
            yield GatewaySource(connection, budget, config, waits=waits)
    finally:
        await strategy.cleanup_temporary_connections()
        if pacer is None:
            budget.close()


async def _entered(
    stack: AsyncExitStack,
    entering: AbstractAsyncContextManager[GatewayConnection],
    budget: Pacer,
) -> GatewayConnection:
    """Connect, and take in what that says about the gateway's health.

    Where nothing listens nothing is hammered either: that counts as no failure.
    """
    try:
        connection = await stack.enter_async_context(entering)
    except (GatewaySilentError, GatewayUnreachableError) as error:
        cause = error.__cause__
        met_nobody = isinstance(cause, WireError) and cause.ending in _NOBODY
        if not met_nobody:
            budget.note_trouble(ill_with=error.came)
        raise
    budget.note_life()
    return connection


class GatewaySource:
    """Bars of one connected gateway; a ``core.answers.BarSource``."""

    def __init__(
        self,
        connection: GatewayConnection,
        pacer: Pacer,
        config: GatewayConfig,
        *,
        waits: OnWait = untold,
    ) -> None:
        self._connection, self._pacer = connection, pacer
        self._asker = Asker(connection, pacer, config, waits=waits)
        self._sizes = BarSizes(pacer)
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
    def places(self) -> int:
        """How many requests for bars it is worth to have open at once now."""
        return self._pacer.places

    async def health(self) -> Health:
        """Say how connection and data path are, by a round trip that asks for no data."""
        return with_vitals(await self._connection.health(), self._pacer.vitals())

    async def contract_id(self, instrument: Instrument) -> int:
        """Give the gateway's id of the instrument's contract; asked once per connection.

        Raises:
            ContractUnknownError: there is none.
            ContractAmbiguousError: there are several; the text lists them.
            GatewayError: no answer, or another one.
        """
        return (await self._contract(instrument)).contract_id

    async def bars(self, request: BarRequest, *, sent: OnSent = unheard) -> Answer | NoData:
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
            with self._asker.permitted(entitlement, query.asked, probes=request.probes):
                reply = await self._history(
                    request.series.timeframe,
                    query,
                    lambda sized: Ask(
                        Topic.BARS,
                        sized.asked,
                        paced_bars(request, sized),
                        sized.route,
                        sent,
                        is_late,
                    ),
                )
        except NoDataError as error:
            return NoData(request, error.came)
        with self._read(query.asked):
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
            with self._asker.permitted(entitlement_of(instrument, contract), query.asked):
                fields = await self._asker.ask(
                    Ask(Topic.HEAD, query.asked, paced_head(query), query.route, sent),
                    self._connection.head(query),
                )
        except (RequestRejectedError, BadAnswerError) as error:
            if error.code == _NO_HEAD:
                return None
            raise
        try:
            with self._read(query.asked, "head timestamps"):
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
                lambda sized: Ask(
                    Topic.BARS, sized.asked, paced_schedule(sized), sized.route, sent
                ),
            )
        except NoDataError:
            return []
        with self._read(query.asked, "schedules"):
            return schedule_days(reply.fields)

    @contextmanager
    def _read(self, asked: str, what: str = "") -> Iterator[None]:
        """Make what cannot be read an error of the gateway's.

        Args:
            asked: what was asked for.
            what: what is told in a zone, for the notice where that is not known.
        """
        try:
            yield
        except UnknownZone as error:
            self._connection.notices.unknown_zone(error.name, what)
            raise UnknownZoneError(asked, came=str(error), remedy=ZONE_HINT) from error
        except (ValueError, IndexError, OverflowError) as error:
            raise BadAnswerError(
                asked, came=f"an answer that cannot be: {error}", remedy="Nothing of it is kept."
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
            return self._asker.ask(ask(sized), self._connection.history(sized))

        return await self._sizes.accepted(timeframe, query.asked, request)

    async def _contract(self, instrument: Instrument) -> Candidate:
        asked = described(instrument)
        async with self._resolving[asked]:
            if asked not in self._contracts:
                self._contracts[asked] = await self._ask_contract(instrument, asked)
        return self._contracts[asked]

    async def _ask_contract(self, instrument: Instrument, asked: str) -> Candidate:
        contract = contract_for(instrument, instrument.contract_id)
        frames = await self._asker.ask(
            Ask(Topic.CONTRACT, asked, paced_contract(asked), route_of(contract)),
            self._connection.contracts(contract, asked),
        )
        with self._read(asked):
            version = self._connection.server_version
            candidates = [candidate_of(fields, version) for fields in frames]
        for one in candidates:
            if one.unknown_zone and not one.expires:
                self._connection.notices.unknown_zone(one.unknown_zone, "last trade dates")
        return chosen(instrument, candidates)


def _answer(
    request: BarRequest, history: History, now: datetime, *, lacks_newest: bool
) -> Answer | NoData:
    if history.count == 0:
        return NoData(request, "the gateway answered with 0 bars")
    asked = asked_of(request.ends_at or now, request.duration)
    found = bars_of(history, request.series, asked)
    return Answer(
        request,
        found.bars,
        reach_of(history),
        lacks_newest=lacks_newest,
        impossible=found.impossible,
        implausible=found.implausible,
    )
