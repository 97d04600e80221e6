"""One connection to a gateway: requests with deadlines, its clock, and the frames that arrive.

``Dispatcher`` handles the incoming frames: responses to pending requests, the time, errors and
notices. ``GatewayConnection`` sends requests and waits for their responses.

Not here: sending bytes (``ib.protocol.transport``), the request budget (``ib.source``), which
connection an operation uses (``ib.connection.strategy``).
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from functools import partial
from typing import ClassVar, Generic, TypeVar

from ktrdr_pipelines.clock import boot_time_s, system_now
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.errors import ConnectionLostError, GatewayTimeoutError, OutageError
from ktrdr_pipelines.ib.connection.accounts import Logins, origin_of
from ktrdr_pipelines.ib.connection.gateway_status import (
    GOOD_NEWS,
    GatewayClock,
    GatewayStatus,
    Health,
    Probe,
)
from ktrdr_pipelines.ib.connection.notices import Notices
from ktrdr_pipelines.ib.connection.pending_requests import PendingRequest, PendingRequests, Topic
from ktrdr_pipelines.ib.pacing.rate_limiter import OnWait, ignore_wait
from ktrdr_pipelines.ib.pacing.rules import RequestKind
from ktrdr_pipelines.ib.protocol.bar_rows import Message, fields_of, texts_of
from ktrdr_pipelines.ib.protocol.error_codes import (
    NO_REQUEST,
    error_frame,
    lasting_farm_outage,
    lasting_outage,
)
from ktrdr_pipelines.ib.protocol.requests import ContractQuery, HistoryQuery, HistoryReply
from ktrdr_pipelines.ib.protocol.transport import (
    AwaitPermit,
    DisconnectReason,
    Transport,
    TransportError,
)
from ktrdr_pipelines.limits import CodeClass

_DROPPED = frozenset({502, 504, 507, 1300})
_SCHEDULE = "106"
_VERSION_WITHOUT_PREFIX = 164
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Dispatcher:
    """Handles the frames that arrive on one connection.

    ``time_received`` is set when the gateway states its time; ``on_pacing`` is called on a pacing
    error about all requests together; ``answered_at_s`` is when it last responded to a data
    request.
    """

    def __init__(self, server_version: Callable[[], int]) -> None:
        self.pending = PendingRequests(1)
        self.status = GatewayStatus()
        self.notices = Notices()
        self.clock = GatewayClock()
        self.time_received = asyncio.Event()
        self._news = asyncio.Event()
        self.on_pacing: Callable[[], None] = lambda: None
        self.answered_at_s: float | None = None
        self._server_version = server_version

    def take(self, fields: list[str]) -> None:
        """Handle a frame; kinds of messages that no request needs are dropped.

        Raises:
            ValueError, IndexError: it is no frame; the connection can no longer be trusted.
        """
        if (handler := self._handlers.get(int(fields[0]))) is not None:
            handler(self, fields)

    async def news(self) -> None:
        """Wait until the gateway reports on its own connections, or the connection ends."""
        await self._news.wait()

    def end(self, why: str) -> None:
        """Fail all pending requests: the connection is gone."""
        self.pending.fail_all(ConnectionLostError, why)
        self.time_received.set()
        self.announce_news()

    def _take_error(self, fields: list[str]) -> None:
        frame = error_frame(fields)
        self.notices.see_text(frame)
        if frame.request_id != NO_REQUEST and self.pending.refuse(frame) is not None:
            return
        _log.info("the gateway says %s", frame)
        over = self.status.take(frame, after=self.pending.last_number)
        if over:
            reason = f"the gateway had lost its connection ({frame})"
            lost = partial(self.status.was_affected, over=over)
            self.pending.fail_all(OutageError, reason, code=frame.code, those=lost)
        elif frame.code_class is CodeClass.PACING:
            self.on_pacing()
        elif frame.code in _DROPPED:
            self.pending.fail_all(ConnectionLostError, str(frame), code=frame.code)
        self.announce_news()

    def announce_news(self) -> None:
        """Wake the tasks that wait for a report of the gateway on its own connections."""
        self._news.set()
        self._news = asyncio.Event()

    def _record_response(self, pending: PendingRequest | None) -> None:
        if pending is not None:
            self.answered_at_s = boot_time_s()
            self.status.answered(pending)
            self.announce_news()

    def _take_contract(self, fields: list[str]) -> None:
        number = fields[2] if self._server_version() < _VERSION_WITHOUT_PREFIX else fields[1]
        self.pending.part(Topic.CONTRACT, int(number), fields)

    def _take_contracts_end(self, fields: list[str]) -> None:
        self._record_response(self.pending.end(Topic.CONTRACT, int(fields[2])))

    def _take_time(self, fields: list[str]) -> None:
        self.clock.see(int(fields[2]))
        self.time_received.set()

    def _take_answer(self, fields: list[str]) -> None:
        """Handle a one-message response; a SCHEDULE message responds to a request for bars."""
        topic = Topic.BARS if fields[0] == _SCHEDULE else Topic(fields[0])
        self._finish(topic, int(fields[1]), fields)

    def take_bars(self, message: bytes) -> None:
        """Handle message 17 in bytes.

        Raises:
            ValueError: it names no request; the connection can no longer be trusted.
        """
        number_end = message.find(b"\0", message.find(b"\0") + 1)
        _, number = texts_of(message[: number_end + 1])
        self._finish(Topic.BARS, int(number), message)

    def _finish(self, topic: Topic, number: int, message: Message) -> None:
        """Handle a message that is all of a response."""
        pending = self.pending.part(topic, number, message)
        if pending is not None:
            self.pending.finish(pending)
        self._record_response(pending)

    _handlers: ClassVar[dict[int, Callable[["Dispatcher", list[str]], None]]] = {
        4: _take_error,
        10: _take_contract,
        17: _take_answer,
        49: _take_time,
        52: _take_contracts_end,
        88: _take_answer,
        106: _take_answer,
    }


_TOPICS = {
    RequestKind.BARS: Topic.BARS,
    RequestKind.HEAD: Topic.HEAD,
    RequestKind.CONTRACT: Topic.CONTRACT,
}


class Call(Generic[T]):
    """A request that can be sent once: ``put`` writes it, ``answer`` waits for the response.

    ``at_once`` is to be set after the response: how many requests were in flight.

    Args:
        put: writes it and returns the pending request.
        answer: waits for the response to the pending request.
    """

    def __init__(
        self, put: Callable[[], PendingRequest], answer: Callable[[PendingRequest], Awaitable[T]]
    ) -> None:
        self._put, self._answer = put, answer
        self._pending: PendingRequest | None = None
        self.at_once = 1

    def put(self) -> None:
        """Write the request to the socket, at once.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        self._pending = self._put()

    async def answer(self) -> T:
        """Wait for the response.

        Raises:
            GatewayError: there is no response, or it is a refusal.
            RuntimeError: the request was not sent.
        """
        if self._pending is None:
            raise RuntimeError("a request that was not sent has no response")
        return await self._answer(self._pending)


class GatewayConnection:
    """A connection to one gateway under one client id.

    ``login`` is the name of the gateway's login for the audit, such as ``login 1``; the accounts
    themselves are never shown. A connection belongs to one thread and one event loop.
    """

    def __init__(
        self,
        gateway: str,
        *,
        client_id: int,
        timeout_s: float,
        await_permit: AwaitPermit,
        logins: Logins,
        outage_s: float = 300.0,
    ) -> None:
        self.gateway = gateway
        self.client_id = client_id
        self._timeout_s, self._outage_s = timeout_s, outage_s
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._dispatcher = Dispatcher(lambda: self.server_version)
        self._transport = Transport(
            self._dispatcher.take, self._dispatcher.take_bars, self._record_end, await_permit
        )
        self._logins, self.login = logins, ""

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        return (
            f"GatewayConnection({self.gateway}, client id {self.client_id}, {state}, "
            f"{len(self._dispatcher.pending)} open)"
        )

    @property
    def is_up(self) -> bool:
        """Return whether requests can be sent; the gateway may still not respond."""
        return self._transport.is_up

    @property
    def server_version(self) -> int:
        """The protocol version that was agreed on."""
        return self._transport.server_version

    @property
    def origin(self) -> Origin:
        """Whether the gateway is a real or a simulated one, by its accounts."""
        return origin_of(self._transport.accounts)

    @property
    def notices(self) -> Notices:
        """What a user should know about the gateway's responses."""
        return self._dispatcher.notices

    def on_pacing(self, act: Callable[[], None]) -> None:
        """Set what to do on a pacing error about all requests together."""
        self._dispatcher.on_pacing = act

    async def open(self, host: str, port: int) -> None:
        """Connect, shake hands, and read the gateway's clock.

        Raises:
            TransportError: no connection was made.
            GatewayTimeoutError: connected, but the gateway does not tell its time.
            DiskError: the state folder, in which every sent message is recorded, cannot be used.
        """
        await self._transport.open(host, port, self.client_id, timeout_s=self._timeout_s)
        self._dispatcher.pending = PendingRequests(self._transport.client.getReqId())
        self.login = self._logins.name_of(self._transport.accounts)
        if await self._round_trip_s() is None:
            if not self.is_up:
                raise TransportError(self._transport.disconnect_reason or DisconnectReason.CLOSED)
            raise GatewayTimeoutError(
                f"request the time of {self.gateway}",
                reason=f"connected, but no answer in {self._timeout_s:g} s",
                hint="Check the gateway's window; during its nightly reset, try again later",
            )

    async def close(self) -> None:
        """Fail the pending requests and close the socket; never raises, may be repeated."""
        self._check_thread()
        self._dispatcher.pending.fail_all(ConnectionLostError, DisconnectReason.REQUESTED.value)
        await self._transport.close()

    def now(self) -> datetime:
        """Return the gateway's time, rounded down to the second."""
        return self._dispatcher.clock.now()

    async def health(self) -> Health:
        """Request the gateway's time, and return the state of the connection."""
        self._check_thread()
        answered_at_s = self._dispatcher.answered_at_s
        return Health(
            gateway=self.gateway,
            connected=self.is_up,
            round_trip_s=await self._round_trip_s() if self.is_up else None,
            last_answer_age_s=None if answered_at_s is None else boot_time_s() - answered_at_s,
            clock_offset_s=(self.now() - system_now()).total_seconds(),
            troubles=self._dispatcher.status.troubles,
            farms=self._dispatcher.status.farms,
        )

    @property
    def lost_link(self) -> str:
        """The gateway's message about its lost connection to IB; empty while it is connected."""
        return self._dispatcher.status.lost_link if self.is_up else ""

    async def news(self) -> None:
        """Wait until the gateway reports on its own connections, or this connection has ended."""
        self._check_thread()
        if self.is_up:
            await self._dispatcher.news()

    async def wait_for_route(
        self, query: HistoryQuery | ContractQuery, *, waits: OnWait = ignore_wait
    ) -> AbstractContextManager[None]:
        """Wait while the gateway lacks the connection that a request needs.

        A farm that is reported broken may not be the one that the request needs, and may be
        reported broken for ever. So one request of a route is let through as a probe, when there
        has been no news for one deadline; the others of the route wait for its result. The request
        is sent, and its response awaited, inside the context that this returns.

        Args:
            query: the request.
            waits: called with the reason and the longest duration of each wait.

        Raises:
            OutageError: it has lost its connection to IB, or a data farm, for too long.
        """
        self._check_thread()
        status, begun_at_s = self._dispatcher.status, boot_time_s()
        topic, route, what = _TOPICS[query.kind], query.route, query.what
        while self.is_up and (obstacle := status.obstacle(topic, route)):
            now = boot_time_s()
            if status.lost_link:
                left_s = begun_at_s + self._outage_s - now
                if left_s <= 0:
                    raise lasting_outage(what, status.lost_link)
                await self._news(obstacle, left_s, waits)
                continue
            probe = status.probe(topic, route, now, first_s=self._timeout_s)
            if probe.is_out:
                waits(obstacle, self._timeout_s)
                await self._dispatcher.news()
            elif probe.due_at <= now:
                probe.is_out = True
                return self._probing(probe)
            elif (left_s := begun_at_s + max(self._outage_s, self._timeout_s) - now) > 0:
                await self._news(obstacle, min(left_s, probe.due_at - now), waits)
            else:
                raise lasting_farm_outage(what, obstacle)
        return nullcontext()

    async def _news(self, obstacle: str, longest_s: float, waits: OnWait) -> None:
        """Wait for news of the gateway's own connections, for a limited time."""
        waits(obstacle, longest_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._dispatcher.news()

    @contextmanager
    def _probing(self, probe: Probe) -> Iterator[None]:
        """Record the result of a route's probe, and wake the requests that wait for it."""
        failed = False
        try:
            yield
        except (GatewayTimeoutError, OutageError) as error:
            failed = error.code not in GOOD_NEWS
            raise
        finally:
            self._dispatcher.status.probed(probe, boot_time_s(), failed=failed)
            self._dispatcher.announce_news()

    def history(self, query: HistoryQuery) -> Call[HistoryReply]:
        """Return the request for bars; its response is message 17 and the codes noted about it."""

        def put() -> PendingRequest:
            pending = self._opened(Topic.BARS, query.what, query.route)
            with self._transport.permitted():
                self._transport.client.reqHistoricalData(
                    pending.number,
                    query.contract,
                    query.end,
                    query.duration,
                    query.bar_size,
                    query.what_to_show,
                    query.use_rth,
                    query.dates,
                    False,  # noqa: FBT003  (not kept up to date: the signature is ib_async's)
                    [],
                )
            return pending

        async def answer(pending: PendingRequest) -> HistoryReply:
            frames = await self._answer(pending, self._transport.client.cancelHistoricalData)
            return HistoryReply(frames[0], pending.codes)

        return Call(put, answer)

    def head(self, query: HistoryQuery) -> Call[list[str]]:
        """Return the request for the head timestamp; it is always cancelled at its end.

        Its response is message 88. Without a cancel it would count among the gateway's 50 open
        requests for ever; whether a refused one does is not known.
        """
        client = self._transport.client

        def put() -> PendingRequest:
            pending = self._opened(Topic.HEAD, query.what, query.route)
            with self._transport.permitted():
                client.reqHeadTimeStamp(
                    pending.number, query.contract, query.what_to_show, query.use_rth, query.dates
                )
            return pending

        async def answer(pending: PendingRequest) -> list[str]:
            try:
                frames = await self._answer(pending, None)
            finally:
                self._give_up(pending, client.cancelHeadTimeStamp)
            return fields_of(frames[0])

        return Call(put, answer)

    def contracts(self, query: ContractQuery) -> Call[list[list[str]]]:
        """Return the request for the contracts of a description; its response: all messages 10."""

        def put() -> PendingRequest:
            pending = self._opened(Topic.CONTRACT, query.what, query.route)
            with self._transport.permitted():
                self._transport.client.reqContractDetails(pending.number, query.contract)
            return pending

        async def answer(pending: PendingRequest) -> list[list[str]]:
            return [fields_of(message) for message in await self._answer(pending, None)]

        return Call(put, answer)

    def refresh_clock(self) -> None:
        """Request the gateway's time without waiting, if the last reading is old."""
        if self.is_up and self._dispatcher.clock.is_stale:
            self._transport.client.reqCurrentTime()

    def _opened(self, topic: Topic, what: str, route: str) -> PendingRequest:
        self._check_thread()
        if not self.is_up:
            raise ConnectionLostError(what, reason=f"the connection to {self.gateway} is gone")
        return self._dispatcher.pending.add(topic, what, route)

    async def _answer(
        self, pending: PendingRequest, cancel: Callable[[int], None] | None
    ) -> list[Message]:
        """Wait for a response; cancel the request if it is given up."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await pending.answer
        except TimeoutError:
            self._give_up(pending, cancel)
            status, reason = self._dispatcher.status, f"no answer in {self._timeout_s:g} s"
            if troubles := "; ".join(status.troubles):
                reason = f"{reason}, and the gateway says: {troubles}"
            is_outage = status.obstacle(pending.topic, pending.route)
            kind = OutageError if is_outage else GatewayTimeoutError
            hint = "This confirms nothing; the request is repeated."
            raise kind(pending.what, reason=reason, hint=hint) from None
        except (asyncio.CancelledError, OutageError):
            self._give_up(pending, cancel)
            raise
        finally:
            self._dispatcher.pending.drop(pending)

    def _give_up(self, pending: PendingRequest, cancel: Callable[[int], None] | None) -> None:
        if cancel is not None and self.is_up:
            cancel(pending.number)

    async def _round_trip_s(self) -> float | None:
        """Request the time; return the seconds from when it is sent, None without a response."""
        self._dispatcher.time_received.clear()
        self._transport.client.reqCurrentTime()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._transport.sent()
                sent_at_s = boot_time_s()
                await self._dispatcher.time_received.wait()
        except TimeoutError:
            return None
        return boot_time_s() - sent_at_s if self.is_up else None

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread or asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another thread or event loop")

    def _record_end(self, disconnect_reason: DisconnectReason) -> None:
        _log.info("connection to %s ended: %s", self.gateway, disconnect_reason.value)
        self._dispatcher.end(disconnect_reason.value)
