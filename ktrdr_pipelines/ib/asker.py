"""Putting one question to the gateway, when the way is free and the budget allows it.

Not here: what is asked (``ib.source``), trying again after failures (``load.keeper``).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ktrdr_pipelines.core.answers import OnSent, unheard
from ktrdr_pipelines.core.breaker import Depth, depth_of
from ktrdr_pipelines.core.pacing import PacedRequest
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ConnectionLostError,
    DiskError,
    EntitlementError,
    GatewayError,
    GatewaySilentError,
    OutageError,
    PacingError,
    RequestExpiredError,
)
from ktrdr_pipelines.ib.clock import boot_time_s
from ktrdr_pipelines.ib.codes import NoDataError, QueryDroppedError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.entitlements import Entitlement, Entitlements
from ktrdr_pipelines.ib.gateway import Call, GatewayConnection
from ktrdr_pipelines.ib.pacer import Pacer
from ktrdr_pipelines.ib.questions import Topic
from ktrdr_pipelines.ib.slot import Slot
from ktrdr_pipelines.ib.waiting import OnWait, untold

HOLD_FACTOR = 1.5
"""How many deadlines long an unanswered request keeps its slot: the gateway may work on it."""

_PLACES_FULL, _LINK_LOST, _HISTORICAL_ERROR = 322, 1100, 162
_log = logging.getLogger(__name__)
T = TypeVar("T")


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Ask:
    """A question on its way: its topic, its words, what the budget sees of it, and its route.

    ``sent`` is told whenever it goes to the gateway. Where ``is_late`` when its turn has come, it
    is not sent.
    """

    topic: Topic
    asked: str
    paced: PacedRequest
    route: str
    sent: OnSent = unheard
    is_late: Callable[[], bool] = _never


class Asker:
    """Puts questions to one connected gateway, under the budget of all processes."""

    def __init__(
        self,
        connection: GatewayConnection,
        pacer: Pacer,
        config: GatewayConfig,
        *,
        waits: OnWait = untold,
    ) -> None:
        self._connection, self._pacer, self._waits = connection, pacer, waits
        self._hold_s, self._outage_s = config.timeout_s * HOLD_FACTOR, config.outage_s
        self._entitlements = Entitlements(pacer)
        connection.on_pacing(self._heed_complaint)

    @contextmanager
    def permitted(
        self, entitlement: Entitlement, asked: str, *, probes: bool = False
    ) -> Iterator[None]:
        """Let through what was not refused before, and remember a refusal.

        What ``probes`` goes past the refusals that earlier runs met; if it is answered they are
        forgotten.
        """
        self._entitlements.check(entitlement, asked, probes=probes)
        try:
            yield
        except EntitlementError as error:
            self._entitlements.note(entitlement, error)
            raise
        except NoDataError:
            self._entitlements.granted(entitlement)
            raise
        self._entitlements.granted(entitlement)

    async def ask(self, ask: Ask, call: Call[T]) -> T:
        """Ask, and ask again after outages of the gateway's own connections.

        These are no failures of the request: the connection to the gateway stays, and nobody
        above hears of them, until they have lasted too long. What is asked again within 15 s of
        its first asking waits for IB's rule of identical requests: that rule knows no excuse, and
        a request that is almost the same would be another one (an end that is a second later
        moves the start of a duration too, and clips another bar). Others go meanwhile.
        """
        begun_at_s: float | None = None
        while True:
            way = await self._connection.wait_for_way(
                ask.topic, ask.route, ask.asked, waits=self._waits
            )
            try:
                with way:
                    await self._pacer.admit(ask.asked, probe_s=self._hold_s, waits=self._waits)
                    return await self._once(ask, call)
            except OutageError as error:
                begun_at_s = boot_time_s() if begun_at_s is None else begun_at_s
                if boot_time_s() - begun_at_s >= self._outage_s:
                    raise
                _log.info("asked again: %s", error)

    async def _once(self, ask: Ask, call: Call[T]) -> T:
        """Ask when the budget allows it.

        What the gateway may still be working on keeps its slot for a while. A turn that comes
        when the connection has ended, or the gateway has lost its own to IB, is given back unused.
        """

        def write() -> None:
            if lost := self._connection.lost_link:
                raise OutageError(ask.asked, came=lost, code=_LINK_LOST)
            if ask.is_late():
                raise RequestExpiredError(
                    ask.asked,
                    came="its turn came when now meant another time",
                    remedy="It is requested with an end instead",
                )
            call.put()

        async with self._pacer.slot(
            ask.paced, hold_s=self._hold_s, waits=self._waits, write=write
        ) as slot:
            ask.sent()
            try:
                answer = await call.answer()
            except GatewayError as error:
                self._settle(slot, error, depth_of(ask.paced.kind))
                raise
            slot.answered()
        return answer

    def _settle(self, slot: Slot, error: GatewayError, depth: Depth) -> None:
        """Decide what a failed request means for the budget."""
        if isinstance(error, ConnectionLostError | OutageError):
            slot.cut()
        elif not isinstance(error, GatewaySilentError):
            slot.release()
        is_ill = isinstance(error, GatewaySilentError) or _is_gone(error)
        if is_ill or isinstance(error, PacingError | QueryDroppedError) or _is_unclear(error):
            ill_with = error.came if is_ill else None
            self._pacer.note_trouble(slot.sent_at_s, ill_with=ill_with, depth=depth)
        if isinstance(error, PacingError) and error.code != _PLACES_FULL:
            self._pacer.pause_after_violation()

    def _heed_complaint(self) -> None:
        """Pause after a complaint about all requests together.

        It comes in the middle of reading the socket: an error of the disk must not end the
        connection there, and the next request meets it again.
        """
        try:
            self._pacer.pause_after_violation()
        except DiskError as error:
            _log.warning("no pause could be noted: %s", error)


def _is_unclear(error: GatewayError) -> bool:
    """Say whether a refusal may be a complaint about too many requests, in words not known."""
    return isinstance(error, BadAnswerError) and error.code == _HISTORICAL_ERROR


def _is_gone(error: GatewayError) -> bool:
    """Say whether the connection ended, rather than that the gateway told of a lost query."""
    return isinstance(error, ConnectionLostError) and error.code is None
