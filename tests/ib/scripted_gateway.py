"""A gateway for tests, which sends the frames of a script.

It shares no code with the product's simulator, so that neither hides a mistake of the other.
"""

import asyncio
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Handler = Callable[["Client", list[str]], None]

HMDS = "Historical Market Data Service error message:"
"""What the text of error 162 begins with in English."""

SPANISH_HMDS = "Mensaje de error de los servicios de datos de mercado históricos:"
"""The same in Spanish (grade L: https://github.com/wrighter/ib-scripts/issues/1, 2022-08-21)."""

DETAILS = (
    *("10", "{id}", "AAPL", "STK", "", "0", "", "SMART", "USD", "AAPL", "NMS", "NMS", "265598"),
    *("0.01", "", "", "SMART,NASDAQ", "1", "0", "APPLE INC", "NASDAQ", "", "Technology"),
    *("Computers", "Computers", "US/Eastern", "", "", "", "0", "0", "1", "", "", "26", ""),
    *("COMMON", "0.0001", "0.0001", "100"),
)
"""Message 10 of one stock as a live gateway sent it (grade L), without its hours."""


def frame(*fields: object) -> bytes:
    """Return the bytes of a frame: its length, then NUL-terminated fields."""
    body = "".join(f"{text}\0" for text in fields).encode()
    return struct.pack(">I", len(body)) + body


@dataclass
class Client:
    """One connected client, as the gateway sees it."""

    script: "Script"
    writer: asyncio.StreamWriter
    client_id: int = -1
    closed: bool = False

    def send(self, *fields: object) -> None:
        self.raw(frame(*fields))

    def raw(self, data: bytes) -> None:
        if not self.closed:
            self.writer.write(data)

    def error(self, number: object, code: int, text: str) -> None:
        self.send(4, 2, number, code, text, "")

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, act)

    def close(self) -> None:
        self.closed = True
        self.writer.close()


@dataclass
class Script:
    """How a gateway responds; a test replaces some of the parts."""

    version: object = 178
    account: str = "DU" + "1234567"
    bars: Handler | None = None
    head: Handler | None = None
    contract: Handler | None = None
    time: Handler | None = None
    cancel: Handler | None = None
    greet: Callable[[Client], None] | None = None
    start: Handler | None = None
    clock_offset_s: int = 0


def greet(client: Client) -> None:
    """Send version and time, the first frame."""
    client.send(client.script.version, "20260105 12:00:00 EST")


def start(client: Client, fields: list[str]) -> None:
    """Send the account, the first id, and that two farms are connected."""
    client.send(15, 1, client.script.account)
    client.send(9, 1, 1)
    client.error(-1, 2104, "Market data farm connection is OK:usfarm")
    client.error(-1, 2106, "HMDS data farm connection is OK:ushmds")


def send_time(client: Client, fields: list[str]) -> None:
    """Send the time."""
    client.send(49, 1, int(time.time()) + client.script.clock_offset_s)


def send_contract(client: Client, fields: list[str]) -> None:
    """Send the details of the only contract, under the requested symbol and currency, if any."""
    if fields[3] not in {"", "0", "265598"}:
        client.error(fields[2], 200, "No security definition has been found for the request")
        return
    texts = [text.format(id=fields[2]) for text in DETAILS]
    texts[2], texts[8] = fields[4] or texts[2], fields[12] or texts[8]
    client.send(*texts)
    client.send(52, 1, fields[2])


def details_with(changes: dict[int, str]) -> Handler:
    """Return a handler that sends the contract details with other texts at some positions."""

    def respond(client: Client, fields: list[str]) -> None:
        texts = [changes.get(at, text) for at, text in enumerate(DETAILS)]
        client.send(*(text.format(id=fields[2]) for text in texts))
        client.send(52, 1, fields[2])

    return respond


def history(number: object, *bars: tuple[object, ...], reach: tuple[str, str] = ("", "")) -> bytes:
    """Return the bytes of message 17."""
    texts = [value for bar in bars for value in bar]
    return frame(17, number, *reach, len(bars), *texts)


def bar(timestamp: object, close: float = 10.5, **other: object) -> tuple[object, ...]:
    """Return the fields of one bar of message 17."""
    values = {"volume": 100, "average": 10.25, "count": 7} | other
    return (timestamp, 10.0, 11.0, 9.0, close, values["volume"], values["average"], values["count"])


def send_bars(client: Client, fields: list[str]) -> None:
    """Send two minute bars."""
    client.raw(history(fields[1], bar(FIRST), bar(FIRST + 60)))


def send_head(client: Client, fields: list[str]) -> None:
    """Send the head timestamp."""
    client.send(88, fields[1], 345479400)


LONGEST_S = 60.0
"""Seconds that a test waits at most, on a busy machine too, for an event that must happen."""

FIRST = 1_767_623_400
"""2026-01-05 14:30 UTC: the opening of a New York session."""


class ScriptedGateway:
    """A gateway in a thread of its own.

    ``received`` holds all frames in the order of arrival, ``open_now`` the connected clients, and
    ``connects`` counts connections.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received: list[list[str]] = []
        self.open_now: set[int] = set()
        self.connects = 0
        self.port = 0
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def frames(self, kind: int) -> list[list[str]]:
        """Return the received frames of one kind."""
        return [fields for fields in self.received if fields[0] == str(kind)]

    def wait_for_frames(self, kind: int, count: int = 1) -> list[list[str]]:
        """Wait until so many frames of one kind have arrived, and return those of that kind.

        A frame that the gateway does not answer, such as a cancel, may arrive after the client
        has ended.
        """
        with self._news:
            assert self._news.wait_for(lambda: len(self.frames(kind)) >= count, LONGEST_S)
            return self.frames(kind)

    async def wait_for_frame(self, kind: int) -> None:
        """Wait until a frame of one kind has arrived."""
        await asyncio.to_thread(self.wait_for_frames, kind)

    def start(self) -> None:
        ready = threading.Event()
        self._loop.call_soon(lambda: self._loop.create_task(self._listen(ready)))
        self._thread.start()
        assert ready.wait(LONGEST_S)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(LONGEST_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONGEST_S)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self, ready: threading.Event) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(self.script, writer)
        key = id(client)
        self.connects += 1
        self.open_now.add(key)
        try:
            await self._converse(client, reader)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_now.discard(key)
            writer.close()

    async def _converse(self, client: Client, reader: asyncio.StreamReader) -> None:
        if self.script.greet is not None:
            self.script.greet(client)
            if client.closed:
                return
        assert await reader.readexactly(4) == b"API\0"
        await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
        if self.script.greet is None:
            greet(client)
        while True:
            length = struct.unpack(">I", await reader.readexactly(4))[0]
            fields = (await reader.readexactly(length)).decode().split("\0")[:-1]
            with self._news:
                self.received.append(fields)
                self._news.notify_all()
            self._handle(client, fields)
            if client.closed:
                return

    def _handle(self, client: Client, fields: list[str]) -> None:
        script = self.script
        if fields[0] == "71":
            client.client_id = int(fields[2])
        handlers: dict[str, Handler] = {
            "71": script.start or start,
            "49": script.time or send_time,
            "9": script.contract or send_contract,
            "20": script.bars or send_bars,
            "87": script.head or send_head,
            "25": script.cancel or ignore,
        }
        handlers.get(fields[0], ignore)(client, fields)


def ignore(client: Client, fields: list[str]) -> None:
    """Send nothing."""


class Replies:
    """The replies of a scripted gateway, to build others from."""

    first = FIRST
    details = DETAILS
    details_with = staticmethod(details_with)
    history = staticmethod(history)
    bar = staticmethod(bar)
    start = staticmethod(start)
    send_bars = staticmethod(send_bars)
    send_time = staticmethod(send_time)
    ignore = staticmethod(ignore)
