"""The circuit breaker of a gateway: after consecutive failures it stops requests for a while.

Closed: every request may be sent. Open: none, until a pause is over. Half-open: one request probes;
its response closes the breaker, its failure opens it for twice as long. A failure is cancelled only
by a response that reaches as deep into the gateway: one that still accepts connections and knows
contracts may have lost its bars. Times are seconds of any one clock.

Not here: the record that all processes share (``ib.pacing.shared_state``).
"""

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from ktrdr_pipelines.ib.pacing.rules import RequestKind
from ktrdr_pipelines.limits import IbLimitsRegistry

MOST_FAILURES = 5
"""Consecutive failures, of requests sent one after another, that open the breaker."""


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
