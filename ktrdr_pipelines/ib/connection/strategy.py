"""Who gets which connection to the gateway, and why none came about.

Why no connection came about: a typed error with a hint for each ending.

Who gets which connection to the gateway: one strategy for all operations.

- api: one shared connection, kept for the next call.
- gap_filler: one of its own, kept.
- batch: one for the whole batch, closed with it.
- cli (and data_manager, tests): a temporary one, closed after use.

Decide, then act: ``_connection_of`` chooses, the rest connects.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    GatewayError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    UsageError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.accounts import Logins
from ktrdr_pipelines.ib.connection.client_ids import HELD_HINT, ClientIdLease, ClientIdLeases
from ktrdr_pipelines.ib.connection.connection import GatewayConnection
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.protocol.transport import DisconnectReason, TransportError
from ktrdr_pipelines.limits import IbLimitsRegistry

_MOST_NAMED = 5


def connect_error(config: GatewayConfig, client_id: int, error: TransportError) -> GatewayError:
    """Translate why no connection came about."""
    what = f"connect to {config.gateway} as client {client_id}"
    kind, hint = _CONNECT_ERRORS[error.disconnect_reason]
    made = kind(what, reason=str(error), hint=hint.format(port=config.port))
    if error.disconnect_reason is DisconnectReason.VERSION:
        made.retry = False
    if error.disconnect_reason is DisconnectReason.ID_IN_USE:
        made.code = 326
    return made


def ids_refused(config: GatewayConfig, client_ids: list[int]) -> ClientIdInUseError:
    """Make the error of a walk over client ids that the gateway called "in use" one by one."""
    shown = ", ".join(map(str, client_ids[-_MOST_NAMED:]))
    named = f"client id{'s' if len(client_ids) > 1 else ''} {shown}"
    if len(client_ids) > _MOST_NAMED:
        named = f"{len(client_ids)} client ids, of them {shown},"
    return ClientIdInUseError(
        f"connect to {config.gateway}",
        reason=f"{named} {'are' if len(client_ids) > 1 else 'is'} in use",
        hint=HELD_HINT,
        code=326,
    )


_START = (
    "Start IB Gateway or TWS, log in, and enable the API on port {port}; without an account, "
    "use 'ktrdr simulate --port {port}'."
)
_CONNECT_ERRORS: dict[DisconnectReason, tuple[type[GatewayError], str]] = {
    DisconnectReason.NO_NAME: (
        GatewayUnreachableError,
        "Check IB_HOST: it is the name or the address of a machine, without a port.",
    ),
    DisconnectReason.REFUSED: (GatewayUnreachableError, _START),
    DisconnectReason.NO_ROUTE: (
        GatewayUnreachableError,
        "Check IB_HOST, IB_PORT and the firewall. " + _START,
    ),
    DisconnectReason.CLOSED: (
        GatewayUnreachableError,
        "Log the gateway in, and look at its API settings: it may not trust this address.",
    ),
    DisconnectReason.NO_ANSWER: (
        GatewayTimeoutError,
        "The gateway hangs, is in its nightly reset, or waits for a click: look at its window.",
    ),
    DisconnectReason.ID_IN_USE: (ClientIdInUseError, HELD_HINT),
    DisconnectReason.GARBAGE: (
        GatewayUnreachableError,
        "Check IB_PORT: something else listens there.",
    ),
    DisconnectReason.VERSION: (
        GatewayUnreachableError,
        "Install a gateway that speaks versions 157 to 178, such as the current stable one.",
    ),
    DisconnectReason.REQUESTED: (GatewayUnreachableError, ""),
}


_log = logging.getLogger(__name__)


class Operation(StrEnum):
    """What a connection is for; the value names the range of its client ids."""

    API = "api"
    GAP_FILLER = "gap_filler"
    BATCH = "batch"
    CLI = "cli"
    DATA_MANAGER = "data_manager"
    TESTS = "tests"


KEPT = frozenset({Operation.API, Operation.GAP_FILLER})
"""Operations whose connection stays open for the next use."""


@dataclass(eq=False, slots=True)
class _SharedConnection:
    """A connection with its lease, and how many use it now."""

    operation: Operation
    connection: GatewayConnection | None = None
    lease: ClientIdLease | None = None
    users: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __str__(self) -> str:
        number = "-" if self.lease is None else self.lease.client_id
        return f"{self.operation} id {number} ({self.users} using)"


class IbConnectionStrategy:
    """Gives every operation the connection that suits it, and closes what is no longer needed.

    One strategy serves one event loop; its connections refuse to be used elsewhere.

    Args:
        config: the gateway.
        leases: the client ids of that gateway; None makes those of the config's folder.
        rate_limiter: the budget that every message waits for; None makes that of the config,
            which is open while a connection is.
        sleep: waits between tries of client ids.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        leases: ClientIdLeases | None = None,
        rate_limiter: RateLimiter | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._leases = leases or ClientIdLeases(config.folder)
        self._rate_limiter, self._owns_rate_limiter = (
            rate_limiter or RateLimiter.of(config),
            rate_limiter is None,
        )
        self._sleep = sleep
        self._connections: list[_SharedConnection] = []

    def __repr__(self) -> str:
        held = ", ".join(map(str, self._connections)) or "nothing open"
        return f"IbConnectionStrategy({self._config.gateway}: {held})"

    def get_connection_for_operation(
        self, operation_type: str, batch_size: int = 1
    ) -> AbstractAsyncContextManager[GatewayConnection]:
        """Give the connection for an operation, for as long as the context lasts.

        An api call for more than one series is a batch: it must not hold up the shared connection.

        Raises:
            UsageError: no such operation, or a batch of nothing.
            GatewayError: on entering: no connection came about.
        """
        if operation_type not in set(Operation) or batch_size < 1:
            raise UsageError(
                f"a connection for {operation_type!r}, batch of {batch_size}",
                reason=f"operations are {', '.join(Operation)}, batches at least 1",
            )
        operation = Operation(operation_type)
        if operation is Operation.API and batch_size > 1:
            operation = Operation.BATCH
        return self._used(operation)

    async def cleanup_temporary_connections(self) -> int:
        """Close every connection that nobody uses now; give their number."""
        idle = [shared for shared in self._connections if shared.users == 0]
        for shared in idle:
            await self._close(shared)
        return len(idle)

    @asynccontextmanager
    async def _used(self, operation: Operation) -> AsyncIterator[GatewayConnection]:
        shared = self._connection_of(operation)
        shared.users += 1
        try:
            yield await self._connected(shared)
        finally:
            shared.users -= 1
            if shared.users == 0 and self._is_done_with(shared):
                await self._close(shared)

    def _connection_of(self, operation: Operation) -> _SharedConnection:
        """Choose a kept place of the operation, or make a new one."""
        for shared in self._connections:
            if shared.operation is operation and operation in KEPT:
                return shared
        shared = _SharedConnection(operation)
        self._connections.append(shared)
        return shared

    @staticmethod
    def _is_done_with(shared: _SharedConnection) -> bool:
        alive = shared.connection is not None and shared.connection.is_up
        return shared.operation not in KEPT or not alive

    async def _connected(self, shared: _SharedConnection) -> GatewayConnection:
        async with shared.opening:
            if shared.connection is not None and shared.connection.is_up:
                return shared.connection
            await self._let_go(shared)
            shared.lease, shared.connection = await self._connect(shared.operation)
            return shared.connection

    async def _connect(self, operation: Operation) -> tuple[ClientIdLease, GatewayConnection]:
        """Connect under the first id that the gateway takes; few tries, paused.

        Where it refused that many a short while ago, to whichever process, one more tells enough:
        a gateway that is asked again and again refuses everyone (grade L).
        """
        ids = self._config.client_id_ranges[operation]
        attempts = IbLimitsRegistry.CLIENT_ID_ATTEMPTS.value
        if len(self._leases.refused(ids)) >= attempts:
            attempts = 1
        refused: list[int] = []
        while True:
            lease = self._leases.lease(ids, skipped=refused)
            try:
                return lease, await self._open(lease.client_id)
            except ClientIdInUseError as error:
                self._leases.quarantine(lease.client_id)
                refused.append(lease.client_id)
                lease.release()
                if len(refused) >= min(attempts, ids[1] - ids[0] + 1):
                    known = {*self._leases.refused(ids), *refused}
                    raise ids_refused(self._config, sorted(known)) from error.__cause__
            except BaseException:
                lease.release()
                raise
            await self._sleep(IbLimitsRegistry.CLIENT_ID_PAUSE_S.value)

    async def _open(self, client_id: int) -> GatewayConnection:
        config = self._config
        connection = GatewayConnection(
            config.gateway,
            client_id=client_id,
            timeout_s=config.timeout_s,
            await_permit=self._rate_limiter.message,
            logins=Logins(config.state_dir),
            outage_s=config.outage_s,
        )
        try:
            await connection.open(config.host, config.port)
        except TransportError as error:
            await connection.close()
            raise connect_error(config, client_id, error) from error
        except BaseException:
            await connection.close()
            raise
        _log.info("connected to %s as client %d", config.gateway, client_id)
        return connection

    async def _close(self, shared: _SharedConnection) -> None:
        if shared in self._connections:
            self._connections.remove(shared)
        try:
            await self._let_go(shared)
        finally:
            if self._owns_rate_limiter and not self._connections:
                self._rate_limiter.close()

    @staticmethod
    async def _let_go(shared: _SharedConnection) -> None:
        """Close a place's connection; its id is free only when the socket is gone."""
        try:
            if shared.connection is not None:
                await shared.connection.close()
        finally:
            if shared.lease is not None:
                shared.lease.release()
            shared.connection = shared.lease = None
