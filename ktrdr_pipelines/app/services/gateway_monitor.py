"""Check a gateway: once, over a connection of its own, or all the time, over one that is kept.

A check is a round trip that requests the gateway's time. It costs no request budget, and no order
or request for data is ever sent from here. ``GatewayMonitor`` serves programs that run for long and
must answer at once whether the gateway is there.

Not here: what a service makes of it (``app.services.ib_service``), polling an absent gateway so
that runs may go on (``defs.sensors.gateway_sensor``).
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Self

from ktrdr_pipelines.app.views.documents import ErrorDocument
from ktrdr_pipelines.app.views.ib_documents import HealthDocument
from ktrdr_pipelines.clock import boot_time_s, system_now
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ConnectionLostError,
    ExitCode,
    GatewayError,
    GatewayRestingError,
    GatewayTimeoutError,
    KtrdrError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.connection import GatewayConnection
from ktrdr_pipelines.ib.connection.gateway_status import Health, with_vitals
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy, Operation
from ktrdr_pipelines.ib.pacing.circuit_breaker import BreakerState
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, DisconnectReason, TransportError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.settings import Settings

EVERY_S: Final = 15.0
"""Seconds between two checks of a kept connection."""

_LONGEST_CHECK_S: Final = 15.0
"""Seconds that a check of the monitor may take: a gateway that hangs is found out no later."""

_LONGEST_DROP_S: Final = _LONGEST_CHECK_S + 5
"""Seconds to wait for the end of a connection that is dropped: a check may be in flight."""

_SHORT_CHECK_S: Final = 5.0
"""Seconds that each step of a check may take for which a caller waits."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The result of checking a gateway step by step, and the error that ended the check."""

    document: HealthDocument
    error: KtrdrError | None = None


async def check_health(config: GatewayConfig, operation: Operation = Operation.CLI) -> HealthReport:
    """Connect, request the time, and disconnect; a failure of the gateway is part of the report.

    Raises:
        DiskError: the state folder cannot be used.
    """
    strategy = IbConnectionStrategy(config)
    started_s = boot_time_s()
    try:
        async with strategy.get_connection_for_operation(operation) as connection:
            connect_s = boot_time_s() - started_s
            seen = await connection.health()
            with closing(RateLimiter.of(config)) as budget:  # shared by all processes
                seen = with_vitals(seen, budget.vitals())
            return _reached(connection, seen, connect_s)
    except GatewayError as error:
        return _unreached(config.gateway, error)
    finally:
        await strategy.cleanup_temporary_connections()


def _reached(connection: GatewayConnection, seen: Health, connect_s: float) -> HealthReport:
    trip_s, age_s = seen.round_trip_s, seen.last_answer_age_s
    is_good = trip_s is not None and not seen.troubles
    return HealthReport(
        HealthDocument(
            complete=is_good,
            exit_code=int(ExitCode.DONE if is_good else ExitCode.FAILED),
            gateway=connection.gateway,
            good=is_good,
            tcp=True,
            handshake=True,
            connect_ms=_ms(connect_s),
            round_trip_ms=None if trip_s is None else _ms(trip_s),
            clock_offset_s=round(seen.clock_offset_s, 1) + 0.0,  # prints 0 instead of -0
            origin=str(connection.origin),
            client_id=connection.client_id,
            server_version=connection.server_version,
            last_answer_age_s=None if age_s is None else round(age_s, 1),
            concurrency=seen.concurrency,
            breaker=seen.breaker,
            paused_s=round(seen.paused_s, 1),
            farms=tuple(map(str, seen.farms)),
            troubles=seen.troubles,
        )
    )


def _unreached(gateway: str, error: KtrdrError) -> HealthReport:
    """Return the report on a failed connection, with the steps that succeeded."""
    cause = error.__cause__
    disconnect_reason = cause.disconnect_reason if isinstance(cause, TransportError) else None
    was_attempted = isinstance(error, GatewayError) and not isinstance(
        error, ClientIdInUseError | GatewayRestingError
    )
    is_known = disconnect_reason is not None or was_attempted
    shook = disconnect_reason in {None, DisconnectReason.ID_IN_USE}
    return HealthReport(
        HealthDocument(
            complete=False,
            exit_code=int(ExitCode.FAILED),
            gateway=gateway,
            good=False,
            tcp=disconnect_reason not in NO_LISTENER if is_known else None,
            handshake=shook if is_known else None,
            error=ErrorDocument.of(error),
        ),
        error,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


@dataclass(frozen=True, slots=True)
class GatewaySnapshot:
    """What the monitor knows of the gateway; moments are real ones, in UTC.

    ``connected`` tells whether the last check succeeded and the connection has not ended since.
    ``report`` is the last check, None before the first has ended; ``checked_at`` is when that was.
    ``next_try_at`` is when the monitor connects again, None while it is connected. ``connections``
    and ``failures`` count since the monitor was made: connections that were made, and attempts to
    make one that failed.
    """

    host: str
    port: int
    connected: bool = False
    client_id: int | None = None
    connected_at: datetime | None = None
    report: HealthReport | None = None
    checked_at: datetime | None = None
    next_try_at: datetime | None = None
    connections: int = 0
    failures: int = 0
    last_connect_at: datetime | None = None
    last_disconnect_at: datetime | None = None

    def uptime_s(self, now: datetime) -> float:
        """Return the seconds for which the present connection has been up; 0 without one."""
        if self.connected_at is None:
            return 0.0
        return max((now - self.connected_at).total_seconds(), 0.0)


async def snapshot_now(config: GatewayConfig, clock: Callable[[], datetime]) -> GatewaySnapshot:
    """Return the result of a check made now, for those that keep no monitor.

    Raises:
        DiskError: the state folder cannot be used.
    """
    config = replace(config, timeout_s=min(config.timeout_s, _SHORT_CHECK_S))
    report = await check_health(config, Operation.API)
    return GatewaySnapshot(
        config.host,
        config.port,
        connected=report.document.responds,
        client_id=report.document.client_id,
        report=report,
        checked_at=clock(),
    )


class GatewayMonitor:
    """Keeps one connection of operation ``api`` in a thread of its own, and checks it regularly.

    If that operation has a single client id, the connection is one of operation ``cli``.

    A connection that cannot be made is tried again after growing pauses, and never while the
    circuit breaker of all processes is open. A connection that ends, and a gateway that does not
    respond to a check, count as lost. The failures of the monitor do not count for the breaker: an
    idle service must not stop the requests of others.

    All methods may be called from any thread.

    Args:
        settings: returns the settings to use; called before each check. When another gateway is
            set, the monitor disconnects and connects to that one.
        every_s: seconds between two checks.
        clock: returns real time.
        boot: returns the clock of the shared circuit breaker.
        sleep: how to wait.

    Raises:
        SettingsError: the settings are wrong.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], datetime] = system_now,
        boot: Callable[[], float] = boot_time_s,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._every_s, self._clock, self._boot, self._sleep = every_s, clock, boot, sleep
        self._guard, self._dropping = threading.Lock(), threading.Lock()
        self._ended = threading.Condition()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._woken: asyncio.Event | None = None
        self._closes, self._reconnects = False, False
        config = GatewayConfig.from_settings(settings())
        self._seen = GatewaySnapshot(config.host, config.port)

    def __repr__(self) -> str:
        state = "connected" if self._seen.connected else "not connected"
        return f"GatewayMonitor({self._seen.host}:{self._seen.port}, {state})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the thread, and return at once; a monitor that runs is left as it is."""
        with self._guard:
            if self._thread is not None and self._thread.is_alive():
                return
            self._closes = self._reconnects = False
            # A daemon: a program that forgets to close the monitor can still end.
            self._thread = threading.Thread(
                target=self._run, name="ktrdr gateway monitor", daemon=True
            )
            self._thread.start()

    def snapshot(self) -> GatewaySnapshot:
        """Return what is known of the gateway, at once."""
        return self._seen

    def reconnect(self) -> None:
        """Drop the connection and connect again now, with the settings of now; return at once."""
        self._reconnects = True
        self._from_outside(self._wake)

    def drop(self) -> int | None:
        """Close the connection that is kept, and have the monitor connect anew.

        A check in flight is finished first, and its end is waited for. Return the client id that
        the connection had; None if there was none, or if it is still open after
        ``_LONGEST_DROP_S``.
        """
        with self._dropping:  # so that no two calls report one connection
            before = self._seen
            self.reconnect()
            if before.connected_at is None:
                return None
            with self._ended:
                is_closed = self._ended.wait_for(
                    lambda: (
                        self._seen.connected_at is None
                        or self._seen.connections != before.connections
                    ),
                    timeout=_LONGEST_DROP_S,
                )
            return before.client_id if is_closed else None

    def close(self) -> None:
        """End the connection and the thread; may be repeated, and before ``start``."""
        with self._guard:
            self._closes = True
            self._from_outside(self._cancel)
            if self._thread is not None:
                self._thread.join()
                self._thread = None

    def _from_outside(self, act: Callable[[], None]) -> None:
        """Run something in the monitor's loop, if that runs."""
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: the thread has ended
                loop.call_soon_threadsafe(act)

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        try:
            with suppress(asyncio.CancelledError):
                asyncio.run(self._main())
        except Exception:
            _log.exception("the gateway monitor ended")
            raise
        finally:
            self._loop = self._task = self._woken = None
            self._record_end()

    async def _main(self) -> None:
        self._woken = asyncio.Event()
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        failures = 0
        while not self._closes:  # closed before the loop could be told
            self._reconnects, connections = False, self._seen.connections
            try:
                config = self._config()
                self._see_gateway(config)
                await self._connected(config)
                failures = 0
            except KtrdrError as error:
                was_connected = self._seen.connections > connections
                failures = 1 if was_connected else failures + 1
                pause_s = self._pause_s(error, failures)
                self._record_failure(error, pause_s, was_connected=was_connected)
                await self._wait(pause_s)

    def _config(self) -> GatewayConfig:
        config = GatewayConfig.from_settings(self._settings())
        return replace(config, timeout_s=min(config.timeout_s, _LONGEST_CHECK_S))

    async def _connected(self, config: GatewayConfig) -> None:
        """Connect, and check the connection until another one is wanted.

        Raises:
            KtrdrError: no connection was made, or the gateway does not respond any more.
        """
        with closing(RateLimiter.of(config)) as budget:
            self._refuse_open_breaker(config, budget)
            strategy = IbConnectionStrategy(config, rate_limiter=budget)
            try:
                begun_s = boot_time_s()
                async with strategy.get_connection_for_operation(_operation(config)) as connection:
                    connect_s = boot_time_s() - begun_s
                    self._record_connection(connection)
                    budget.note_response()
                    await self._check(config, connection, budget, connect_s)
            finally:
                self._record_end()
                await strategy.cleanup_temporary_connections()

    def _refuse_open_breaker(self, config: GatewayConfig, budget: RateLimiter) -> None:
        breaker = budget.vitals().breaker
        wait_s = breaker.until - self._boot()
        if breaker.state is BreakerState.OPEN and wait_s > 0:
            error = GatewayRestingError(
                f"connect to {config.gateway}",
                reason=breaker.why,
                hint=f"The next attempt is in {wait_s:.0f} s; 'ktrdr doctor' checks it now",
            )
            error.retry_in_s = wait_s
            raise error

    async def _check(
        self,
        config: GatewayConfig,
        connection: GatewayConnection,
        budget: RateLimiter,
        connect_s: float,
    ) -> None:
        """Check a connection until another one is wanted.

        Raises:
            GatewayError: it ended, or the gateway does not respond.
        """
        while True:
            seen = with_vitals(await connection.health(), budget.vitals())
            if not seen.connected or seen.round_trip_s is None:
                raise _lost(config, seen)
            report = _reached(connection, seen, connect_s)
            self._seen = replace(
                self._seen, connected=True, report=report, checked_at=self._clock()
            )
            await self._wait(self._every_s, connection.news)
            if self._reconnects or not _is_same(config, self._config()):
                return

    async def _wait(
        self, seconds: float, news: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Wait for a time, or until ``reconnect`` is called or there is news of the gateway."""
        assert self._woken is not None  # noqa: S101  (set before anything waits)
        waits = [self._sleep(seconds), self._woken.wait()]
        tasks = {asyncio.ensure_future(one) for one in (*waits, *([news()] if news else ()))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._woken.clear()

    @staticmethod
    def _pause_s(error: KtrdrError, failures: int) -> float:
        pause_s = IbLimitsRegistry.CONNECT_PAUSE_S.value.delay_s(failures)
        return max(pause_s, error.retry_in_s) if isinstance(error, GatewayError) else pause_s

    def _see_gateway(self, config: GatewayConfig) -> None:
        if (self._seen.host, self._seen.port) != (config.host, config.port):
            # What was seen of another gateway says nothing about this one.
            self._seen = replace(
                self._seen, host=config.host, port=config.port, report=None, checked_at=None
            )

    def _record_connection(self, connection: GatewayConnection) -> None:
        now = self._clock()
        self._seen = replace(
            self._seen,
            client_id=connection.client_id,
            connected_at=now,
            last_connect_at=now,
            next_try_at=None,
            connections=self._seen.connections + 1,
        )

    def _record_end(self) -> None:
        if self._seen.connected_at is not None:
            self._seen = replace(
                self._seen,
                connected=False,
                client_id=None,
                connected_at=None,
                last_disconnect_at=self._clock(),
            )
            with self._ended:
                self._ended.notify_all()

    def _record_failure(self, error: KtrdrError, pause_s: float, *, was_connected: bool) -> None:
        now = self._clock()
        was_attempted = not (was_connected or isinstance(error, GatewayRestingError))
        gateway = f"{self._seen.host}:{self._seen.port}"
        self._seen = replace(
            self._seen,
            report=_unreached(gateway, error),
            checked_at=now,
            next_try_at=now + timedelta(seconds=pause_s),
            failures=self._seen.failures + was_attempted,
        )


def _operation(config: GatewayConfig) -> Operation:
    """Return whose client ids the monitor uses: the API's only id is left to loads."""
    first, last = config.client_id_ranges[Operation.API]
    return Operation.API if first < last else Operation.CLI


def _is_same(used: GatewayConfig, wanted: GatewayConfig) -> bool:
    """Return whether a connection made with one configuration suits another."""
    return (used.host, used.port, used.state_dir) == (wanted.host, wanted.port, wanted.state_dir)


def _lost(config: GatewayConfig, seen: Health) -> GatewayError:
    what = f"request the time of {config.gateway}"
    if not seen.connected:
        return ConnectionLostError(what, reason="the gateway ended the connection")
    reason = f"no response in {config.timeout_s:g} s"
    if seen.troubles:
        reason = f"{reason}, and the gateway says: {'; '.join(seen.troubles)}"
    return GatewayTimeoutError(
        what, reason=reason, hint="Check the gateway's window; it may be in its nightly reset"
    )
