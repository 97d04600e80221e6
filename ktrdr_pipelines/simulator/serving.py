"""Serve one request over one connection, with delays, faults and live updates.

``compute_response`` computes a response and waits as a busy gateway would, ``deliver`` sends it as
its fault demands, ``follow`` sends the updates of live bars. ``Outbox`` writes the frames of one
connection.

Not here: the content of a response (``requests.answers``).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ktrdr_pipelines.simulator.faults.effects import injected_error, mutated
from ktrdr_pipelines.simulator.faults.faults import RESPONSE_MUTATIONS, Fault, FaultRule
from ktrdr_pipelines.simulator.protocol import replies
from ktrdr_pipelines.simulator.protocol.languages import localised
from ktrdr_pipelines.simulator.protocol.messages import DataRequest, HistoryRequest
from ktrdr_pipelines.simulator.requests.answers import Answer, answer
from ktrdr_pipelines.simulator.requests.live_updates import LiveBars
from ktrdr_pipelines.simulator.requests.pacing_rules import PacingRule, is_small_bar
from ktrdr_pipelines.simulator.requests.validation import Setting
from ktrdr_pipelines.simulator.simulated_gateway import Gateway

PIECES = 20
"""The number of pieces of a response that is sent slowly."""

COMPUTED_AT_ONCE = 4
"""How many responses of one client are computed concurrently."""


class Outbox:
    """Write frames in the order given; while one is sent slowly, the others wait."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._slow = asyncio.Lock()
        self._computing = asyncio.Semaphore(COMPUTED_AT_ONCE)
        self._waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        """Send frames, after the one that is being sent slowly if there is one."""
        if self._slow.locked():
            self._waiting.append(data)
        elif not self._writer.is_closing():
            self._writer.write(data)

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """Wait until another response may be computed.

        Unsent responses lie in memory: for a client that does not read, only a few more are
        computed than fit in the socket.
        """
        async with self._computing:
            await self.drained()
            yield

    async def drained(self) -> None:
        """Wait until the client has read nearly all that was sent, or has disconnected."""
        with suppress(OSError):
            await self._writer.drain()

    async def trickle(self, data: bytes, seconds: float) -> None:
        """Send a frame in pieces over some seconds; if cancelled, send the rest at once."""
        async with self._slow:
            size = -(-len(data) // PIECES)
            sent = 0
            try:
                while sent < len(data):
                    self._writer.write(data[sent : sent + size])
                    sent += size
                    await asyncio.sleep(seconds / PIECES)
            finally:
                held, self._waiting = self._waiting, []
                if not self._writer.is_closing():
                    self._writer.write(data[sent:] + b"".join(held))

    def close(self) -> None:
        """Close the socket once everything is sent."""
        self._writer.close()


@dataclass(slots=True)
class OpenRequest:
    """One open request: its client, its number in the request log, its fault and its state.

    ``outages_before`` counts the outages up to its arrival. ``answered_at`` is the setting from
    which its response was computed. ``cancelled`` is set when the client cancels it.
    """

    request: DataRequest
    client_id: int
    number: int
    version: int
    fault: FaultRule | None
    outages_before: int
    answered_at: Setting | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_live(self) -> bool:
        """Whether it is a request for live bars, which are kept up to date."""
        return isinstance(self.request, HistoryRequest) and self.request.keep_up_to_date

    def meets(self, *faults: Fault) -> bool:
        """Return whether its fault is one of these."""
        return self.fault is not None and self.fault.fault in faults


async def compute_response(gateway: Gateway, outbox: Outbox, call: OpenRequest) -> Answer | None:
    """Return the response to a request when it is due; None if the connection must be closed.

    For a request that hangs it never returns; the caller cancels it.
    """
    if call.meets(Fault.NO_RESPONSE) or gateway.outages.is_on:
        await _for_ever()
    await asyncio.sleep(gateway.latency_s)
    if call.meets(Fault.HANG_UP):
        return None
    answered = await _computed(gateway, outbox, call)
    if not await _has_worker(gateway, call, answered):
        return None
    if call.fault is not None and call.fault.fault is Fault.LATE:
        await asyncio.sleep(call.fault.number("seconds"))
    if _is_cut_short(gateway, call):
        await _for_ever()
    return answered


async def follow(gateway: Gateway, outbox: Outbox, call: OpenRequest) -> None:
    """Send updates of live bars until the request is cancelled; it keeps its slot until then."""
    if not isinstance(call.request, HistoryRequest) or call.answered_at is None:
        return
    live = LiveBars(call.request)
    await asyncio.to_thread(live.fresh, call.answered_at)
    while not call.cancelled.is_set():
        await asyncio.sleep(gateway.behaviour.update_s)
        await outbox.drained()
        updates = await asyncio.to_thread(live.fresh, gateway.setting(call.version))
        if _is_cut_short(gateway, call):
            await _for_ever()
        outbox.send(updates)


async def deliver(outbox: Outbox, call: OpenRequest, data: bytes) -> None:
    """Send a response, whole or as its fault demands."""
    how = None if call.fault is None else _DELIVERIES.get(call.fault.fault)
    if call.fault is None or how is None:
        outbox.send(data)
    else:
        await how(outbox, call, call.fault, data)


def _is_cut_short(gateway: Gateway, call: OpenRequest) -> bool:
    """Return whether an outage began after a request, which then gets no response."""
    return gateway.outages.is_on or gateway.outages.begun != call.outages_before


async def _for_ever() -> NoReturn:
    while True:
        await asyncio.Event().wait()


async def _computed(gateway: Gateway, outbox: Outbox, call: OpenRequest) -> Answer:
    """Compute the response, or the one that a fault puts in its place."""
    setting, request, rule = gateway.setting(call.version), call.request, call.fault
    call.answered_at = setting
    refused = None if rule is None else injected_error(rule, request)
    language = setting.variants.language
    if refused is not None:
        data = replies.error(call.version, localised(language, refused))
        return Answer(data, error_code=refused.code)
    async with outbox.room():
        answered = await asyncio.to_thread(answer, setting, request)
    if rule is None or rule.fault not in RESPONSE_MUTATIONS or answered.error_code is not None:
        return answered
    return mutated(
        answered, rule, version=call.version, request_id=request.request_id, language=language
    )


async def _has_worker(gateway: Gateway, call: OpenRequest, answered: Answer) -> bool:
    """Wait for a worker if longer bars share a few; return False if too many wait already."""
    request = call.request
    if gateway.workers is None or not isinstance(request, HistoryRequest):
        return True
    if is_small_bar(request.bar_size):
        return True
    seconds = gateway.workers.reserve(answered.count or 0, has_end=bool(request.end))
    if seconds is None:
        gateway.rules.violated(PacingRule.OVERLOAD, call.client_id)
        return False
    await asyncio.sleep(seconds)
    return True


async def _cut(outbox: Outbox, _: OpenRequest, rule: FaultRule, data: bytes) -> None:
    outbox.send(data[: max(1, int(len(data) * rule.number("share")) - 1)])
    outbox.close()


async def _trickle(outbox: Outbox, _: OpenRequest, rule: FaultRule, data: bytes) -> None:
    await outbox.trickle(data, rule.number("seconds"))


async def _after_cancel(outbox: Outbox, call: OpenRequest, rule: FaultRule, data: bytes) -> None:
    await call.cancelled.wait()
    await asyncio.sleep(rule.number("seconds"))
    outbox.send(data)


_DELIVERIES: dict[
    Fault, Callable[[Outbox, OpenRequest, FaultRule, bytes], Coroutine[Any, Any, None]]
] = {
    Fault.CUT: _cut,
    Fault.TRICKLE: _trickle,
    Fault.BARS_AFTER_CANCEL: _after_cancel,
}
