"""One client's socket: it performs the actions of a ``ClientSession``."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from ktrdr_pipelines.simulator.actions import Abandon, Action, Close, Refuse, Send, Serve
from ktrdr_pipelines.simulator.answers import answer
from ktrdr_pipelines.simulator.clock import SimClock
from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.messages import DataRequest
from ktrdr_pipelines.simulator.reading import Setting
from ktrdr_pipelines.simulator.record import RequestLog, record_of
from ktrdr_pipelines.simulator.rules import GatewayRules
from ktrdr_pipelines.simulator.session import ClientSession, kind_of
from ktrdr_pipelines.simulator.steps import DurationTable
from ktrdr_pipelines.simulator.updates import EVERY_S, LiveBars, live_bars

_READ_BYTES = 65_536
_CANCELLED = 162


@dataclass(slots=True)
class Gateway:
    """What all connections of one gateway share."""

    market: Market
    clock: SimClock
    rules: GatewayRules
    log: RequestLog
    account: str
    latency_s: float
    durations: DurationTable = DurationTable.WIDE
    update_s: float = EVERY_S


class Connection:
    """A connected client, from its first byte to its last answer."""

    def __init__(
        self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._gateway = gateway
        self._reader = reader
        self._writer = writer
        self._session = ClientSession(gateway.rules, account=gateway.account, now=gateway.clock.now)
        self._open: dict[int, tuple[asyncio.Task[None], int]] = {}
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"Connection({self._session!r}, {len(self._open)} open)"

    async def run(self) -> None:
        """Talk until either side closes."""
        try:
            with suppress(OSError):
                await self._talk()
        finally:
            self._session.leave()
            await self._stop_tasks()
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
            self._ended.set()

    async def end(self) -> None:
        """Cut the socket, read or not by the client, and wait until everything is done."""
        self._writer.transport.abort()
        await self._ended.wait()

    async def _talk(self) -> None:
        while data := await self._reader.read(_READ_BYTES):
            for action in self._session.receive(data):
                if isinstance(action, Close):
                    await self._writer.drain()
                    return
                self._perform(action)
            await self._writer.drain()

    def _perform(self, action: Action) -> None:
        match action:
            case Send(data):
                self._writer.write(data)
            case Serve(request):
                self._begin(request)
            case Refuse(request, error):
                self._gateway.log.finish(self._recorded(request), count=None, error_code=error.code)
                self._writer.write(self._session.error(error))
            case Abandon(request_id):
                self._abandon(request_id)
            case Close():
                self._writer.close()

    def _recorded(self, request: DataRequest) -> int:
        client_id = -1 if self._session.client_id is None else self._session.client_id
        return self._gateway.log.add(
            record_of(
                request,
                client_id=client_id,
                kind=kind_of(request),
                received=self._gateway.clock.now(),
            )
        )

    def _begin(self, request: DataRequest) -> None:
        place = self._recorded(request)
        task = asyncio.create_task(self._serve(request, place))
        task.add_done_callback(self._check)
        self._open[request.request_id] = (task, place)

    def _abandon(self, request_id: int) -> None:
        """Stop a request that is still computed; an answered head timestamp has no task left."""
        if request_id in self._open:
            task, place = self._open.pop(request_id)
            task.cancel()
            if self._gateway.log.is_open(place):
                self._gateway.log.finish(place, count=None, error_code=_CANCELLED)

    async def _serve(self, request: DataRequest, place: int) -> None:
        gateway = self._gateway
        await asyncio.sleep(gateway.latency_s)
        setting = self._setting()
        found = await asyncio.to_thread(answer, setting, request)
        gateway.log.finish(place, count=found.count, error_code=found.error_code)
        if found.error_code is None and (live := live_bars(request)) is not None:
            self._writer.write(found.data)
            await self._follow(live, setting)
        del self._open[request.request_id]
        self._session.answered(request)
        self._writer.write(found.data)

    async def _follow(self, live: LiveBars, answered_at: Setting) -> None:
        """Send updates until the request is cancelled: so long it is open and has its slot."""
        await asyncio.to_thread(live.fresh, answered_at)
        while True:
            await asyncio.sleep(self._gateway.update_s)
            self._writer.write(await asyncio.to_thread(live.fresh, self._setting()))

    def _setting(self) -> Setting:
        gateway = self._gateway
        now_s = int(gateway.clock.now().timestamp())
        return Setting(gateway.market, self._session.version, now_s, gateway.durations)

    def _check(self, task: asyncio.Task[None]) -> None:
        """End the connection when an answer failed, so that no client waits for it in vain."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._writer.close()
            raise error

    async def _stop_tasks(self) -> None:
        tasks = [task for task, _ in self._open.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
