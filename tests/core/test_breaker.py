"""The circuit breaker as a pure state machine."""

from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    MOST_FAILURES,
    Breaker,
    BreakerState,
    Depth,
    admission,
    failed,
    succeeded,
)
from ktrdr_pipelines.limits import IbLimitsRegistry

FIRST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.first_s
LONGEST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.longest_s


def failing(
    times: int,
    breaker: Breaker | None = None,
    now: float = 100.0,
    depth: Depth = Depth.CONNECTION,
) -> Breaker:
    """Let requests fail one after another, each sent when the one before had failed."""
    breaker = breaker or Breaker()
    for number in range(times):
        breaker = failed(breaker, sent_at=now + number, now=now + number, depth=depth)
    return breaker


def test_a_few_failures_leave_it_closed() -> None:
    """One less than the limit stops nothing."""
    breaker = failing(MOST_FAILURES - 1)
    assert breaker.state is BreakerState.CLOSED
    assert admission(breaker, 200, probe_s=10).wait_s == 0


def test_enough_failures_in_a_row_open_it() -> None:
    """Then nothing passes until the pause is over."""
    breaker = failing(MOST_FAILURES)
    assert breaker.state is BreakerState.OPEN
    opened_at = 100.0 + MOST_FAILURES - 1
    assert admission(breaker, opened_at + 1, probe_s=10).wait_s == FIRST_PAUSE_S - 1


def test_failures_that_were_under_way_together_are_one() -> None:
    """A hang that takes forty requests down is one failure."""
    breaker = Breaker()
    for number in range(40):
        breaker = failed(breaker, sent_at=100, now=130 + number / 100)
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 1)


def test_after_the_pause_one_request_attempts() -> None:
    """The first that asks passes, the next waits for its end."""
    breaker = failing(MOST_FAILURES)
    first = admission(breaker, breaker.until, probe_s=45)
    assert first.wait_s == 0
    assert first.breaker.state is BreakerState.HALF_OPEN
    assert admission(first.breaker, breaker.until + 5, probe_s=45).wait_s == 40


def test_a_trial_that_never_ends_makes_room_for_another() -> None:
    """A process that dies while it tries leaves nobody waiting for ever."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert admission(trial, trial.until, probe_s=45).wait_s == 0


def test_a_failed_trial_doubles_the_pause_up_to_a_longest() -> None:
    """Half a minute, one, two, and never more than ten."""
    breaker, pauses = failing(MOST_FAILURES), []
    for _ in range(7):
        pauses.append(breaker.pause_s)
        trial = admission(breaker, breaker.until, probe_s=45).breaker
        breaker = failed(trial, sent_at=breaker.until, now=breaker.until + 30)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_late_failures_do_not_prolong_the_pause() -> None:
    """What was sent before it opened changes nothing."""
    breaker = failing(MOST_FAILURES)
    assert failed(breaker, sent_at=99, now=110) == breaker


def test_connecting_does_not_make_good_that_bars_never_come() -> None:
    """Failures of bars count on through new connections and contracts; bars end them."""
    breaker = failing(MOST_FAILURES - 1, depth=Depth.DATA)
    assert succeeded(breaker, Depth.CONNECTION) == breaker
    assert succeeded(breaker, Depth.CONTRACTS) == breaker
    assert succeeded(breaker, Depth.DATA) == Breaker()
    assert failing(1, breaker, 200.0).state is BreakerState.OPEN


def test_a_shallow_answer_leaves_the_trial_to_the_next() -> None:
    """Half-open it stays; the next request tries at once, and its failure doubles the pause."""
    breaker = failing(MOST_FAILURES, depth=Depth.DATA)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    connected = succeeded(trial, Depth.CONNECTION)
    assert connected.state is BreakerState.HALF_OPEN
    second = admission(connected, breaker.until + 1, probe_s=45)
    assert second.wait_s == 0
    assert admission(second.breaker, breaker.until + 2, probe_s=45).wait_s == 44
    again = failed(second.breaker, sent_at=breaker.until + 1, now=200, depth=Depth.DATA)
    assert (again.state, again.until) == (BreakerState.OPEN, 200 + 2 * FIRST_PAUSE_S)
