"""One socket to a gateway, spoken to by ib_async's client: frames in and out, and why it ended.

ib_async stays unmodified: it makes the connection, the handshake and the frames that are sent.
This module cuts the incoming bytes into whole frames (four bytes of length, then the fields),
passes every frame to one listener, and reports *why* a connection could not be made or ended. The
listener gets the fields as ib_async's client reads them; of bars (message 17), which may be a
million fields, it gets the bytes, and ib_async's client does not see them. Every
message that is sent, the handshake included, waits for a permit of the message rate; ib_async's own
throttle, which knows one connection only and delays messages that have a permit, is off. Account
numbers are removed from every frame before ib_async, its log or the listener sees it.

Not here: what the frames mean (``ib.connection.connection``).
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
"""Longer than any response: a million bars are about 80 MB. A longer frame is not a gateway's."""

MIN_FRAME_BYTES = 2
"""The shortest field and its NUL."""

CLOSE_S = 1.0
"""Seconds that messages which wait for a permit may take when the connection is closed, and then
again the socket to send the rest before it is aborted."""

AwaitPermit = Callable[[Callable[[], None]], Awaitable[None]]
"""Calls the function that writes a message when the message rate allows it; raises a DiskError if
the rate is unknown, as the shared record cannot be used."""

_PREFIX = 4
_Client: Any = Client  # ib_async annotates its client in part only
_ERROR, _ACCOUNTS, _ID_IN_USE = "4", "15", "326"
_BARS = b"17\0"


class BadFrameError(ValueError):
    """The stream is not what a gateway sends; the rest of it cannot be read."""


class FrameCutter:
    """Collects bytes and cuts them into whole frames, each with its length in front."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and return the frames that are now complete.

        Raises:
            BadFrameError: the stream announces an impossible length.
        """
        self._rest += data
        frames: list[bytes] = []
        start = 0
        with memoryview(self._rest) as rest:
            while len(rest) - start >= _PREFIX:
                length = int.from_bytes(rest[start : start + _PREFIX])
                if not MIN_FRAME_BYTES <= length <= MAX_FRAME_BYTES:
                    raise BadFrameError(f"a frame of {length} bytes")
                end = start + _PREFIX + length
                if end > len(rest):
                    break
                frames.append(bytes(rest[start:end]))
                start = end
        del self._rest[:start]
        return frames


class DisconnectReason(StrEnum):
    """Why a connection could not be made, or ended."""

    NO_NAME = "no such host is known"
    REFUSED = "nothing listens there"
    NO_ROUTE = "no connection could be made"
    CLOSED = "the other side closed the connection"
    NO_ANSWER = "it accepted the connection and did not answer"
    ID_IN_USE = "the client id is in use"
    GARBAGE = "it does not speak the gateway's protocol"
    VERSION = "it speaks another version of the protocol"
    REQUESTED = "closed by this program"
    NO_PERMIT = "the shared record of sent requests cannot be used"


NO_LISTENER = frozenset(
    {DisconnectReason.NO_NAME, DisconnectReason.REFUSED, DisconnectReason.NO_ROUTE}
)
"""Reasons that mean that no program was reached at all."""


class TransportError(Exception):
    """A connection could not be made."""

    def __init__(self, disconnect_reason: DisconnectReason, detail: str = "") -> None:
        super().__init__(
            f"{disconnect_reason.value} ({detail})" if detail else disconnect_reason.value
        )
        self.disconnect_reason = disconnect_reason


class _Callbacks:
    """Callbacks of ib_async's client besides its frames; none of them is needed here."""

    def setEventsDone(self) -> None:  # noqa: N802  (ib_async's name)
        pass

    def connectionClosed(self) -> None:  # noqa: N802
        pass

    def connectAck(self) -> None:  # noqa: N802
        pass


class _Tap(Decoder):
    """Passes the fields of every frame on, in place of ib_async's decoding."""

    def __init__(self, listener: Callable[[list[str]], None]) -> None:
        self.serverVersion = 0  # set by the client; the base's table of decoders is not needed
        self._listener = listener

    def interpret(self, fields: list[str]) -> None:
        self._listener(fields)


class _QueuedConnection:
    """ib_async's connection, except for sending: ``Transport`` sends when there is a permit."""

    def __init__(self, connection: Any, take: Callable[[bytes], None]) -> None:
        self._connection, self._take = connection, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendMsg(self, message: bytes) -> None:  # noqa: N802  (ib_async's name)
        self._take(message)


class Transport:
    """A connection to be opened once and closed once, inside one event loop.

    Args:
        on_frame: takes the fields of each frame; a ValueError from it ends the connection.
        on_bars: takes the bytes of each message 17 of an open connection, as ``on_frame`` does.
        on_end: called once if an established connection ends without ``close``.
        await_permit: delays messages that are sent without a permit (``permitted``).
    """

    def __init__(
        self,
        on_frame: Callable[[list[str]], None],
        on_bars: Callable[[bytes], None],
        on_end: Callable[[DisconnectReason], None],
        await_permit: AwaitPermit,
    ) -> None:
        self._on_frame, self._on_bars, self._on_end = on_frame, on_bars, on_end
        self._await_permit, self._is_permitted = await_permit, False
        self._waiting: deque[bytes] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._refusal: DiskError | None = None
        self._ready = False
        self._version = self._handshake_text = ""
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
        logging.getLogger("ib_async.client").addFilter(_is_below_warning)

    @property
    def is_up(self) -> bool:
        """Return whether frames can be sent."""
        return self._ready and not self._ended.done()

    @property
    def disconnect_reason(self) -> DisconnectReason | None:
        """Why the connection ended; None if it has not."""
        return self._ended.result() if self._ended.done() else None

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts that the gateway named; they must never be stored or shown."""
        return self._filter.announced

    @property
    def server_version(self) -> int:
        """The protocol version that was agreed on."""
        return int(self.client.serverVersion())

    async def open(self, host: str, port: int, client_id: int, *, timeout_s: float) -> None:
        """Connect and shake hands.

        Raises:
            TransportError: the connection could not be made; its disconnect reason says why.
            DiskError: nothing may be sent, as the shared record of sent requests cannot be used.
        """
        attempt = asyncio.ensure_future(self.client.connectAsync(host, port, client_id, None))
        try:
            await asyncio.wait(
                {attempt, self._ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            failure = self._failure(attempt)
        finally:
            attempt.cancel()
            with suppress(asyncio.CancelledError, OSError, ValueError):
                await attempt
        if failure is not None:
            await self.close()
            raise failure
        self._ready = True

    @contextmanager
    def permitted(self) -> Iterator[None]:
        """Write messages that are sent inside this context at once: they have a permit."""
        self._is_permitted = True
        try:
            yield
        finally:
            self._is_permitted = False

    async def sent(self) -> None:
        """Wait until every queued message is sent, or the connection is gone."""
        while self._sender is not None and not self._sender.done():
            await asyncio.wait({self._sender})

    async def close(self) -> None:
        """Close the socket and wait until it is closed; never raises, may be repeated."""
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
        """Write a message of ib_async's if it has a permit, else queue it."""
        if self._is_permitted:
            self._write(message)
            return
        self._waiting.append(message)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_waiting())

    async def _send_waiting(self) -> None:
        """Write the queued messages one by one; drop those left when the connection is gone."""
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
            return TransportError(self._ended.result(), self._handshake_text or self._version)
        if not attempt.done():
            if self._connection.isConnected():
                return TransportError(DisconnectReason.NO_ANSWER, self._handshake_text)
            return TransportError(DisconnectReason.NO_ROUTE, "in time")
        error = attempt.exception()
        return None if error is None else _connect_failure(error)

    def _feed(self, data: bytes) -> None:
        try:
            for frame in self._cutter.feed(data):
                if not self._version:
                    # ib_async refuses an old version silently, so the first frame is read here.
                    version = int(frame[_PREFIX:].split(b"\0")[0])
                    self._version = f"version {version}"
                    low, high = IbLimitsRegistry.SERVER_VERSIONS.value
                    if not low <= version <= high:
                        self._end(DisconnectReason.VERSION)
                if self._ended.done():
                    continue
                cleaned = self._filter.cleaned(frame)
                if self._ready and cleaned.startswith(_BARS, _PREFIX):
                    self._on_bars(cleaned[_PREFIX:])
                else:
                    self.client._onSocketHasData(cleaned)  # noqa: SLF001  (its own listener is off)
        except (BadFrameError, ValueError, IndexError):
            self._end(DisconnectReason.GARBAGE)
            self._disconnect()

    def _disconnect(self) -> None:
        """Drop the queued messages, and let ib_async close the socket.

        ib_async shuts the socket down first, which the system refuses if the other side has closed
        the connection and the event loop does not know yet.
        """
        self._waiting.clear()
        if self._sender is not None and self._sender is not asyncio.current_task():
            self._sender.cancel()
        transport = self._connection.transport
        try:
            self.client.disconnect()
        except OSError:
            transport.abort()

    def _take(self, fields: list[str]) -> None:
        if not self._ready:
            self._note_handshake(fields)
        self._on_frame(fields)

    def _note_handshake(self, fields: list[str]) -> None:
        """Keep the gateway's messages of the handshake: they may say why it fails."""
        if fields[0] == _ACCOUNTS and not any(fields[2:]):
            self._handshake_text = "it names no account"
        if fields[0] != _ERROR or len(fields) < 5:
            return
        code, text = fields[3:5]
        if IbLimitsRegistry.class_of(int(code), text) is not CodeClass.NOTICE:
            self._handshake_text = f"{code} {text}".rstrip(". ")
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


def _connect_failure(error: BaseException) -> TransportError:
    """Return the reason why the system could not connect."""
    if isinstance(error, ConnectionRefusedError):
        return TransportError(DisconnectReason.REFUSED)
    if isinstance(error, socket.gaierror | ValueError):  # the latter for what no name can have
        return TransportError(DisconnectReason.NO_NAME, str(error))
    if isinstance(error, ConnectionError):
        return TransportError(DisconnectReason.CLOSED, str(error))
    return TransportError(DisconnectReason.NO_ROUTE, str(error))


def _is_below_warning(record: logging.LogRecord) -> bool:
    """Drop ib_async's warnings and errors: typed errors report these failures."""
    return record.levelno < logging.WARNING
