"""One socket to a gateway: frames in and out, and why it ended.

Cutting a stream of bytes into frames: four bytes of length, then the fields.

One socket to a gateway, spoken to by ib_async's client, with what the client leaves open.

ib_async stays unmodified: it makes the connection, the handshake and the frames that are sent.
This module gives it whole frames, hands every frame that comes to one listener, and says *why* a
connection did not come about or ended. Every message that is sent, the handshake included, waits
for its turn in the rate of messages; ib_async's own throttle, which knows one connection only and
delays what has its turn, is off. Account numbers are taken out of every frame before ib_async, its
log or the listener sees it.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any

from ib_async.client import Client
from ib_async.decoder import Decoder

from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.connection.accounts import AccountFilter
from ktrdr_pipelines.limits import CodeClass, IbLimitsRegistry

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Longer than any answer: a million bars are about 80 MB. What announces more is no gateway."""

MIN_FRAME_BYTES = 2
"""A field and its NUL."""

_PREFIX = 4


class BadFrameError(ValueError):
    """The stream is not what a gateway sends; nothing after this can be read."""


class FrameCutter:
    """Collects bytes and gives whole frames, each with its length in front."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and take out the frames that are now whole.

        Raises:
            BadFrameError: a length that no frame has.
        """
        self._rest += data
        frames: list[bytes] = []
        start = 0
        while (end := self._end_of(start)) <= len(self._rest):
            frames.append(bytes(self._rest[start:end]))
            start = end
        del self._rest[:start]
        return frames

    def _end_of(self, start: int) -> int:
        if len(self._rest) - start < _PREFIX:
            return start + len(self._rest) + _PREFIX
        length = int.from_bytes(self._rest[start : start + _PREFIX])
        if not MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
            raise BadFrameError(f"a frame of {length} bytes")
        return start + _PREFIX + length


CLOSE_S = 1.0
"""How long a closing socket may take to send what is left before it is cut; so long the messages
that still wait for their turn are waited for, too."""

AwaitPermit = Callable[[Callable[[], None]], Awaitable[None]]
"""Calls what writes a message when the rate of messages allows it; a DiskError says that it
cannot know."""

_Client: Any = Client  # ib_async annotates its client in part only
_ERROR, _ACCOUNTS, _ID_IN_USE = "4", "15", "326"


class DisconnectReason(StrEnum):
    """Why a connection did not come about, or is no more."""

    NO_NAME = "no such host is known"
    REFUSED = "nothing listens there"
    NO_ROUTE = "no connection could be made"
    CLOSED = "the other side closed the connection"
    NO_ANSWER = "it accepted the connection and did not answer"
    ID_IN_USE = "the client id is in use"
    GARBAGE = "it does not speak the gateway's protocol"
    VERSION = "it speaks another version of the protocol"
    REQUESTED = "closed by this program"
    NO_PERMIT = "the record of what is sent to the gateway cannot be used"


NO_LISTENER = frozenset(
    {DisconnectReason.NO_NAME, DisconnectReason.REFUSED, DisconnectReason.NO_ROUTE}
)
"""Endings of a connection that reached no program at all."""


class TransportError(Exception):
    """No connection came about."""

    def __init__(self, disconnect_reason: DisconnectReason, detail: str = "") -> None:
        super().__init__(
            f"{disconnect_reason.value} ({detail})" if detail else disconnect_reason.value
        )
        self.disconnect_reason = disconnect_reason


class _Callbacks:
    """What ib_async's client calls besides handing over frames: nothing of it matters here."""

    def setEventsDone(self) -> None:  # noqa: N802  (ib_async's name)
        pass

    def connectionClosed(self) -> None:  # noqa: N802
        pass

    def connectAck(self) -> None:  # noqa: N802
        pass


class _Tap(Decoder):
    """Takes the fields of every frame before ib_async would decode them."""

    def __init__(self, listener: Callable[[list[str]], None]) -> None:
        self.serverVersion = 0  # set by the client; the base's table of decoders is not needed
        self._listener = listener

    def interpret(self, fields: list[str]) -> None:
        self._listener(fields)


class _QueuedConnection:
    """ib_async's connection, but for its sending: that is left to whoever knows the turns."""

    def __init__(self, connection: Any, take: Callable[[bytes], None]) -> None:
        self._connection, self._take = connection, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendMsg(self, message: bytes) -> None:  # noqa: N802  (ib_async's name)
        self._take(message)


class Transport:
    """A connection to be made once and closed once, inside one event loop.

    Args:
        on_frame: takes the fields of each frame; a ValueError of it ends the connection.
        on_end: told once when an established connection ends without having been asked to.
        give_turn: makes messages wait that have no turn of their own (``permitted``).
    """

    def __init__(
        self,
        on_frame: Callable[[list[str]], None],
        on_end: Callable[[DisconnectReason], None],
        await_permit: AwaitPermit,
    ) -> None:
        self._on_frame, self._on_end = on_frame, on_end
        self._await_permit, self._is_permitted = await_permit, False
        self._waiting: deque[bytes] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._refusal: DiskError | None = None
        self._ready = False
        self._version = self._said = ""
        self._filter = AccountFilter()
        self._cutter = FrameCutter()
        self.client: Any = _Client(_Callbacks())
        self.client.MaxRequests = 0
        self.client.decoder = _Tap(self._take)
        self._connection = self.client.conn
        self._connection.hasData.clear()
        self._connection.hasData += self._feed
        self._connection.disconnected += self._on_disconnected
        self.client.conn = _QueuedConnection(self._connection, self._send)
        self._ended: asyncio.Future[DisconnectReason] = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()
        logging.getLogger("ib_async.client").addFilter(_discreet)

    @property
    def is_up(self) -> bool:
        """Say whether frames can be sent."""
        return self._ready and not self._ended.done()

    @property
    def disconnect_reason(self) -> DisconnectReason | None:
        """Why it is no more; None where it is, or never was."""
        return self._ended.result() if self._ended.done() else None

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts that the gateway named; not to be kept or shown anywhere."""
        return self._filter.announced

    @property
    def server_version(self) -> int:
        """The protocol version that was agreed on."""
        return int(self.client.serverVersion())

    async def open(self, host: str, port: int, client_id: int, *, timeout_s: float) -> None:
        """Connect and shake hands.

        Raises:
            WireError: it did not come about; the ending says why.
            DiskError: nothing may be sent, as the record of what is sent cannot be used.
        """
        attempt = asyncio.ensure_future(self.client.connectAsync(host, port, client_id, None))
        try:
            await asyncio.wait(
                {attempt, self._ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            failure = self._failure(attempt)
        finally:
            attempt.cancel()
            with suppress(asyncio.CancelledError, OSError, UnicodeError):
                await attempt
        if failure is not None:
            await self.close()
            raise failure
        self._ready = True

    @contextmanager
    def permitted(self) -> Iterator[None]:
        """Let what is sent inside go to the socket at once: its turn has come."""
        self._is_permitted = True
        try:
            yield
        finally:
            self._is_permitted = False

    async def sent(self) -> None:
        """Wait until every message that waits for its turn is sent, or the connection is gone."""
        while self._sender is not None and not self._sender.done():
            await asyncio.wait({self._sender})

    async def close(self) -> None:
        """Close the socket and wait until it is gone; never raises, may be repeated."""
        try:
            if not self._ended.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await self.sent()
        finally:
            self._end(DisconnectReason.REQUESTED)
            transport = self._connection.transport
            self._disconnect()
        if transport is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._gone.wait()
        except TimeoutError:
            transport.abort()
            await self._gone.wait()

    def _send(self, message: bytes) -> None:
        """Take a message from ib_async: write it in its turn, or let it wait for one."""
        if self._is_permitted:
            self._write(message)
            return
        self._waiting.append(message)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        """Write what waits, message by message; what finds the connection gone is dropped."""
        try:
            while self._waiting and not self._ended.done():
                await self._await_permit(lambda: self._write(self._waiting[0]))
                self._waiting.popleft()
        except DiskError as error:
            self._refusal = error
            self._end(DisconnectReason.NO_PERMIT)
            self._disconnect()

    def _write(self, message: bytes) -> None:
        if (transport := self._connection.transport) is not None:
            transport.write(message)

    def _failure(self, attempt: "asyncio.Future[None]") -> TransportError | DiskError | None:
        if self._refusal is not None:
            return self._refusal
        if self._ended.done():
            return TransportError(self._ended.result(), self._said or self._version)
        if not attempt.done():
            if self._connection.isConnected():
                return TransportError(DisconnectReason.NO_ANSWER, self._said)
            return TransportError(DisconnectReason.NO_ROUTE, "in time")
        error = attempt.exception()
        return None if error is None else _unmade(error)

    def _feed(self, data: bytes) -> None:
        try:
            for frame in self._cutter.feed(data):
                self._give(frame)
        except (BadFrameError, ValueError, IndexError):
            self._end(DisconnectReason.GARBAGE)
            self._disconnect()

    def _disconnect(self) -> None:
        """Let ib_async close the socket; messages that wait for their turn are not sent any more.

        It says goodbye first, which the system refuses where the other side has cut the connection
        and the loop does not know yet.
        """
        self._waiting.clear()
        if self._sender is not None and self._sender is not asyncio.current_task():
            self._sender.cancel()
        transport = self._connection.transport
        try:
            self.client.disconnect()
        except OSError:
            transport.abort()

    def _give(self, frame: bytes) -> None:
        if not self._version:
            self._check_version(frame)
        if not self._ended.done():
            frame = self._filter.cleaned(frame)
            self.client._onSocketHasData(frame)  # noqa: SLF001  (the listener taken off above)

    def _check_version(self, greeting: bytes) -> None:
        """Read the version out of the first frame: ib_async refuses an old one by silence."""
        version = int(greeting[4:].split(b"\0")[0])
        self._version = f"version {version}"
        low, high = IbLimitsRegistry.SERVER_VERSIONS.value
        if not low <= version <= high:
            self._end(DisconnectReason.VERSION)

    def _take(self, fields: list[str]) -> None:
        if not self._ready:
            self._overhear(fields)
        self._on_frame(fields)

    def _overhear(self, fields: list[str]) -> None:
        """Keep what the gateway says in the handshake: it may be why nothing comes of it."""
        if fields[0] == _ACCOUNTS and not any(fields[2:]):
            self._said = "it names no account"
        if fields[0] != _ERROR or len(fields) < 5:
            return
        code, text = fields[3:5]
        if IbLimitsRegistry.class_of(int(code), text) is not CodeClass.NOTICE:
            self._said = f"{code} {text}".rstrip(". ")
        if code == _ID_IN_USE:
            self._end(DisconnectReason.ID_IN_USE)

    def _on_disconnected(self, _message: str) -> None:
        self._gone.set()
        self._end(DisconnectReason.CLOSED)

    def _end(self, disconnect_reason: DisconnectReason) -> None:
        if self._ended.done():
            return
        self._ended.set_result(disconnect_reason)
        if self._ready and disconnect_reason is not DisconnectReason.REQUESTED:
            self._on_end(disconnect_reason)


def _unmade(error: BaseException) -> TransportError:
    """Say why the system could not connect."""
    if isinstance(error, ConnectionRefusedError):
        return TransportError(DisconnectReason.REFUSED)
    if isinstance(error, socket.gaierror | UnicodeError):
        return TransportError(DisconnectReason.NO_NAME, str(error))
    if isinstance(error, ConnectionError):
        return TransportError(DisconnectReason.CLOSED, str(error))
    return TransportError(DisconnectReason.NO_ROUTE, str(error))


def _discreet(record: logging.LogRecord) -> bool:
    """Leave it to typed errors to tell what went wrong."""
    return record.levelno < logging.WARNING
