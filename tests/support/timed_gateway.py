"""A gateway of its own whose responses take as long as a law says, as a process on loopback.

It shares nothing with the product or its simulator but the calendar of New York, and speaks the
wire protocol at server version 178 as far as loads of stocks need it: handshake, contract details,
head timestamp, bars of 1 min and 1 day by end and number of sessions, the time, and cancellations.
Bars are prepared as text before it listens, so that its own work disturbs no measurement.

A number of workers serve requests in the order of their arrival. A request that begins while others
wait takes longer: ``service x (1 + penalty x waiting)``, with noise where the law has it. A service
that ends late, because the machine was busy, delays no later one.

``running_gateway`` starts it; ``python -m tests.support.timed_gateway LAW`` is its process. It
prints its port, then for each line that it reads a report of the requests so far, as JSON.
"""

# ruff: noqa: T201  (its output is its interface)

import asyncio
import heapq
import json
import math
import struct
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import count
from typing import Self

import numpy as np

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from tests.support.time_limits import killed_after

SERVER_VERSION = 178
ACCOUNT = "SIM000178"
"""Its bars are simulated, and go into stores of that origin only."""

_CONTRACT, _HISTORY, _CANCEL, _TIME, _START, _HEAD = "9", "20", "25", "49", "71", "87"
_MINUTE_S = 60
_HOURS = "20260105:0930-20260105:1600"
_SUPPORTED = {"1 min", "1 day"}
_LONGEST_S = 120.0
"""Within which a process must start, report or end; also on a busy machine."""


@dataclass(frozen=True, slots=True)
class Law:
    """How long responses take.

    ``workers`` serve at once. ``service_s`` are points of (sessions of a request, seconds), with
    lines between them; a request for more sessions than the last point has gets no response.
    ``noise`` is the coefficient of variation of service times, lognormal around the same mean.
    """

    workers: int = 6
    service_s: Sequence[tuple[int, float]] = ((1_000, 0.0),)
    penalty: float = 0.0
    noise: float = 0.0
    seed: int = 1
    first: str = "2023-01-01"
    end: str = "2024-01-01"

    def mean_s(self, sessions: int) -> float:
        """Return the seconds that a request takes on an idle gateway; infinite without response."""
        points = self.service_s
        if sessions > points[-1][0]:
            return math.inf
        return float(np.interp(sessions, *zip(*points, strict=True)))


@dataclass(frozen=True, slots=True)
class Served:
    """A request for bars: what was requested, and when it arrived, began and ended, in seconds.

    ``service_s`` is how long it takes without others waiting, noise included. A request that was
    cancelled has no bars, and ended when it was cancelled.
    """

    symbol: str
    bar_size: str
    sessions: int
    bars: int
    arrived_s: float
    begun_s: float
    service_s: float
    waiting: int
    ended_s: float = math.inf


class PreparedBars:
    """The bars of every symbol between two session dates, as the text fields of message 17."""

    def __init__(self, first: str, end: str) -> None:
        sessions = calendar_named("XNYS.RTH").sessions(
            date.fromisoformat(first), date.fromisoformat(end)
        )
        self._opens = [int(one.opens_at.timestamp()) for one in sessions]
        self._closes = [int(one.closes_at.timestamp()) for one in sessions]
        self._days = [one.day for one in sessions]
        generator = np.random.default_rng(1)
        self._closing = 100 + np.cumsum(generator.normal(0, 0.3, len(sessions)))
        self._minutes = [
            self._session(position, generator).encode() for position in range(len(sessions))
        ]

    @property
    def oldest_s(self) -> int:
        """The start of the oldest bar, in seconds since 1970."""
        return self._opens[0]

    def message(self, request_id: int, bar_size: str, sessions: int, end_s: int) -> bytes:
        """Return the frame of message 17 with the last sessions that begin before an end."""
        last = int(np.searchsorted(self._opens, end_s))
        first = max(0, last - sessions)
        number = self.bars_in(bar_size, sessions, end_s)
        texts = (
            self._minutes[first:last]
            if bar_size == "1 min"
            else [self._daily(position).encode() for position in range(first, last)]
        )
        if bar_size == "1 min" and last and end_s < self._closes[last - 1]:
            kept = (end_s - self._opens[last - 1] + _MINUTE_S - 1) // _MINUTE_S
            texts[-1] = b"".join(f"{text}\0".encode() for text in _fields(texts[-1])[: 8 * kept])
        begins = _moment_text(self._opens[first] if first < last else end_s)
        header = f"17\0{request_id}\0{begins}\0{_moment_text(end_s)}\0{number}\0"
        return _frame(b"".join((header.encode(), *texts)))

    def messages(self, sessions: int) -> list[bytes]:
        """Return the frames of message 17 with all minutes, by a number of sessions each."""
        ends = self._closes[sessions - 1 :: sessions]
        return [self.message(1, "1 min", sessions, end_s) for end_s in ends]

    def bars_in(self, bar_size: str, sessions: int, end_s: int) -> int:
        """Return the number of bars of such a response."""
        last = int(np.searchsorted(self._opens, end_s))
        first = max(0, last - sessions)
        if bar_size == "1 day":
            return last - first
        spans = zip(self._opens[first:last], self._closes[first:last], strict=True)
        return sum(-(-(min(closes, end_s) - opens) // _MINUTE_S) for opens, closes in spans)

    def _session(self, position: int, generator: np.random.Generator) -> str:
        """Return the minutes of a session; its last close is that of its day."""
        starts = np.arange(self._opens[position], self._closes[position], _MINUTE_S)
        steps = generator.normal(0, 0.02, len(starts))
        close = self._closing[position] + np.cumsum(steps) - steps.sum()
        open_ = np.concatenate((close[:1] - steps[0], close[:-1]))
        reach = np.abs(generator.normal(0, 0.01, (2, len(starts))))
        columns = (
            starts.tolist(),
            open_.tolist(),
            (np.maximum(open_, close) + reach[0]).tolist(),
            (np.minimum(open_, close) - reach[1]).tolist(),
            close.tolist(),
            generator.integers(100, 90_000, len(starts)).tolist(),
            generator.integers(1, 900, len(starts)).tolist(),
        )
        return "".join(
            f"{at}\0{first:.2f}\0{high:.2f}\0{low:.2f}\0{last:.2f}\0{volume}\0"
            f"{(first + last) / 2:.3f}\0{trades}\0"
            for at, first, high, low, last, volume, trades in zip(*columns, strict=True)
        )

    def _daily(self, position: int) -> str:
        """Return the day of a session from its minutes."""
        rows = np.array(_fields(self._minutes[position])).reshape(-1, 8)
        highest, lowest = rows[:, 2].astype(float).max(), rows[:, 3].astype(float).min()
        volume, trades = rows[:, 5].astype(int).sum(), rows[:, 7].astype(int).sum()
        prices = f"{rows[0, 1]}\0{highest:.2f}\0{lowest:.2f}\0{rows[-1, 4]}"
        middle = (highest + lowest) / 2
        return f"{self._days[position]:%Y%m%d}\0{prices}\0{volume}\0{middle:.3f}\0{trades}\0"


@dataclass(slots=True)
class _Request:
    """A request for bars of one connection, until its response is sent."""

    request_id: int
    symbol: str
    bar_size: str
    sessions: int
    end_s: int
    arrived_s: float
    writer: asyncio.StreamWriter
    is_cancelled: bool = False
    timer: asyncio.TimerHandle | None = None
    served: "Served | None" = None

    @property
    def key(self) -> tuple[int, int]:
        return id(self.writer), self.request_id


@dataclass
class TimedGateway:
    """The gateway inside its event loop."""

    law: Law
    bars: PreparedBars
    served: list[Served] = field(default_factory=list)
    _queue: deque[_Request] = field(default_factory=deque)
    _open: dict[tuple[int, int], _Request] = field(default_factory=dict)
    _free: list[float] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self._free = [0.0] * self.law.workers

    @cached_property
    def _noise(self) -> np.random.Generator:
        return np.random.default_rng(self.law.seed)

    def report(self) -> list[Served]:
        """Return the requests for bars since the last report, oldest first."""
        found, self.served = self.served, []
        return sorted(found, key=lambda one: one.arrived_s)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it leaves."""
        try:
            await reader.readexactly(4)
            await _payload(reader)
            now = datetime.now(tz=UTC)
            writer.write(_message(SERVER_VERSION, f"{now:%Y%m%d %H:%M:%S} UTC"))
            while True:
                self._take(_fields(await _payload(reader)), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for request in [one for one in self._open.values() if one.writer is writer]:
                self._cancel(request.key)
            writer.close()

    def _take(self, fields: list[str], writer: asyncio.StreamWriter) -> None:
        kind = fields[0]
        if kind == _START:
            writer.write(_message(15, 1, ACCOUNT) + _message(9, 1, next(self._numbers)))
        elif kind == _TIME:
            writer.write(_message(49, 1, int(time.time())))
        elif kind == _CONTRACT:
            writer.write(_details(int(fields[2]), fields[4] or "AAPL"))
        elif kind == _HEAD:
            writer.write(_message(88, int(fields[1]), self.bars.oldest_s))
        elif kind == _CANCEL:
            self._cancel((id(writer), int(fields[2])))
        elif kind == _HISTORY:
            self._take_history(fields, writer)

    def _take_history(self, fields: list[str], writer: asyncio.StreamWriter) -> None:
        request_id, symbol, (end, bar_size, duration) = int(fields[1]), fields[3], fields[15:18]
        number, unit = duration.split()
        if bar_size not in _SUPPORTED or unit != "D":
            text = f"Error validating request: no {bar_size} over {duration} here"
            writer.write(_message(4, 2, request_id, 321, text, ""))
            return
        end_s = time.time()
        if end:
            end_s = datetime.strptime(f"{end}+0000", "%Y%m%d-%H:%M:%S%z").timestamp()
        now_s = time.monotonic()
        request = _Request(request_id, symbol, bar_size, int(number), int(end_s), now_s, writer)
        self._open[request.key] = request
        self._queue.append(request)
        self._serve(now_s)

    def _serve(self, now_s: float) -> None:
        """Begin the services of waiting requests while a worker is free."""
        while self._queue and self._free and self._free[0] <= now_s:
            request = self._queue.popleft()
            if request.is_cancelled:
                continue
            begun_s = max(heapq.heappop(self._free), request.arrived_s)
            waiting = sum(not one.is_cancelled for one in self._queue)
            service_s = self.law.mean_s(request.sessions) * self._factor()
            ends_s = begun_s + service_s * (1 + self.law.penalty * waiting)
            number = self.bars.bars_in(request.bar_size, request.sessions, request.end_s)
            served = Served(
                *(request.symbol, request.bar_size, request.sessions, number),
                *(request.arrived_s, begun_s, service_s, waiting),
            )
            request.served = served
            if math.isinf(ends_s):
                continue
            loop = asyncio.get_running_loop()
            delay_s = max(0.0, ends_s - time.monotonic())
            request.timer = loop.call_later(delay_s, self._answer, request, served, ends_s)

    def _answer(self, request: _Request, served: Served, ends_s: float) -> None:
        heapq.heappush(self._free, ends_s)
        del self._open[request.key]
        request.writer.write(
            self.bars.message(request.request_id, request.bar_size, request.sessions, request.end_s)
        )
        self.served.append(replace(served, ended_s=time.monotonic()))
        self._serve(time.monotonic())

    def _cancel(self, key: tuple[int, int]) -> None:
        """Stop a request; a worker that serves it is free again."""
        request = self._open.pop(key, None)
        if request is None:
            return
        request.is_cancelled = True
        if request.timer is not None:
            request.timer.cancel()
        if request.served is not None:
            now_s = time.monotonic()
            self.served.append(replace(request.served, bars=0, ended_s=now_s))
            heapq.heappush(self._free, now_s)
            self._serve(now_s)

    def _factor(self) -> float:
        """Return the next factor of service times, 1 on average."""
        if not self.law.noise:
            return 1.0
        variance = math.log(1 + self.law.noise**2)
        return float(self._noise.lognormal(-variance / 2, math.sqrt(variance)))


async def _payload(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    return await reader.readexactly(length)


def _fields(payload: bytes) -> list[str]:
    return payload.decode().split("\0")[:-1]


def _frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def _message(*fields: str | float) -> bytes:
    return _frame("".join(f"{one}\0" for one in fields).encode())


def _moment_text(moment_s: int) -> str:
    return f"{datetime.fromtimestamp(moment_s, UTC):%Y%m%d %H:%M:%S} UTC"


def _details(request_id: int, symbol: str) -> bytes:
    """Return the details of a stock, and their end."""
    contract_id = zlib.crc32(symbol.encode()) % 2**30 + 1
    kind = (symbol, "STK", "", 0, "", "SMART", "USD", symbol, "NMS", "NMS", contract_id, 0.01, "")
    names = ("LMT,MKT", "SMART,NASDAQ", 1, 0, f"{symbol} INC", "NASDAQ", "", "", "", "")
    hours = ("US/Eastern", _HOURS, _HOURS, "", "", 0)
    details = (10, request_id, *kind, *names, *hours, 1, "", "", "26", "", "COMMON", 1, 1, 100)
    return _message(*details) + _message(52, 1, request_id)


async def _serve_until_closed(law: Law) -> None:
    """Print the port, then a report for each line of input, until the input ends."""
    gateway = TimedGateway(law, PreparedBars(law.first, law.end))
    server = await asyncio.start_server(gateway.connected, "127.0.0.1", 0)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    while await lines.readline():
        print(json.dumps([asdict(one) for one in gateway.report()]), flush=True)
    server.close()


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """A running gateway: its law and its port on loopback."""

    law: Law
    port: int
    process: "subprocess.Popen[str]"

    @classmethod
    def start(cls, law: Law) -> Self:
        """Start a gateway, and return it once it listens."""
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(asdict(law))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with killed_after(_LONGEST_S, [process], "the start of the gateway"):
            line = process.stdout.readline()
            assert line, "the gateway did not start"
        return cls(law, int(line), process)

    def report(self) -> list[Served]:
        """Return the requests for bars since the last report, in the order of arrival."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with killed_after(_LONGEST_S, [self.process], "the gateway's report"):
            self.process.stdin.write("report\n")
            self.process.stdin.flush()
            return [Served(**one) for one in json.loads(self.process.stdout.readline())]


@contextmanager
def running_gateway(law: Law) -> Iterator[GatewayProcess]:
    """Run a gateway as a process of its own, and end it."""
    gateway = GatewayProcess.start(law)
    try:
        yield gateway
    finally:
        with killed_after(_LONGEST_S, [gateway.process], "the gateway"):
            gateway.process.communicate()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(_serve_until_closed(Law(**given)))
