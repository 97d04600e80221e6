"""The circuit breaker of a gateway: after consecutive failures it stops requests for a while.

Closed: every request may be sent. Open: none, until a pause is over. Half-open: one request probes;
its response closes the breaker, its failure opens it for twice as long. A failure is cancelled only
by a response that reaches as deep into the gateway: one that still accepts connections and knows
contracts may have lost its bars. Times are seconds of any one clock.

A run that cannot reach the gateway at all records an ``Absence``, in real moments. Breaker and
absence together are the ``Availability`` of the gateway, the one answer whether to try it now.

Not here: the record that all processes share (``ib.pacing.shared_state``), polling an unreachable
gateway (``defs.sensors.gateway_sensor``).
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum

from ktrdr_pipelines.ib.pacing.rules import RequestKind
from ktrdr_pipelines.limits import IbLimitsRegistry

MOST_FAILURES = 5
"""Consecutive failures, of requests sent one after another, that open the breaker."""

BELIEVED = timedelta(minutes=10)
"""How long an absence stops other runs unless the gateway sensor confirms it: a sensor that was
switched off must not block them for longer."""

DEFERS_FOR = timedelta(days=1)
"""How long after an absence it may still be what defers requests: failures wait a day at most."""


class BreakerState(StrEnum):
    """Which requests a gateway may be sent: all, none, or one that probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Depth(IntEnum):
    """How deep into the gateway a request or a failure reaches."""

    CONNECTION = 0
    CONTRACTS = 1
    DATA = 2


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of the circuit breaker, and what it is derived from.

    ``until`` is when an open breaker lets one request probe, or when a half-open one stops waiting
    for it. ``failed_at`` is when the last failure counted, ``reason`` that failure's reason, and
    ``depth`` the depth of the deepest failure.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    failed_at: float = 0.0
    until: float = 0.0
    depth: Depth = Depth.CONNECTION
    reason: str = ""

    @property
    def pause_s(self) -> float:
        """Seconds of the pause that the last failure began, if it opened the breaker."""
        return IbLimitsRegistry.BREAKER_PAUSE_S.value.delay_s(self.failures - MOST_FAILURES + 1)

    @property
    def why(self) -> str:
        """Why an open breaker lets no request through."""
        last = f" (last: {self.reason})" if self.reason else ""
        return f"circuit breaker open after {self.failures} consecutive failures{last}"


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request may be sent: ``wait_s`` is 0 if so, else when to check again."""

    breaker: Breaker
    wait_s: float = 0.0


def admission(breaker: Breaker, now: float, *, probe_s: float) -> Admission:
    """Return whether a request may be sent now, and the breaker from then on.

    Args:
        breaker: the state.
        now: the clock.
        probe_s: how long the one request that probes may take.
    """
    if breaker.state is BreakerState.CLOSED:
        return Admission(breaker)
    if now < breaker.until:
        return Admission(breaker, breaker.until - now)
    return Admission(replace(breaker, state=BreakerState.HALF_OPEN, until=now + probe_s))


def depth_of(kind: RequestKind) -> Depth:
    """Return how deep a request reaches."""
    return Depth.CONTRACTS if kind is RequestKind.CONTRACT else Depth.DATA


def succeeded(breaker: Breaker, depth: Depth) -> Breaker:
    """Return the breaker after a response of some depth; deeper failures still count.

    If deeper failures remain, a half-open breaker lets the next request of any process probe.
    """
    if depth >= breaker.depth:
        return Breaker()
    is_probing = breaker.state is BreakerState.HALF_OPEN
    return replace(breaker, until=0.0) if is_probing else breaker


def failed(
    breaker: Breaker,
    *,
    sent_at: float,
    now: float,
    depth: Depth = Depth.CONNECTION,
    reason: str = "",
) -> Breaker:
    """Return the breaker after a failure; of requests that were in flight together, one counts."""
    if sent_at < breaker.failed_at or breaker.state is BreakerState.OPEN:
        return breaker
    failures, depth = breaker.failures + 1, max(breaker.depth, depth)
    counted = replace(breaker, failures=failures, failed_at=now, depth=depth, reason=reason)
    if breaker.state is BreakerState.CLOSED and failures < MOST_FAILURES:
        return counted
    return replace(counted, state=BreakerState.OPEN, until=now + counted.pause_s)


@dataclass(frozen=True, slots=True)
class Absence:
    """A time for which runs cannot reach the gateway, in real moments (UTC).

    ``since`` is when it was first recorded, ``seen_at`` when it was last seen, ``text`` the error
    then; ``ended_at`` is when the gateway was found again, None until then.
    """

    since: datetime
    seen_at: datetime
    text: str
    ended_at: datetime | None = None

    def __str__(self) -> str:
        return f"the gateway is away since {self.since_text}: {self.text}"

    @property
    def since_text(self) -> str:
        """The start of the absence in UTC, for messages."""
        return f"{self.since:%Y-%m-%d %H:%M:%S}Z"

    def is_believed(self, now: datetime) -> bool:
        """Return whether it is too early to try again.

        A record in the future was made before the clock was put back, and does not count.
        """
        return self.ended_at is None and self.seen_at <= now < self.seen_at + BELIEVED

    def may_defer(self, now: datetime) -> bool:
        """Return whether requests may still be deferred because of it.

        An end in the future was recorded before the clock was put back, and does not count.
        """
        return self.ended_at is None or self.ended_at <= now < self.ended_at + DEFERS_FOR


def seen_absent(known: Absence | None, at: datetime, text: str) -> Absence:
    """Return the absence after one more record of it; while it lasts, its start is kept."""
    lasts = known is not None and known.ended_at is None
    return Absence(min(known.since, at) if known is not None and lasts else at, at, text)


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a run may try the gateway now; if not, why, since when, and when it may.

    Moments are real ones (UTC); ``next_at`` None means now.
    """

    reason: str = ""
    since: datetime | None = None
    next_at: datetime | None = None

    def __str__(self) -> str:
        return self.reason

    @property
    def may_try(self) -> bool:
        """Return whether a run may try the gateway now."""
        return self.next_at is None


def availability(
    breaker: Breaker, absence: Absence | None, *, now_s: float, real_now: datetime
) -> Availability:
    """Return whether a run may try a gateway now.

    A half-open breaker stops no run: its requests wait for the one that probes.

    Args:
        breaker: the state of the circuit breaker.
        absence: the last absence, if there was one.
        now_s: the clock of the breaker.
        real_now: the clock of the absence.
    """
    wait_s = breaker.until - now_s if breaker.state is BreakerState.OPEN else 0.0
    probe_at = real_now + timedelta(seconds=max(wait_s, 0.0))
    if absence is not None and absence.is_believed(real_now):
        return Availability(str(absence), absence.since, max(absence.seen_at + BELIEVED, probe_at))
    if wait_s <= 0:
        return Availability()
    opened_at = real_now - timedelta(seconds=now_s - breaker.failed_at)
    return Availability(f"{breaker.why}; next attempt in {wait_s:.0f} s", opened_at, probe_at)
