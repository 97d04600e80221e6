"""What a gateway reports of itself: farms, lost links, its clock and health.

``GatewayStatus`` holds its messages about its own connections until they are revoked, and decides
which requests an outage blocks.

Not here: waiting for outages to end (``ib.connection.connection``).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.ib.connection.pending_requests import PendingRequest, Topic
from ktrdr_pipelines.ib.pacing.circuit_breaker import BreakerState
from ktrdr_pipelines.ib.pacing.gateway_memory import Vitals
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame
from ktrdr_pipelines.limits import Backoff, CodeClass, IbLimitsRegistry

_LINK_LOST, _SERVER_LOST, _MARKET_DATA = 1100, 2110, 2103
_LINK, _SERVER = (_LINK_LOST, ""), (_SERVER_LOST, "")
_RESTORED_BY = {2104: 2103, 2106: 2105, 2107: 2105, 2108: 2103, 2158: 2157}
"""Which trouble with a data farm ends when a farm is reported connected."""

GOOD_NEWS = frozenset({1101, 1102, *_RESTORED_BY})
"""Codes that end a trouble; they fail pending requests only so that they are sent again."""

_KINDS = {2103: "market data", 2105: "historical data", 2157: "contracts"}
_IDLE = frozenset({2107, 2108})
_CONNECTED = frozenset({2104, 2106, 2158})
_NEEDED = MappingProxyType({Topic.BARS: 2105, Topic.HEAD: 2105, Topic.CONTRACT: 2157})
"""Which outage blocks which requests."""

_NAME = r"[A-Za-z]\w*(?:[.-]\w+)*"
_FARM_AT_END = (
    re.compile(rf"[:\uff1a]\s*({_NAME})?[.\u3002]?\s*$", re.ASCII),
    re.compile(rf"[.\u3002]\s*({_NAME})[.\u3002]?\s*$", re.ASCII),
)
"""A farm is named at the end of a text, whose words are in the gateway's language: after a colon
(``... is broken:usfarm.nj``), or else after a full stop (``... upon demand.ushmds``)."""

_FARM_LIST = re.compile(
    rf"[:\uff1a]\s*({_NAME}(?:\s*[;,]\s*{_NAME})*)\s*;?\s*(?:[.\u3002]|$)", re.ASCII
)
_NOT_CONNECTED = "not connected"


class FarmState(StrEnum):
    """What the gateway last reported of a data farm; it connects to an idle one when needed."""

    OK = "ok"
    IDLE = "idle"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Farm:
    """One of IB's data farms as the gateway sees it."""

    kind: str
    name: str
    state: FarmState

    def __str__(self) -> str:
        return f"{self.kind} {self.name or '(no name)'} {self.state}"


Key = tuple[int, str]
"""Identifies a trouble: its code, and the farm that it is about."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The gateway's message, and the number of the last request sent before it."""

    text: str
    after: int


@dataclass(slots=True, eq=False)
class Probe:
    """When one request may test whether a route is served despite a broken farm.

    ``due_at`` is by the caller's clock; ``backoff`` gives the pause after so many ``failures``;
    ``is_out`` is true while that request is in flight.
    """

    due_at: float
    backoff: Backoff
    failures: int = 0
    is_out: bool = False


class GatewayStatus:
    """Keeps the troubles that the gateway has reported and not yet declared over.

    The gateway may never declare one over: a restored link (1101, 1102) lists farms, and one that
    it omits stays broken until a message of its own, possibly for ever. So one request of each
    route is let through after a while, as a probe, while the others of the route wait for its
    result.

    IB does not document which farm serves which instrument. A request that is sent while a farm is
    broken, and still gets a response, shows that its route does not need that farm; until then any
    broken farm of the kind may be the one that it needs. If the gateway has lost IB's server (2110,
    reported with a lost link or alone), a connected farm or a response shows that it has it again:
    no documented message ends that state.
    """

    def __init__(self) -> None:
        self._troubles: dict[Key, _Trouble] = {}
        self._unaffected: set[tuple[Key, str]] = set()
        self._farms: dict[Key, Farm] = {}
        self._probes: dict[tuple[int, str], Probe] = {}

    @property
    def lost_link(self) -> str:
        """The gateway's message about its lost connection to IB; empty while it is connected."""
        return self._troubles[_LINK].text if _LINK in self._troubles else ""

    @property
    def troubles(self) -> tuple[str, ...]:
        """All current troubles, in the gateway's words.

        They do not include a broken farm that every route affected by it has proved not to need.
        """
        return tuple(t.text for key, t in self._troubles.items() if not self._is_harmless(key))

    @property
    def farms(self) -> tuple[Farm, ...]:
        """The last known state of each data farm."""
        return tuple(self._farms.values())

    def obstacle(self, topic: Topic, route: str) -> str:
        """Return what blocks a request, in the gateway's words; empty if nothing does."""
        return self._blocking(_NEEDED[topic], route)

    def probe(self, topic: Topic, route: str, now: float, *, first_s: float) -> Probe:
        """Return the probe of a route that an obstacle blocks.

        Args:
            topic, route: those of the request.
            now: the clock.
            first_s: how long the first request of the route waits for news before it is let
                through; the pause after a failed probe begins with it and doubles.
        """
        key = _NEEDED[topic], route
        if key not in self._probes:
            backoff = IbLimitsRegistry.FARM_PROBE_PAUSE_S.value.starting(first_s)
            self._probes[key] = Probe(now + first_s, backoff)
        return self._probes[key]

    def probed(self, probe: Probe, now: float, *, failed: bool) -> None:
        """Record the end of a probe; ``answered`` has recorded what a response shows of its route.

        After a failed probe the next one waits. After one that the gateway refused, or that was
        never sent, the next may follow at once: it showed nothing about the farm.
        """
        probe.is_out = False
        probe.failures += failed
        probe.due_at = now + probe.backoff.delay_s(probe.failures) if failed else now
        self._drop_probes()

    def was_affected(self, pending: PendingRequest, over: Iterable[Key]) -> bool:
        """Return whether troubles that are over may have cost a request its response."""
        return any(self._affects(key, _NEEDED[pending.topic], pending.route) for key in over)

    def answered(self, pending: PendingRequest) -> None:
        """Record a response; a request sent before a trouble shows nothing about it."""
        self._unaffected |= {
            (key, pending.route)
            for key, trouble in self._troubles.items()
            if pending.number > trouble.after and _shows(pending.topic, key)
        }
        self._drop_probes()

    def take(self, frame: ErrorFrame, *, after: int = 0) -> tuple[Key, ...]:
        """Record a trouble, or drop those that are over; return the troubles that are over.

        Args:
            frame: the gateway's message.
            after: the number of the last request that was sent before it.
        """
        farm = _farm(frame)
        if frame.code_class is CodeClass.RESUME:
            return (_LINK, *self._resume(frame))
        if frame.code_class is CodeClass.PAUSE:
            key = (frame.code, farm)
            self._troubles[key] = _Trouble(str(frame), after)
            self._unaffected = {one for one in self._unaffected if one[0] != key}
            self._see(*key, FarmState.BROKEN)
        elif frame.code in _RESTORED_BY:
            code = _RESTORED_BY[frame.code]
            self._see(code, farm, FarmState.IDLE if frame.code in _IDLE else FarmState.OK)
            return self._forget(lambda key: _is_restored(key, frame.code, farm))
        return ()

    def _blocking(self, need: int, route: str) -> str:
        troubles = self._troubles.items()
        return next((one.text for key, one in troubles if self._affects(key, need, route)), "")

    def _affects(self, key: Key, need: int, route: str) -> bool:
        if key == _LINK:
            return True
        return key[0] in {need, _SERVER_LOST} and (key, route) not in self._unaffected

    def _is_harmless(self, key: Key) -> bool:
        is_unaffected = any(spared == key for spared, _ in self._unaffected)
        return is_unaffected and not any(self._affects(key, *route) for route in self._probes)

    def _drop_probes(self) -> None:
        """Drop the probes of routes that are no longer blocked."""
        self._probes = {key: one for key, one in self._probes.items() if self._blocking(*key)}

    def _resume(self, frame: ErrorFrame) -> tuple[Key, ...]:
        """Drop the lost link, and the troubles of the farms that the text calls connected.

        Of a farm that it does not mention only market data troubles are dropped: no request needs
        those, so no probe could ever end them. Farms that are still broken are probed anew, from
        the first pause.
        """
        connected, missing = _listed_farms(frame.text)
        for key in [key for key in self._farms if key[1] in connected]:
            self._see(*key, FarmState.OK)
        self._probes = {}
        return self._forget(
            lambda key: (
                key in {_LINK, _SERVER}
                or key[1] in connected
                or (key[0] == _MARKET_DATA and key[1] not in missing)
            )
        )

    def _see(self, code: int, farm: str, state: FarmState) -> None:
        if code in _KINDS:
            self._farms[code, farm] = Farm(_KINDS[code], farm, state)

    def _forget(self, is_over: Callable[[Key], bool]) -> tuple[Key, ...]:
        over = tuple(filter(is_over, self._troubles))
        for key in over:
            del self._troubles[key]
        self._drop_probes()
        return over


def _shows(topic: Topic, key: Key) -> bool:
    """Return whether a response shows that a trouble does not affect its route.

    Contracts may come from the gateway's own memory.
    """
    return key[0] == _NEEDED[topic] or (key == _SERVER and topic is not Topic.CONTRACT)


def _is_restored(key: Key, code: int, farm: str) -> bool:
    """Return whether a message about a connected farm ends a trouble."""
    if key == _SERVER:
        return code in _CONNECTED
    return key[0] == _RESTORED_BY[code] and (not farm or key[1] in {farm, ""})


def _farm(frame: ErrorFrame) -> str:
    """Return the farm that a text names at its end; empty if none."""
    if frame.code in {_LINK_LOST, _SERVER_LOST}:
        return ""
    found = (pattern.search(frame.text) for pattern in _FARM_AT_END)
    return next((one[1] or "" for one in found if one), "")


def _listed_farms(text: str) -> tuple[set[str], set[str]]:
    """Return the farms that 1101 or 1102 calls connected, and those that it calls not connected.

    Forms: ``... All data farms are connected: usfarm; ushmds; secdefnj.`` and ``... The following
    farms are connected: a; b. The following farms are not connected: c.`` (grade L). In another
    language the first list is of the connected ones, as in both forms.
    """
    connected: set[str] = set()
    missing: set[str] = set()
    end = 0
    for number, found in enumerate(_FARM_LIST.finditer(text)):
        lead, end = text[end : found.start()].casefold(), found.end()
        is_connected = _NOT_CONNECTED not in lead and (number == 0 or "connected" in lead)
        names = {name.strip() for name in re.split("[;,]", found[1])}
        (connected if is_connected else missing).update(names)
    return connected, missing


CLOCK_REFRESH_S = 600.0
"""Age in seconds at which the last reading of the gateway's clock is repeated."""

_END_OF_CLOCKS_S = 4_102_444_800  # 2100


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a connection: the time of a round trip (None: no response) and known troubles.

    ``last_answer_age_s`` is the age of the last response to a data request (None: there was none);
    ``clock_offset_s`` is how far the gateway's clock is ahead of this machine's, to a second.
    ``breaker`` is the circuit breaker of all processes, ``concurrency`` how many requests for bars
    they may have in flight together; all of them pause for ``paused_s`` more after a violation.
    """

    gateway: str
    connected: bool
    round_trip_s: float | None
    last_answer_age_s: float | None
    clock_offset_s: float
    troubles: tuple[str, ...]
    farms: tuple[Farm, ...] = ()
    breaker: BreakerState = BreakerState.CLOSED
    concurrency: int | None = None
    paused_s: float = 0.0

    @property
    def is_good(self) -> bool:
        """Return whether the gateway responds and reports no trouble."""
        return self.connected and self.round_trip_s is not None and not self.troubles


def with_vitals(health: Health, vitals: Vitals) -> Health:
    """Return the health of a connection with what all processes know of the gateway."""
    age_s = boot_time_s() - vitals.answered_at if vitals.answered_at else None
    return replace(
        health,
        last_answer_age_s=health.last_answer_age_s if age_s is None else age_s,
        breaker=vitals.breaker.state,
        concurrency=vitals.concurrency,
        paused_s=vitals.paused_s,
    )


class GatewayClock:
    """The gateway's clock, advanced by this machine's since it was last read.

    The gateway tells its time rounded down to the second, so this clock is never ahead of it.
    """

    def __init__(self, clock: Callable[[], float] = boot_time_s) -> None:
        self._clock = clock
        self._epoch_s, self._seen_at_s = 0, clock()

    def see(self, epoch_s: int) -> None:
        """Record the gateway's time.

        Raises:
            ValueError: the number is not a plausible time.
        """
        if not 0 < epoch_s < _END_OF_CLOCKS_S:
            raise ValueError(f"a clock at {epoch_s} s")
        self._epoch_s, self._seen_at_s = epoch_s, self._clock()

    def now(self) -> datetime:
        """Return the gateway's time."""
        passed_s = self._clock() - self._seen_at_s
        return datetime.fromtimestamp(self._epoch_s, UTC) + timedelta(seconds=passed_s)

    @property
    def is_stale(self) -> bool:
        """Return whether the clock should be read again."""
        return self._clock() - self._seen_at_s > CLOCK_REFRESH_S
