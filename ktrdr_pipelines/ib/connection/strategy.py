"""Which connection to the gateway each operation uses, and why one could not be made.

- api: one shared connection, kept for the next call.
- gap_filler: one of its own, kept.
- batch: one for the whole batch, closed with it.
- cli (and data_manager, tests): a temporary one, closed after use.

A connection that could not be made is a typed error with a hint for each disconnect reason.

Not here: the connection itself (``ib.connection.connection``), leases of client ids
(``ib.connection.client_ids``).
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
_log = logging.getLogger(__name__)


def connect_error(config: GatewayConfig, client_id: int, error: TransportError) -> GatewayError:
    """Return the typed error, with a hint, for a connection that could not be made."""
    what = f"connect to {config.gateway} as client {client_id}"
    kind, hint = _CONNECT_ERRORS[error.disconnect_reason]
    made = kind(what, reason=str(error), hint=hint.format(port=config.port))
    if error.disconnect_reason is DisconnectReason.VERSION:
        made.retry = False
    if error.disconnect_reason is DisconnectReason.ID_IN_USE:
        made.code = 326
    return made


def ids_refused(config: GatewayConfig, client_ids: list[int]) -> ClientIdInUseError:
    """Return the error for client ids that the gateway called "in use" one after another."""
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
        "Check IB_HOST: it must be the name or address of a machine, without a port.",
    ),
    DisconnectReason.REFUSED: (GatewayUnreachableError, _START),
    DisconnectReason.NO_ROUTE: (
        GatewayUnreachableError,
        "Check IB_HOST, IB_PORT and the firewall. " + _START,
    ),
    DisconnectReason.CLOSED: (
        GatewayUnreachableError,
        "Log in to the gateway and check its API settings: it may not trust this address.",
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
    """A connection with its lease, and how many contexts use it."""

    operation: Operation
    connection: GatewayConnection | None = None
    lease: ClientIdLease | None = None
    users: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __str__(self) -> str:
        number = "-" if self.lease is None else self.lease.client_id
        return f"{self.operation} id {number} ({self.users} using)"


class IbConnectionStrategy:
    """Provides the connection that suits each operation, and closes those no longer needed.

    One strategy serves one event loop; its connections raise if used elsewhere.

    Args:
        config: the gateway.
        leases: the client ids of that gateway; None uses those of the config's folder.
        rate_limiter: the budget that every message waits for; None creates that of the config,
            which is open while a connection is.
        sleep: waits between attempts with different client ids.
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
        """Return the connection for an operation, for as long as the context lasts.

        An api call for more than one series is a batch: it must not block the shared connection.

        Args:
            operation_type: a value of ``Operation``.
            batch_size: how many series will be requested.

        Raises:
            UsageError: there is no such operation, or the batch is empty.
            GatewayError: on entering: no connection was made.
            DiskError: on entering: the state folder cannot be used.
        """
        if operation_type not in set(Operation) or batch_size < 1:
            raise UsageError(
                f"connect for operation {operation_type!r}, batch size {batch_size}",
                reason=f"operations are {', '.join(Operation)}, and batch sizes at least 1",
            )
        operation = Operation(operation_type)
        if operation is Operation.API and batch_size > 1:
            operation = Operation.BATCH
        return self._used(operation)

    async def cleanup_temporary_connections(self) -> int:
        """Close every connection that is not in use; return their number."""
        idle = [shared for shared in self._connections if shared.users == 0]
        for shared in idle:
            await self._close(shared)
        return len(idle)

    @asynccontextmanager
    async def _used(self, operation: Operation) -> AsyncIterator[GatewayConnection]:
        kept = self._connections if operation in KEPT else []
        shared = next((one for one in kept if one.operation is operation), None)
        if shared is None:
            shared = _SharedConnection(operation)
            self._connections.append(shared)
        shared.users += 1
        try:
            async with shared.opening:
                connection = shared.connection
                if connection is None or not connection.is_up:
                    await self._let_go(shared)
                    shared.lease, connection = await self._connect(operation)
                    shared.connection = connection
            yield connection
        finally:
            shared.users -= 1
            is_up = shared.connection is not None and shared.connection.is_up
            if shared.users == 0 and (operation not in KEPT or not is_up):
                await self._close(shared)

    async def _connect(self, operation: Operation) -> tuple[ClientIdLease, GatewayConnection]:
        """Connect under the first client id that the gateway accepts, with a few paused attempts.

        If it has recently refused that many ids, of any process, there is one attempt only: a
        gateway that is tried again and again refuses every client (grade L).
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
            except BaseException:  # a cancelled attempt must release its id, too
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
        except BaseException:  # a cancelled attempt must close its socket, too
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
        """Close a connection and release its lease; the id is free only when the socket is gone."""
        try:
            if shared.connection is not None:
                await shared.connection.close()
        finally:
            if shared.lease is not None:
                shared.lease.release()
            shared.connection = shared.lease = None
