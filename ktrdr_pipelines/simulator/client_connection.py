"""One client's socket: it performs the actions that a ``ClientSession`` returns.

Not here: what a message means and what follows from it (``protocol.client_session``), and how one
request is served (``serving``).
"""

import asyncio
from contextlib import suppress

from ktrdr_pipelines.simulator.faults.faults import Fault
from ktrdr_pipelines.simulator.protocol.client_session import (
    Abandon,
    Action,
    ClientSession,
    Close,
    Refuse,
    Send,
    Serve,
    Stage,
)
from ktrdr_pipelines.simulator.protocol.messages import DataRequest
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.serving import OpenRequest, Outbox, compute_response, deliver, follow
from ktrdr_pipelines.simulator.simulated_gateway import Gateway

_READ_BYTES = 65_536
_CANCELLED = 162


class Connection:
    """A connected client, from its first byte to its last response."""

    def __init__(
        self, gateway: Gateway, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._gateway = gateway
        self._reader = reader
        self._writer = writer
        self._outbox = Outbox(writer)
        self._session = ClientSession(
            gateway.rules,
            account=gateway.account,
            now=gateway.announced_now,
            ignores=gateway.ignores,
            variants=gateway.behaviour.variants,
        )
        self._open: dict[int, OpenRequest] = {}
        self._tasks: dict[asyncio.Task[None], OpenRequest] = {}
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"Connection({self._session!r}, {len(self._open)} open)"

    async def run(self) -> None:
        """Serve the client until either side closes the connection."""
        died = True
        try:
            with suppress(OSError):
                await self._read_unless_faulty()
                died = False
        finally:
            if self._session.client_id is not None:
                self._gateway.journal.note("left", client_id=self._client_id, died=died)
            self._session.leave(died=died)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close_socket()
            self._ended.set()

    async def end(self) -> None:
        """Cut the socket, even with unsent data, and wait until the connection has ended."""
        self.drop()
        await self._ended.wait()

    def drop(self) -> None:
        """Cut the socket."""
        self._writer.transport.abort()

    def notify(self, notice: ApiError) -> None:
        """Send a notice, if the client has completed its start-up."""
        if self._session.stage is Stage.READY:
            self._outbox.send(self._session.error(notice))

    async def _read_unless_faulty(self) -> None:
        rule = self._gateway.fault_of_connection()
        if rule is not None and rule.fault is Fault.IDS_HELD:
            self._gateway.rules.hold_all(rule.number("seconds"))
        if rule is None or rule.fault is Fault.IDS_HELD:
            await self._read_messages()
        elif rule.fault is Fault.NO_RESPONSE:
            while await self._reader.read(_READ_BYTES):
                pass

    async def _read_messages(self) -> None:
        while data := await self._reader.read(_READ_BYTES):
            was_ready = self._session.stage is Stage.READY
            actions = self._session.receive(data)
            is_new = self._session.stage is Stage.READY and not was_ready
            if is_new:
                self._gateway.journal.note("connected", client_id=self._client_id)
            for action in actions:
                if isinstance(action, Close):
                    return
                self._perform(action)
            if is_new:  # outages that began before it connected
                for notice in self._gateway.outages.notices():
                    self.notify(notice)
            await self._writer.drain()

    async def _close_socket(self) -> None:
        """Close the socket once everything is sent; cut off a client that does not read in time."""
        self._writer.close()
        with suppress(OSError):
            async with asyncio.timeout(self._gateway.behaviour.linger_s):
                await self._writer.wait_closed()
        self.drop()

    def _perform(self, action: Action) -> None:
        match action:
            case Send(data):
                self._outbox.send(data)
            case Serve(request):
                self._begin(request)
            case Refuse(request, error):
                number = self._gateway.recorded(request, self._client_id)
                self._gateway.log.finish(number, count=None, error_code=error.code)
                self._outbox.send(self._session.error(error))
            case Abandon(request_id, error):
                self._abandon(request_id)
                if error is not None:
                    self._outbox.send(self._session.error(error))

    @property
    def _client_id(self) -> int:
        return -1 if self._session.client_id is None else self._session.client_id

    def _begin(self, request: DataRequest) -> None:
        gateway = self._gateway
        call = OpenRequest(
            request,
            client_id=self._client_id,
            number=gateway.recorded(request, self._client_id),
            version=self._session.version,
            outages_before=gateway.outages.begun,
            fault=gateway.fault_of(request),
        )
        task = asyncio.create_task(self._serve(call))
        self._open[request.request_id] = call
        self._tasks[task] = call
        task.add_done_callback(self._check)

    def _abandon(self, request_id: int) -> None:
        """Stop a request that is being computed; a served head timestamp has no task left."""
        call = self._open.pop(request_id, None)
        if call is None:
            return
        call.cancelled.set()
        if self._gateway.log.is_open(call.number):
            self._gateway.log.finish(call.number, count=None, error_code=_CANCELLED)
        for task, other in self._tasks.items():
            if other is call and not call.meets(Fault.BARS_AFTER_CANCEL):
                task.cancel()

    async def _serve(self, call: OpenRequest) -> None:
        answered = await compute_response(self._gateway, self._outbox, call)
        if answered is None:
            self._outbox.close()
            return
        if call.is_live and answered.error_code is None:
            self._gateway.log.finish(call.number, count=answered.count, error_code=None)
            await deliver(self._outbox, call, answered.data)
            await follow(self._gateway, self._outbox, call)
            return
        if not call.meets(Fault.BARS_AFTER_CANCEL):
            self._close(call, answered.count, answered.error_code)
        await deliver(self._outbox, call, answered.data)

    def _close(self, call: OpenRequest, count: int | None, error_code: int | None) -> None:
        """Free the slot of a request whose response is ready."""
        del self._open[call.request.request_id]
        self._session.answered(call.request)
        self._gateway.log.finish(call.number, count=count, error_code=error_code)

    def _check(self, task: asyncio.Task[None]) -> None:
        """End the connection when computing a response failed, so that the client does not wait."""
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._writer.close()
            raise error
