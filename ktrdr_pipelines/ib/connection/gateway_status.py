"""What a gateway says of itself: farms, lost links, its clock, its health.

How a connection is, and the gateway's clock as it was last seen.

What a gateway says about its own connections, as far as it still holds.
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
from ktrdr_pipelines.ib.pacing.shared_state import Vitals
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame
from ktrdr_pipelines.limits import CodeClass

_LINK_LOST, _SERVER_LOST, _MARKET_DATA = 1100, 2110, 2103
_LINK, _SERVER = (_LINK_LOST, ""), (_SERVER_LOST, "")
_RESTORED_BY = {2104: 2103, 2106: 2105, 2107: 2105, 2108: 2103, 2158: 2157}
"""Which trouble with a data farm is over when a farm is reported well."""

GOOD_NEWS = frozenset({1101, 1102, *_RESTORED_BY})
"""Codes that call a trouble off; they end open questions only so that they are put again."""

_KINDS = {2103: "market data", 2105: "historical data", 2157: "contracts"}
_IDLE = frozenset({2107, 2108})
_CONNECTED = frozenset({2104, 2106, 2158})
_NEEDED = MappingProxyType({Topic.BARS: 2105, Topic.HEAD: 2105, Topic.CONTRACT: 2157})
"""Whose outage stands in the way of which question."""

_NAME = r"[A-Za-z]\w*(?:[.-]\w+)*"
_FARM_AT_END = (
    re.compile(rf"[:\uff1a]\s*({_NAME})?[.\u3002]?\s*$", re.ASCII),
    re.compile(rf"[.\u3002]\s*({_NAME})[.\u3002]?\s*$", re.ASCII),
)
"""A farm is named at the end of a text, whose words are in the gateway's language: behind a colon
(``... is broken:usfarm.nj``), or else behind a full stop (``... upon demand.ushmds``)."""

_FARM_LIST = re.compile(
    rf"[:\uff1a]\s*({_NAME}(?:\s*[;,]\s*{_NAME})*)\s*;?\s*(?:[.\u3002]|$)", re.ASCII
)
_NOT_CONNECTED = "not connected"

LONGEST_PROBE_PAUSE_S = 300.0
"""Longest pause between two probes of a route whose farm stays broken."""


class FarmState(StrEnum):
    """What the gateway last said of a data farm; an idle one is connected to when needed."""

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
"""A trouble: its code, and the farm that it is about."""


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What the gateway said, and the last question that was asked before it."""

    text: str
    after: int


@dataclass(slots=True, eq=False)
class Probe:
    """When one request may test whether a route is served in spite of a broken farm.

    ``due_at`` is by the caller's clock; ``is_out`` says that the one request is on its way.
    """

    due_at: float
    pause_s: float
    is_out: bool = False


class GatewayStatus:
    """Keeps the troubles that the gateway has told of and not yet called off.

    The gateway may never call one off: a restored link (1101, 1102) lists farms, and one that it
    omits stays broken until a message of its own, possibly for ever. So one request of each route
    is let through after a while, as a probe, while the others of the route wait for its result.

    Nobody tells which farm serves which instrument. A question that is asked while a farm is
    broken, and answered all the same, shows that its route does not need that farm; until then
    any broken farm of the kind may be the one. Where the gateway has lost IB's server (2110), which
    it may tell beside a lost link or alone, a farm that is well or an answer shows that it has it
    again: nobody says that a message of its own ends that.
    """

    def __init__(self) -> None:
        self._troubles: dict[Key, _Trouble] = {}
        self._spared: set[tuple[Key, str]] = set()
        self._farms: dict[Key, Farm] = {}
        self._probes: dict[tuple[int, str], Probe] = {}

    @property
    def lost_link(self) -> str:
        """What the gateway said when it lost its own connection, or nothing if it has one."""
        return self._troubles[_LINK].text if _LINK in self._troubles else ""

    @property
    def troubles(self) -> tuple[str, ...]:
        """Everything that is wrong now, in the gateway's words.

        A broken farm that every route which met it turned out to do without is none.
        """
        return tuple(t.text for key, t in self._troubles.items() if not self._is_harmless(key))

    @property
    def farms(self) -> tuple[Farm, ...]:
        """What is known of each data farm."""
        return tuple(self._farms.values())

    def obstacle(self, topic: Topic, route: str) -> str:
        """Say what stands in the way of a question, in the gateway's words, or nothing."""
        return self._blocking(_NEEDED[topic], route)

    def probe(self, topic: Topic, route: str, now: float, *, first_s: float) -> Probe:
        """Return the probe of a question's route, which an obstacle stands in the way of.

        Args:
            topic, route: those of the question.
            now: the clock.
            first_s: how long the first request of the route waits for news before it is let
                through; the pause after a probe that failed begins with it and doubles.
        """
        key = _NEEDED[topic], route
        if key not in self._probes:
            self._probes[key] = Probe(now + first_s, first_s)
        return self._probes[key]

    def probed(self, probe: Probe, now: float, *, failed: bool) -> None:
        """Take in that a probe ended; what it showed of its route was taken in by ``answered``.

        After one that failed the next waits. After one that the gateway refused, or that was
        never sent, the next may go at once: nothing was learned, and nothing speaks against it.
        """
        probe.is_out = False
        probe.due_at = now + probe.pause_s if failed else now
        if failed:
            probe.pause_s = min(probe.pause_s * 2, LONGEST_PROBE_PAUSE_S)
        self._drop_probes()

    def cost(self, pending: PendingRequest, over: Iterable[Key]) -> bool:
        """Say whether troubles that are over may have cost a question its answer."""
        return any(self._affects(key, _NEEDED[pending.topic], pending.route) for key in over)

    def answered(self, pending: PendingRequest) -> None:
        """Take in that a question was answered; one asked before a trouble shows nothing of it."""
        self._spared |= {
            (key, pending.route)
            for key, trouble in self._troubles.items()
            if pending.number > trouble.after and _shows(pending.topic, key)
        }
        self._drop_probes()

    def take(self, frame: ErrorFrame, *, after: int = 0) -> tuple[Key, ...]:
        """Remember a trouble, or forget those that are over; give what is over.

        Args:
            frame: what the gateway says.
            after: the number of the last question that was asked before.
        """
        farm = _farm(frame)
        if frame.code_class is CodeClass.RESUME:
            return (_LINK, *self._resume(frame))
        if frame.code_class is CodeClass.PAUSE:
            self._break((frame.code, farm), _Trouble(str(frame), after))
        elif frame.code in _RESTORED_BY:
            code = _RESTORED_BY[frame.code]
            self._see(code, farm, FarmState.IDLE if frame.code in _IDLE else FarmState.OK)
            return self._forget(lambda key: _is_restored(key, frame.code, farm))
        return ()

    def _blocking(self, need: int, route: str) -> str:
        told = self._troubles.items()
        return next((one.text for key, one in told if self._affects(key, need, route)), "")

    def _affects(self, key: Key, need: int, route: str) -> bool:
        if key == _LINK:
            return True
        return key[0] in {need, _SERVER_LOST} and (key, route) not in self._spared

    def _is_harmless(self, key: Key) -> bool:
        is_spared = any(spared == key for spared, _ in self._spared)
        return is_spared and not any(self._affects(key, *route) for route in self._probes)

    def _drop_probes(self) -> None:
        """Forget the probes of routes that nothing stands in the way of any more."""
        self._probes = {key: one for key, one in self._probes.items() if self._blocking(*key)}

    def _break(self, key: Key, trouble: _Trouble) -> None:
        self._troubles[key] = trouble
        self._spared = {one for one in self._spared if one[0] != key}
        self._see(*key, FarmState.BROKEN)

    def _resume(self, frame: ErrorFrame) -> tuple[Key, ...]:
        """Forget the lost link, and what was broken of the farms that the text calls connected.

        Of a farm that it does not mention only market data are forgotten: no request needs those,
        so no probe could ever end it. What still is broken is probed anew, from the first pause.
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
    """Say whether an answer shows that a trouble does not hit its route.

    Contracts may come out of the gateway's own memory.
    """
    return key[0] == _NEEDED[topic] or (key == _SERVER and topic is not Topic.CONTRACT)


def _is_restored(key: Key, code: int, farm: str) -> bool:
    """Say whether good news of a farm end a trouble."""
    if key == _SERVER:
        return code in _CONNECTED
    return key[0] == _RESTORED_BY[code] and (not farm or key[1] in {farm, ""})


def _farm(frame: ErrorFrame) -> str:
    """Give the farm that a text names at its end, or nothing."""
    if frame.code in {_LINK_LOST, _SERVER_LOST}:
        return ""
    found = (pattern.search(frame.text) for pattern in _FARM_AT_END)
    return next((one[1] or "" for one in found if one), "")


def _listed_farms(text: str) -> tuple[set[str], set[str]]:
    """Give the farms that 1101 or 1102 calls connected, and those that it does not.

    Forms: ``... All data farms are connected: usfarm; ushmds; secdefnj.`` and ``... The following
    farms are connected: a; b. The following farms are not connected: c.`` (grade L). In another
    language the first list is of the connected ones, as in both forms.
    """
    connected: set[str] = set()
    missing: set[str] = set()
    end = 0
    for number, found in enumerate(_FARM_LIST.finditer(text)):
        says, end = text[end : found.start()].casefold(), found.end()
        is_connected = _NOT_CONNECTED not in says and (number == 0 or "connected" in says)
        names = {name.strip() for name in re.split("[;,]", found[1])}
        (connected if is_connected else missing).update(names)
    return connected, missing


CLOCK_REFRESH_S = 600.0
"""How old the last sight of the gateway's clock may be before it is asked again."""


_END_OF_CLOCKS_S = 4_102_444_800  # 2100


@dataclass(frozen=True, slots=True)
class Health:
    """How a connection is: a round trip's time (None: no answer) and what is known to be wrong.

    ``last_answer_age_s`` is the age of the last answer about data (None: there was none);
    ``clock_offset_s`` says how far the gateway's clock is ahead of this machine's, to a second.
    ``breaker`` is what all processes think of the gateway, ``concurrency`` how many requests for
    bars they may have in flight together; all of them pause for ``paused_s`` more after a
    violation.
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
        """Say whether the gateway answers and knows of no trouble."""
        return self.connected and self.round_trip_s is not None and not self.troubles


def with_vitals(health: Health, vitals: Vitals) -> Health:
    """Add what all processes know of the gateway to what one connection sees."""
    age_s = boot_time_s() - vitals.answered_at if vitals.answered_at else None
    return replace(
        health,
        last_answer_age_s=health.last_answer_age_s if age_s is None else age_s,
        breaker=vitals.breaker.state,
        concurrency=vitals.concurrency,
        paused_s=vitals.paused_s,
    )


class GatewayClock:
    """The gateway's clock, carried on by this machine's since it was last seen.

    The gateway tells whole seconds, cut off, so this clock is never ahead of it.
    """

    def __init__(self, clock: Callable[[], float] = boot_time_s) -> None:
        self._clock = clock
        self._epoch_s, self._seen_at_s = 0, clock()

    def see(self, epoch_s: int) -> None:
        """Take what the gateway says now.

        Raises:
            ValueError: that is no time of a clock.
        """
        if not 0 < epoch_s < _END_OF_CLOCKS_S:
            raise ValueError(f"a clock at {epoch_s} s")
        self._epoch_s, self._seen_at_s = epoch_s, self._clock()

    def now(self) -> datetime:
        """Give the gateway's time."""
        passed_s = self._clock() - self._seen_at_s
        return datetime.fromtimestamp(self._epoch_s, UTC) + timedelta(seconds=passed_s)

    @property
    def is_stale(self) -> bool:
        """Say whether it should be looked at again."""
        return self._clock() - self._seen_at_s > CLOCK_REFRESH_S
