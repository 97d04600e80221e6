"""The gateway as a source of bars: instruments and requests in, values or typed errors out.

Every call ends before a deadline. Nothing is tried twice here: when and how often to ask again is
the loader's decision (``ib.retries`` says how long to wait). Not here: the connection
(``ib.gateway``), reading bars (``ib.history``), the budget (``ib.pacer``).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import TypeVar

from ktrdr_pipelines.core.answers import Answer, BarRequest, NoData
from ktrdr_pipelines.core.instruments import Instrument, Origin
from ktrdr_pipelines.core.pacing import PacedRequest
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ConnectionLostError,
    GatewayError,
    GatewaySilentError,
    PacingError,
    RequestRejectedError,
)
from ktrdr_pipelines.ib.codes import NoDataError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection import IbConnectionStrategy
from ktrdr_pipelines.ib.contracts import candidate_of, chosen, contract_for, described
from ktrdr_pipelines.ib.gateway import GatewayConnection
from ktrdr_pipelines.ib.health import Health
from ktrdr_pipelines.ib.history import History, bars_of, head_of, history_of, reach_of
from ktrdr_pipelines.ib.pacer import Pacer, Slot
from ktrdr_pipelines.ib.queries import (
    bar_query,
    head_query,
    paced_bars,
    paced_contract,
    paced_head,
)

HOLD_FACTOR = 1.5
"""How many deadlines long an unanswered request keeps its slot: the gateway may work on it."""

_NO_HEAD = 162
_PLACES_FULL = 322
T = TypeVar("T")


@asynccontextmanager
async def open_source(
    config: GatewayConfig,
    operation: str = "cli",
    *,
    batch_size: int = 1,
    pacer: Pacer | None = None,
) -> AsyncIterator["GatewaySource"]:
    """Connect to a gateway for one operation and give it as a source; all is undone at the end.

    Args:
        config: the gateway.
        operation: a value of ``ib.connection.Operation``.
        batch_size: how many series will be asked for.
        pacer: the budget; None takes the one that all processes share for this gateway.

    Raises:
        GatewayError: on entering: no connection came about.
    """
    strategy = IbConnectionStrategy(config)
    budget = Pacer.of(config) if pacer is None else pacer
    try:
        async with strategy.get_connection_for_operation(operation, batch_size) as connection:
            yield GatewaySource(connection, budget, timeout_s=config.timeout_s)
    finally:
        if pacer is None:
            budget.close()
        await strategy.cleanup_temporary_connections()


class GatewaySource:
    """Bars of one connected gateway; a ``core.answers.BarSource``."""

    def __init__(self, connection: GatewayConnection, pacer: Pacer, *, timeout_s: float) -> None:
        self._connection, self._pacer = connection, pacer
        self._hold_s = timeout_s * HOLD_FACTOR
        self._ids: dict[str, int] = {}
        self._resolving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        connection.on_pacing(self._note_pacing)

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
    def account_hash(self) -> str:
        """A one-way hash of the account, for the audit."""
        return self._connection.account_hash

    def now(self) -> datetime:
        """Give the gateway's time."""
        return self._connection.now()

    async def health(self) -> Health:
        """Say how the connection is, by a round trip that asks for no data."""
        return await self._connection.health()

    async def contract_id(self, instrument: Instrument) -> int:
        """Give the gateway's id of the instrument's contract; asked once per connection.

        Raises:
            ContractUnknownError: there is none.
            ContractAmbiguousError: there are several; the text lists them.
            GatewayError: no answer, or another one.
        """
        asked = described(instrument)
        async with self._resolving[asked]:
            if asked not in self._ids:
                self._ids[asked] = await self._ask_contract_id(instrument, asked)
        return self._ids[asked]

    async def bars(self, request: BarRequest) -> Answer | NoData:
        """Ask for bars.

        Raises:
            GatewayError: no answer, a refusal, or an answer that cannot be.
        """
        query = bar_query(request, await self.contract_id(request.series.instrument))
        self._connection.refresh_clock()
        try:
            fields = await self._paced(
                query.asked, paced_bars(request, query), lambda: self._connection.history(query)
            )
        except NoDataError as error:
            return NoData(request, error.came)
        with _bad_answer(query.asked):
            return _answer(request, history_of(fields))

    async def head(self, instrument: Instrument) -> datetime | None:
        """Give the start of the oldest data, or None where the gateway cannot say.

        Raises:
            GatewayError: no answer, or a refusal that is about more than this data.
        """
        query = head_query(instrument, await self.contract_id(instrument))
        try:
            fields = await self._paced(
                query.asked, paced_head(query), lambda: self._connection.head(query)
            )
        except (RequestRejectedError, BadAnswerError) as error:
            if error.code == _NO_HEAD:
                return None
            raise
        with _bad_answer(query.asked):
            return head_of(fields[2])

    async def _ask_contract_id(self, instrument: Instrument, asked: str) -> int:
        contract = contract_for(instrument, instrument.contract_id)
        frames = await self._paced(
            asked, paced_contract(asked), lambda: self._connection.contracts(contract, asked)
        )
        with _bad_answer(asked):
            version = self._connection.server_version
            candidates = [candidate_of(fields, version) for fields in frames]
        return chosen(instrument, candidates).contract_id

    async def _paced(self, asked: str, request: PacedRequest, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask when the link is there and the budget allows it.

        What the gateway may still be working on keeps its slot for a while.
        """
        await self._connection.wait_for_link(asked)
        async with self._pacer.slot(request, hold_s=self._hold_s) as slot:
            try:
                answer = await ask()
            except GatewayError as error:
                self._settle(slot, error)
                raise
            slot.release()
        return answer

    def _settle(self, slot: Slot, error: GatewayError) -> None:
        """Decide what a failed request means for the budget."""
        if isinstance(error, ConnectionLostError):
            slot.cut()
        elif not isinstance(error, GatewaySilentError):
            slot.release()
        if isinstance(error, PacingError) and error.code != _PLACES_FULL:
            self._note_pacing()

    def _note_pacing(self) -> None:
        self._pacer.pause_after_violation()


def _answer(request: BarRequest, history: History) -> Answer | NoData:
    if history.count == 0:
        return NoData(request, "the gateway answered with 0 bars")
    return Answer(request, bars_of(history, request.series), reach_of(history))


@contextmanager
def _bad_answer(asked: str) -> Iterator[None]:
    """Make what cannot be read an error of the gateway's."""
    try:
        yield
    except (ValueError, IndexError, OverflowError) as error:
        raise BadAnswerError(
            asked, came=f"an answer that cannot be: {error}", remedy="Nothing of it is kept."
        ) from error
