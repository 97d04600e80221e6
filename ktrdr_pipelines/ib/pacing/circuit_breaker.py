"""The circuit breaker: a gateway that fails again and again is left alone for a while.

Closed: everything may be asked. Open: nothing, until a pause is over. Half-open: one request
tries; its answer closes the breaker, its failure opens it for twice as long. A failure is made
good by what reaches as deep into the gateway: one that still takes connections and knows contracts
may have lost its bars. Times are seconds of any one clock. Not here: the record that all processes
share (``ib.pacing.shared_state``).
"""

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from ktrdr_pipelines.ib.pacing.rules import RequestKind

MOST_FAILURES = 5
"""Failures in a row, of requests sent one after another, that open the breaker."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 600.0


class BreakerState(StrEnum):
    """What may be asked of a gateway."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Depth(IntEnum):
    """How deep into the gateway something reaches."""

    CONNECTION = 0
    CONTRACTS = 1
    DATA = 2


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state, and what it rests on.

    ``until`` is when an open breaker lets one request try, or when a half-open one no longer waits
    for it. ``failed_at`` is when the last failure counted and ``reason`` what it met, ``depth``
    that of the deepest.
    """

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    failed_at: float = 0.0
    until: float = 0.0
    pause_s: float = 0.0
    depth: Depth = Depth.CONNECTION
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request may be sent: ``wait_s`` is 0 where it may, else when to ask again."""

    breaker: Breaker
    wait_s: float = 0.0


def admission(breaker: Breaker, now: float, *, probe_s: float) -> Admission:
    """Decide whether a request may be sent now.

    Args:
        breaker: the state.
        now: the clock.
        probe_s: how long the one request that tries may take.
    """
    if breaker.state is BreakerState.CLOSED:
        return Admission(breaker)
    if now < breaker.until:
        return Admission(breaker, breaker.until - now)
    return Admission(replace(breaker, state=BreakerState.HALF_OPEN, until=now + probe_s))


def depth_of(kind: RequestKind) -> Depth:
    """Say how deep a request reaches."""
    return Depth.CONTRACTS if kind is RequestKind.CONTRACT else Depth.DATA


def succeeded(breaker: Breaker, depth: Depth) -> Breaker:
    """Take in that the gateway answered something; what fails deeper than that goes on counting.

    The try of a half-open breaker is then still to come, and anybody's.
    """
    if depth >= breaker.depth:
        return Breaker()
    is_trying = breaker.state is BreakerState.HALF_OPEN
    return replace(breaker, until=0.0) if is_trying else breaker


def failed(
    breaker: Breaker,
    *,
    sent_at: float,
    now: float,
    depth: Depth = Depth.CONNECTION,
    reason: str = "",
) -> Breaker:
    """Take in a failure; of requests that were under way together, one counts."""
    if sent_at < breaker.failed_at or breaker.state is BreakerState.OPEN:
        return breaker
    failures, depth = breaker.failures + 1, max(breaker.depth, depth)
    counted = replace(breaker, failures=failures, failed_at=now, depth=depth, reason=reason)
    if breaker.state is BreakerState.CLOSED and failures < MOST_FAILURES:
        return counted
    pause_s = min(max(breaker.pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
    return replace(counted, state=BreakerState.OPEN, until=now + pause_s, pause_s=pause_s)
