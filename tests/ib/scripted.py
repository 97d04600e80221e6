"""A gateway written by hand, frame by frame, that misbehaves as a test tells it to.

It knows nothing of the product's simulator: a mistake of one cannot hide behind the other.
"""

import asyncio
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Handler = Callable[["Talk", list[str]], None]

DETAILS = (
    *("10", "{id}", "AAPL", "STK", "", "0", "", "SMART", "USD", "AAPL", "NMS", "NMS", "265598"),
    *("0.01", "", "", "SMART,NASDAQ", "1", "0", "APPLE INC", "NASDAQ", "", "Technology"),
    *("Computers", "Computers", "US/Eastern", "", "", "", "0", "0", "1", "", "", "26", ""),
    *("COMMON", "0.0001", "0.0001", "100"),
)
"""Message 10 of one stock, from a real one (L), without its hours."""


def frame(*fields: object) -> bytes:
    """Write a frame: length, then fields ended by NUL."""
    body = "".join(f"{text}\0" for text in fields).encode()
    return struct.pack(">I", len(body)) + body


@dataclass
class Talk:
    """One client's connection, seen from the gateway."""

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
    """What a gateway does; a test replaces the parts that misbehave."""

    version: object = 178
    account: str = "DU" + "1234567"
    bars: Handler | None = None
    head: Handler | None = None
    contract: Handler | None = None
    time: Handler | None = None
    cancel: Handler | None = None
    greet: Callable[[Talk], None] | None = None
    start: Handler | None = None
    clock_offset_s: int = 0


def greet(talk: Talk) -> None:
    """Tell version and time, as the first frame."""
    talk.send(talk.script.version, "20260105 12:00:00 EST")


def start(talk: Talk, fields: list[str]) -> None:
    """Tell account and first id, and that the farms are well."""
    talk.send(15, 1, talk.script.account)
    talk.send(9, 1, 1)
    talk.error(-1, 2104, "Market data farm connection is OK:usfarm")
    talk.error(-1, 2106, "HMDS data farm connection is OK:ushmds")


def tell_time(talk: Talk, fields: list[str]) -> None:
    """Tell the time."""
    talk.send(49, 1, int(time.time()) + talk.script.clock_offset_s)


def tell_contract(talk: Talk, fields: list[str]) -> None:
    """Tell the one contract that there is, under the symbol and currency that were asked for."""
    texts = [text.format(id=fields[2]) for text in DETAILS]
    texts[2], texts[8] = fields[4], fields[12]
    talk.send(*texts)
    talk.send(52, 1, fields[2])


def history(number: object, *bars: tuple[object, ...], reach: tuple[str, str] = ("", "")) -> bytes:
    """Write message 17."""
    texts = [value for bar in bars for value in bar]
    return frame(17, number, *reach, len(bars), *texts)


def bar(timestamp: object, close: float = 10.5, **other: object) -> tuple[object, ...]:
    """Make one bar of message 17."""
    values = {"volume": 100, "average": 10.25, "count": 7} | other
    return (timestamp, 10.0, 11.0, 9.0, close, values["volume"], values["average"], values["count"])


def tell_bars(talk: Talk, fields: list[str]) -> None:
    """Tell two minute bars."""
    talk.raw(history(fields[1], bar(FIRST), bar(FIRST + 60)))


def tell_head(talk: Talk, fields: list[str]) -> None:
    """Tell when the oldest data is from."""
    talk.send(88, fields[1], 345479400)


LONGEST_S = 60.0
"""How long a test waits for what is certain to come, on however busy a machine."""

FIRST = 1_767_623_400
"""2026-01-05 14:30 UTC: the opening of a New York session."""


class ScriptedGateway:
    """A gateway in a thread of its own; ``received`` holds all frames, ``open_now`` the clients."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received: list[list[str]] = []
        self.open_now: set[int] = set()
        self.connects = 0
        self.port = 0
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def what(self, kind: int) -> list[list[str]]:
        """Give the frames of one kind."""
        return [fields for fields in self.received if fields[0] == str(kind)]

    def wait_for(self, kind: int, count: int = 1) -> list[list[str]]:
        """Wait until so many frames of one kind have arrived, and return those of that kind.

        A frame that the gateway does not answer, such as a cancel, may arrive after the client
        has ended.
        """
        with self._news:
            assert self._news.wait_for(lambda: len(self.what(kind)) >= count, LONGEST_S)
            return self.what(kind)

    async def until_asked(self, kind: int) -> None:
        """Wait for a frame of one kind."""
        await asyncio.to_thread(self.wait_for, kind)

    def begin(self) -> None:
        ready = threading.Event()
        self._loop.call_soon(lambda: self._loop.create_task(self._listen(ready)))
        self._thread.start()
        assert ready.wait(LONGEST_S)

    def end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(LONGEST_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LONGEST_S)
        self._loop.close()

    def call(self, act: Callable[[], None]) -> None:
        """Do something in the gateway's own loop."""
        self._loop.call_soon_threadsafe(act)

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
        talk = Talk(self.script, writer)
        key = id(talk)
        self.connects += 1
        self.open_now.add(key)
        try:
            await self._converse(talk, reader)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_now.discard(key)
            writer.close()

    async def _converse(self, talk: Talk, reader: asyncio.StreamReader) -> None:
        if self.script.greet is not None:
            self.script.greet(talk)
            if talk.closed:
                return
        assert await reader.readexactly(4) == b"API\0"
        await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
        if self.script.greet is None:
            greet(talk)
        while True:
            length = struct.unpack(">I", await reader.readexactly(4))[0]
            fields = (await reader.readexactly(length)).decode().split("\0")[:-1]
            with self._news:
                self.received.append(fields)
                self._news.notify_all()
            self._handle(talk, fields)
            if talk.closed:
                return

    def _handle(self, talk: Talk, fields: list[str]) -> None:
        script = self.script
        if fields[0] == "71":
            talk.client_id = int(fields[2])
        handlers: dict[str, Handler] = {
            "71": script.start or start,
            "49": script.time or tell_time,
            "9": script.contract or tell_contract,
            "20": script.bars or tell_bars,
            "87": script.head or tell_head,
            "25": script.cancel or ignore,
        }
        handlers.get(fields[0], ignore)(talk, fields)


def ignore(talk: Talk, fields: list[str]) -> None:
    """Say nothing."""


class Words:
    """The words a scripted gateway speaks, for tests that let it speak others."""

    first = FIRST
    details = DETAILS
    frame = staticmethod(frame)
    history = staticmethod(history)
    bar = staticmethod(bar)
    start = staticmethod(start)
    greet = staticmethod(greet)
    tell_bars = staticmethod(tell_bars)
    tell_time = staticmethod(tell_time)
    ignore = staticmethod(ignore)
